"""`lowcloud agent`."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools.command import command, environment, lowcloud, succeed
from tests.tools.shop import Shop


@contextmanager
def agent(*words: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, object]]]:
    """An agent in the foreground, and its ready line; with its supervisor gone at the end."""
    with subprocess.Popen(
        command("agent", *words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(60)


def test_an_enrolled_host_needs_only_its_state_directory(written: Shop, tmp_path: Path) -> None:
    written.succeed("host", "add", "fra1", "-o", "bundle")
    state = tmp_path / "state"
    succeed("host", "enroll", written.root / "bundle", "--state", state)
    with agent("--state", state, "--shared") as (process, ready):
        assert ready == {"host": "fra1", "address": f"127.0.1.1:{written.agent_port}", "pid": process.pid}
        [facts] = written.json("host", "show", "fra1")
        assert facts["host"] == "fra1"
        shut_down(written, state)
        assert process.wait(60) == 0


def test_a_second_agent_of_the_same_state_is_refused(written: Shop, tmp_path: Path) -> None:
    written.succeed("host", "add", "fra1", "-o", "bundle")
    state = tmp_path / "state"
    succeed("host", "enroll", written.root / "bundle", "--state", state)
    with agent("--state", state, "--shared") as (process, _):
        second = lowcloud("agent", "--state", state)
        assert second.code == 1
        assert "another agent runs" in second.err
        shut_down(written, state)
        assert process.wait(60) == 0


def test_without_enrolment_it_says_what_is_missing(tmp_path: Path) -> None:
    result = lowcloud("agent", "--state", tmp_path)
    assert result.code == 2
    assert "lowcloud host add" in result.err
    named = lowcloud("agent", "--state", tmp_path, "--host", "fra1", "--listen", "127.0.0.1:0")
    assert named.code == 1
    assert "credentials" in named.err


def test_a_signal_ends_it_in_order_from_its_ready_line_on(written: Shop, tmp_path: Path) -> None:
    written.succeed("host", "add", "ams1", "-o", "bundle")
    state = tmp_path / "state"
    succeed("host", "enroll", written.root / "bundle", "--state", state)
    with agent("--state", state, "--shared") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with agent("--state", state, "--shared") as (process, _):
        shut_down(written, state, host="ams1")
        assert process.wait(60) == 0


def shut_down(shop: Shop, state: Path, host: str = "fra1") -> None:
    """End the agent, and the supervisor with it."""
    import asyncio

    from agent.client.client import AgentClient
    from deployer.cloud.trust import read_settings

    async def ask() -> None:
        async with AgentClient(host, read_settings(state).listen, shop.root / ".lowcloud" / "operator") as client:
            await client.shut_down(guests=True)

    asyncio.run(ask())


def test_namespaces_that_this_host_cannot_make_are_a_reason_not_to_start(tmp_path: Path) -> None:
    words: list[str | Path] = [
        "--state",
        tmp_path,
        "--host",
        "fra1",
        "--listen",
        "127.0.0.1:0",
        "--network",
        "namespaces",
    ]
    without_rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    done = subprocess.run(
        [*without_rights, *command("agent", *words)], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "guests cannot be given network namespaces here" in done.stderr
    assert "leave --network out" in done.stderr
