"""`lowcloud up`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.tools.command import TIMEOUT_S, command, environment, lowcloud
from tests.tools.shop import HOSTS, Shop, wait_until


def test_it_runs_a_whole_cloud_until_it_is_interrupted_and_leaves_nothing_behind(written: Shop) -> None:
    with subprocess.Popen(
        command("up"), cwd=written.root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("web@fra1"):
                break
        assert written.answers() == {"hello from web 1.0\n"}
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert "ending fra1, ams1" in err or "ending ams1, fra1" in err
    assert "Traceback" not in err
    assert process.returncode == 0
    assert any("Ctrl-C ends it" in line for line in lines)
    [limits] = [line for line in lines if line.startswith("limits on ")]
    assert limits.startswith("limits on ams1, fra1: soft: cores")
    assert limits.endswith("; `lowcloud host show` says why\n")
    assert not written.running()


def test_what_runs_already_is_left_running_and_updated(shop: Shop) -> None:
    shop.use(greeting="good day")
    result = shop.json("up", "--detach")
    assert {agent["host"]: agent["new"] for agent in result["agents"]} == {"fra1": False, "ams1": False}
    assert result["apply"]["outcome"] == "applied"
    assert shop.answers() == {"good day from web 1.0\n"}


def test_a_host_whose_address_changes_gets_its_agent_there_and_its_guests_go_on(written: Shop) -> None:
    written.succeed("up", "--detach")
    before = {row["name"]: row["pid"] for row in written.json("ps")}
    moved = written.definition.read_text().replace(f"127.0.1.1:{written.agent_port}", f"127.0.3.1:{written.agent_port}")
    written.definition.write_text(moved.replace('"host:', '"127.0.1.1:', 1).replace('["fra1", "ams1"]', '["fra1"]'))
    try:
        result = written.json("up", "--detach")
        assert {agent["host"]: agent["new"] for agent in result["agents"]} == {"fra1": True, "ams1": False}
        assert written.process("web@fra1")["pid"] == before["web@fra1"]
    finally:
        written.succeed("down")
    assert not written.running()


def test_an_agent_that_cannot_start_is_explained_and_the_others_are_ended(written: Shop) -> None:
    with socket.socket() as taken:
        taken.bind((HOSTS["ams1"], written.agent_port))
        taken.listen()
        result = written.run("up", "--detach")
    assert result.code == 1
    assert "ams1" in result.err
    assert "cannot listen" in result.err
    assert not written.running()


def test_a_failed_apply_is_told_by_the_exit_code(written: Shop) -> None:
    (written.root / "conf" / "web.toml").write_text("nonsense\n")
    result = written.run("up", "--detach")
    assert result.code == 4
    wait_until(lambda: not written.running(), "everything has ended")


def test_a_definition_without_loopback_hosts_is_bad_input(cloud: Path) -> None:
    (cloud / "cloud.toml").write_text(
        'name = "far"\n[region.fra]\n[host.fra1]\nregion = "fra"\naddress = "10.0.0.1:7400"\n'
        'cores = 1\nmemory = "1GiB"\ndisk = "1GiB"\n'
    )
    result = lowcloud("up", cwd=cloud)
    assert result.code == 2
    assert "loopback" in result.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_closes_ends_it_too(written: Shop, number: signal.Signals) -> None:
    with subprocess.Popen(
        command("up"), cwd=written.root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("web@fra1"):
                break
        os.kill(process.pid, number)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    assert not written.running()


def test_it_ends_only_what_it_started_and_goes_when_that_is_gone(written: Shop) -> None:
    """Somebody ends it by `down` in another terminal and starts the cloud anew: that is not this command's to end."""
    with subprocess.Popen(
        command("up"), cwd=written.root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("web@fra1"))
        written.succeed("down")
        try:
            written.succeed("up", "--detach")
            _, err = process.communicate(timeout=TIMEOUT_S)
            assert "has been ended" in err
            assert "\nending " not in err
            assert process.returncode == 0
            assert written.answers() == {"hello from web 1.0\n"}
        finally:
            written.succeed("down")


def test_hosts_elsewhere_that_are_away_do_not_end_those_of_this_machine(written: Shop) -> None:
    text = written.definition.read_text()
    written.definition.write_text(text.replace("127.0.2.1", "192.0.2.1"))
    try:
        up = written.run("up", "--detach", "--allow-unreachable", "--json")
        assert (up.code, up.json["apply"]["hosts"]) == (4, {"ams1": "unknown", "fra1": "new"})
        assert written.answer("fra1") == "hello from web 1.0\n"
    finally:
        written.run("down")
    assert not written.running()
