"""`lowcloud peers`."""

from __future__ import annotations

from tests.tools.shop import Shop


def test_it_shows_what_hosts_have_exchanged(shop: Shop) -> None:
    assert shop.json("peers") == []
    text = shop.succeed("peers").out
    assert text.splitlines()[0].split()[:3] == ["HOST", "REGION", "PEER"]
    assert "fra1: " in text and "from operators" in text


def test_it_shows_every_peer_when_asked(shop: Shop) -> None:
    rows = shop.json("peers", "--all", "--host", "fra1")
    assert all(row["host"] == "fra1" and row["peer"] == "ams1" for row in rows)
    assert all(row["received_bytes"] == 0 and row["banned"] == [] for row in rows)
