"""`lowcloud ps`."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import msgspec

from agent.api.facts import ProcessState, ProcessStatus, Troubles
from agent.api.processes import ProcessSpec, spec_digest
from tests.tools.shop import Shop
from tools.commands.ps import _as_dict, _row


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


def test_it_shows_what_each_process_takes(shop: Shop) -> None:
    rows = {row["name"]: row for row in shop.json("ps")}
    assert all(row["cpu_s"] >= 0 and row["memory_bytes"] > 0 for row in rows.values())
    assert rows["kv@fra1"]["disk_bytes"] >= 0
    assert all(row["connections"] >= 0 for row in rows.values())
    head = shop.succeed("ps").out.splitlines()[0].split()
    assert head[6:10] == ["CPU", "MEMORY", "DISK", "CONN"]


def test_watching_goes_on_with_the_rate_of_what_was_taken(shop: Shop) -> None:
    command = [sys.executable, "-P", "-m", "tools.main", "ps", "-w", "--host", "fra1", "-C", str(shop.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            lines = [watching.stdout.readline().split() for _ in range(6)]
        finally:
            watching.kill()
    looks = [lines[:3], lines[3:]]
    assert [look[0][0] for look in looks] == ["NAME", "NAME"]
    first, second = ({row[0]: row[6] for row in look[1:]} for look in looks)
    assert first.keys() == second.keys() == {"kv@fra1", "web@fra1"}
    assert all(cpu.endswith("s") for cpu in first.values())
    assert all(cpu.endswith("%") for cpu in second.values())


def test_one_host_can_be_asked(shop: Shop) -> None:
    assert {row["host"] for row in shop.json("ps", "--host", "ams1")} == {"ams1"}
    assert shop.run("ps", "--host", "nowhere").code == 2


def test_a_host_that_does_not_answer_is_a_failure_and_a_line_on_stderr(written: Shop) -> None:
    result = written.run("ps")
    assert result.code == 1
    assert "fra1" in result.err
    assert "ams1" in result.err


def test_a_process_in_trouble_is_told_with_the_time_of_its_next_start() -> None:
    spec = ProcessSpec("web", "b3:" + 64 * "0")
    told = ProcessStatus("web", spec, spec_digest(spec), ProcessState.BACKOFF, None, 0.0, 7, None, None, "it ended")
    waiting = msgspec.structs.replace(told, troubles=Troubles(4, "it ended", 1.0, 7), next_start_unix=time.time() + 90)
    assert _row("fra1", told, None, "-")[-1] == "it ended"
    assert re.fullmatch(r"it ended; starts again in (8\d|90) s", _row("fra1", waiting, None, "-")[-1])
    due = msgspec.structs.replace(waiting, next_start_unix=1.0)
    assert _row("fra1", due, None, "-")[-1] == "it ended; starts again now"
    shown = _as_dict("fra1", due, None)
    assert (shown["starts_in_a_row"], shown["last_exit_code"], shown["given_up"]) == (4, 7, False)
    assert shown["next_start"].startswith("1970-01-01T00:00:01")
    assert (_as_dict("fra1", told, None)["next_start"], _as_dict("fra1", told, None)["starts_in_a_row"]) == (None, 0)
