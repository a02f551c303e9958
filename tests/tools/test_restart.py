"""`lowcloud restart`."""

from __future__ import annotations

from tests.tools.shop import Shop


def test_the_same_specification_runs_in_a_new_guest(shop: Shop) -> None:
    before = shop.process("web@fra1")
    [row] = shop.json("restart", "web@fra1")
    after = shop.process("web@fra1")
    assert (row["process"], row["host"]) == ("web", "fra1")
    assert {"spawn", "ready", "flip", "drain"} <= row["steps"].keys()
    assert after["pid"] != before["pid"]
    assert after["spec"] == before["spec"]
    assert after["release"] == before["release"]


def test_a_process_that_is_not_there_is_bad_input_and_those_there_are_named(shop: Shop) -> None:
    result = shop.run("restart", "nothing@ams1")
    assert result.code == 2
    assert "it runs: web" in result.err


def test_where_one_name_is_wrong_nothing_is_restarted(shop: Shop) -> None:
    before = shop.process("web@fra1")
    assert shop.run("restart", "web@fra1", "nothing@ams1").code == 2
    assert shop.process("web@fra1")["pid"] == before["pid"]
