"""`lowcloud volume`."""

from __future__ import annotations

from tests.tools.shop import Shop


def test_a_volume_stays_when_its_process_goes_and_goes_only_when_told(shop: Shop) -> None:
    [held] = shop.json("volume", "ls")
    assert (held["volume"], held["host"], held["held_by"], held["defined"]) == ("kv-data", "fra1", "kv", True)
    refused = shop.run("volume", "delete", "kv-data@fra1", "--yes")
    assert refused.code == 2
    assert "held by kv" in refused.err

    text = shop.definition.read_text()
    shop.definition.write_text(text[: text.index("[process.kv]")])
    shop.succeed("apply", "--yes")
    [kept] = shop.json("volume", "ls")
    assert kept == {**held, "held_by": None, "defined": False, "used_bytes": kept["used_bytes"]}
    assert "kv-data@fra1" in shop.succeed("volume", "ls").out

    assert shop.run("volume", "delete", "kv-data@fra1", "other@fra1", "--yes").code == 2
    assert shop.run("volume", "delete", "kv-data@fra1").code == 2, "nobody could be asked"
    [gone] = shop.json("volume", "delete", "kv-data@fra1", "--yes")
    assert (gone["volume"], gone["host"]) == ("kv-data", "fra1")
    assert shop.json("volume", "ls") == []
    assert "no volumes" in shop.succeed("volume", "ls", "fra1").out
