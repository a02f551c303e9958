"""`lowcloud audit`."""

from __future__ import annotations

import datetime

import pytest

from tests.tools.shop import Shop


def test_it_says_what_ran_at_a_time_by_which_release_and_whom(shop: Shop) -> None:
    first = shop.json("history")[0]
    between = datetime.datetime.now(datetime.UTC).isoformat()
    applied = shop.apply(web="web-2", greeting="good day")
    then = {(row["process"], row["host"]): row for row in shop.json("audit", "at", between)}
    now = {(row["process"], row["host"]): row for row in shop.json("audit", "at", "now")}
    assert then.keys() == now.keys() == {("web", "fra1"), ("web", "ams1"), ("kv", "fra1")}
    web = then["web", "fra1"]
    assert web.keys() >= {"host", "process", "binary", "config", "release", "from", "to"}
    assert web["by"] == "operator:ada"
    assert web["from"] < between < web["to"]
    assert now["web", "fra1"]["release"] == applied["release"]
    assert now["web", "fra1"]["to"] is None
    assert now["web", "fra1"]["binary"] != web["binary"]
    assert now["kv", "fra1"] == then["kv", "fra1"]
    assert first["release"] != applied["release"]


def test_one_host_one_process_and_a_time_before_everything(shop: Shop) -> None:
    assert {row["host"] for row in shop.json("audit", "at", "now", "--host", "ams1")} == {"ams1"}
    assert {row["process"] for row in shop.json("audit", "timeline", "--process", "kv")} == {"kv"}
    assert shop.json("audit", "at", "-52w") == []
    assert shop.run("audit", "at", "now", "--host", "nowhere").code == 2


def test_the_records_hold_together(shop: Shop) -> None:
    verified = shop.json("audit", "verify")
    assert verified["findings"] == []
    assert verified["hosts"] == 2
    assert verified["releases"] == len(shop.json("history"))
    assert "nothing wrong" in shop.succeed("audit", "verify").out


@pytest.mark.parametrize("text", ["yesterday", "25:00", "-5", "2026-13-01"])
def test_what_is_no_time_is_bad_input(shop: Shop, text: str) -> None:
    assert shop.run("audit", "at", text).code == 2


def test_a_host_that_does_not_answer_makes_the_answer_incomplete(written: Shop) -> None:
    assert written.run("audit", "at", "now").code == 1
    assert written.run("audit", "verify").code == 1
