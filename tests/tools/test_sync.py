"""`lowcloud sync`: two stores are compared as wholes, and one is given what it lacks."""

from __future__ import annotations

from pathlib import Path

from cas.digest import digest_of
from cas.store import Store
from tests.tools.shop import Shop


def test_what_only_this_store_has_is_counted_and_sent(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("only here")
    digest = shop.json("push", tmp_path / "own")[0]["hash"]
    compared = shop.json("sync", "fra1")
    assert compared["only_here"] >= 1
    assert compared["round_trips"] <= 5
    assert (compared["sent_bytes"], compared["fetched_bytes"]) == (0, 0)
    sent = shop.json("sync", "fra1", "--send")
    assert (sent["only_here"], sent["sent_bytes"] > 0) == (compared["only_here"], True)
    assert shop.json("sync", "fra1")["only_here"] == 0
    assert digest_of(b"only here") == digest


def test_a_store_that_was_restored_empty_gets_back_what_a_host_has(shop: Shop, tmp_path: Path) -> None:
    store = shop.root / ".lowcloud" / "store"
    kept = store.rename(tmp_path / "store")
    try:
        Store.open(store).close()
        fetched = shop.json("sync", "fra1", "--fetch")
        assert fetched["only_there"] > 0
        assert shop.json("sync", "fra1")["only_there"] == 0
        binary = (shop.root / "build" / "web.wasm").read_bytes()
        shop.succeed("pull", digest_of(binary), "-o", tmp_path / "web.wasm")
        assert (tmp_path / "web.wasm").read_bytes() == binary
        assert shop.json("gc")["blobs"] == 0, "what was fetched is kept"
    finally:
        store.rename(tmp_path / "fetched")
        kept.rename(store)


def test_fetching_and_sending_at_once_is_refused(shop: Shop) -> None:
    refused = shop.run("sync", "fra1", "--fetch", "--send")
    assert refused.code == 2
    assert "not allowed" in refused.err


def test_a_host_that_nobody_knows_is_named(shop: Shop) -> None:
    refused = shop.run("sync", "nowhere")
    assert refused.code == 2
    assert "nowhere" in refused.err
