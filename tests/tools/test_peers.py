"""`lowcloud peers`."""

from __future__ import annotations

from tests.tools.shop import Shop


def test_it_shows_what_hosts_have_exchanged(shop: Shop) -> None:
    rows = shop.json("peers")
    assert all({row["host"], row["peer"]} == {"fra1", "ams1"} for row in rows)
    assert all(row["received_bytes"] or row["sent_bytes"] or row["failures"] for row in rows), "else only with --all"
    text = shop.succeed("peers").out
    first = text.splitlines()[0].split()[:3]
    assert first == (["HOST", "REGION", "PEER"] if rows else ["hosts", "have", "taken"]), "no head without a row"
    assert "fra1: " in text and "from operators" in text


def test_it_shows_every_peer_when_asked(shop: Shop) -> None:
    [row] = shop.json("peers", "--all", "--host", "fra1")
    assert shop.succeed("peers", "--all").out.split()[:3] == ["HOST", "REGION", "PEER"]
    assert (row["host"], row["peer"], row["banned"]) == ("fra1", "ams1", [])
