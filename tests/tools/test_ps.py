"""`lowcloud ps`."""

from __future__ import annotations

from tests.tools.shop import Shop


def test_it_lists_what_runs_on_all_hosts(shop: Shop) -> None:
    rows = {row["name"]: row for row in shop.json("ps")}
    assert rows.keys() == {"web@fra1", "web@ams1", "kv@fra1"}
    release = shop.json("history")[0]
    web = rows["web@fra1"]
    assert web.keys() >= {"name", "binary", "state", "pid", "since", "restarts", "release"}
    assert web["state"] == "running"
    assert web["release"] in {row["release"] for row in shop.json("history")}
    assert web["pid"] != rows["web@ams1"]["pid"]
    assert web["binary"] == rows["web@ams1"]["binary"]
    text = shop.succeed("ps").out
    assert text.splitlines()[0].split()[:4] == ["NAME", "BINARY", "STATE", "PID"]
    assert release["release"]


def test_one_host_can_be_asked(shop: Shop) -> None:
    assert {row["host"] for row in shop.json("ps", "--host", "ams1")} == {"ams1"}
    assert shop.run("ps", "--host", "nowhere").code == 2


def test_a_host_that_does_not_answer_is_a_failure_and_a_line_on_stderr(written: Shop) -> None:
    result = written.run("ps")
    assert result.code == 1
    assert "fra1" in result.err
    assert "ams1" in result.err
