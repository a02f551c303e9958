"""`lowcloud down`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.tools.command import command, environment, succeed
from tests.tools.shop import HOSTS, Shop, wait_until


def test_it_ends_agents_and_guests_and_the_next_up_brings_all_of_it_back(written: Shop) -> None:
    written.succeed("up", "--detach")
    guests = [row["pid"] for row in written.json("ps")]
    assert sorted(written.json("down")["stopped"]) == ["ams1", "fra1"]
    assert not written.running()
    assert not any(Path(f"/proc/{pid}").exists() for pid in guests)
    again = written.json("up", "--detach")
    assert again["apply"]["outcome"] == "unchanged"
    wait_until(lambda: {row["state"] for row in written.json("ps")} == {"running"}, "all guests run again")
    assert written.answers() == {"hello from web 1.0\n"}
    written.succeed("down")
    assert not written.running()


def test_guests_of_an_agent_that_was_killed_are_ended_too(written: Shop) -> None:
    written.succeed("up", "--detach")
    record = json.loads((written.root / ".lowcloud" / "hosts" / "fra1" / "running.json").read_bytes())
    os.kill(record["pid"], signal.SIGKILL)
    assert written.answer("fra1") == "hello from web 1.0\n"
    assert "fra1" in written.json("down")["stopped"]
    assert not written.running()


def test_an_agent_that_somebody_has_started_by_hand_is_left_to_them(written: Shop) -> None:
    written.succeed("up", "--detach")
    directory = written.root / ".lowcloud" / "hosts" / "fra1"
    record = json.loads((directory / "running.json").read_bytes())
    os.kill(record["pid"], signal.SIGKILL)
    wait_until(lambda: not _runs(record["pid"]), "the agent is gone")
    words = ("agent", "--host", "fra1", "--listen", record["address"], "--state", str(directory), "--shared")
    with subprocess.Popen(command(*words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as own:
        try:
            assert own.stdout and b'"fra1"' in own.stdout.readline()
            left = written.run("down")
            assert (left.code, left.out) == (1, "ended: ams1\n")
            assert "the agent of fra1 was not started by `up`" in left.err
            assert written.answer("fra1") == "hello from web 1.0\n"
        finally:
            own.terminate()
    assert written.json("down") == {"stopped": ["fra1"]}
    assert not written.running()


def test_one_host_can_be_ended_alone(written: Shop) -> None:
    written.succeed("up", "--detach")
    assert written.json("down", "--host", "ams1") == {"stopped": ["ams1"]}
    assert written.answer("fra1") == "hello from web 1.0\n"
    assert written.json("down") == {"stopped": ["fra1"]}
    assert not written.running()


def test_a_process_that_has_the_number_of_a_dead_agent_is_not_touched(written: Shop) -> None:
    for host in HOSTS:
        directory = written.root / ".lowcloud" / "hosts" / host
        directory.mkdir(parents=True)
        record = {"host": host, "address": "127.0.0.1:1", "pid": os.getpid(), "started_ticks": 1}
        (directory / "running.json").write_text(json.dumps(record))
    assert written.json("down") == {"stopped": []}


def test_where_nothing_runs_there_is_nothing_to_end(cloud: Path) -> None:
    assert succeed("down", "--json", cwd=cloud).json == {"stopped": []}


def _runs(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
