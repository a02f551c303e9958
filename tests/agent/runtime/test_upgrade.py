"""A supervisor of another build than the agent's: after an upgrade, or a return to the version before."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.api.processes import Endpoint, Ready
from agent.build import build as current_build
from agent.supervisor.client import connect
from agent.supervisor.wire import STATE_NAME, WIRE_VERSION
from tests.agent.runtime.support import DEADLINE_S, IS_ROOT, http_get, is_alive, order, supervisor
from tests.agent.runtime.test_guests import killed
from tests.ports import free_port
from tests.tools.command import environment

OF_ANOTHER_BUILD = """
import sys
from agent import build
from agent.supervisor import wire
wire.WIRE_VERSION = int(sys.argv[2])
build.build = lambda: sys.argv[3]
from agent.supervisor.main import main
sys.exit(main(sys.argv[1:2]))
"""


@pytest.mark.skipif(not IS_ROOT, reason="needs root: a successor copies descriptors out of the guests")
@pytest.mark.parametrize(
    ("wire_version", "build"), [(WIRE_VERSION - 1, current_build()), (WIRE_VERSION, "lowcloud 0.0.9, wasmtime 49.0.0")]
)
def test_a_supervisor_from_before_an_upgrade_is_replaced_and_its_guests_serve_on(
    tmp_path: Path, wire_version: int, build: str
) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    words = [sys.executable, "-P", "-c", OF_ANOTHER_BUILD, str(tmp_path), str(wire_version), build]
    subprocess.run(words, check=True, env=environment())

    async def scenario() -> None:
        with pytest.MonkeyPatch.context() as before:
            before.setattr("agent.supervisor.client.WIRE_VERSION", wire_version)
            before.setattr("agent.supervisor.client.build", lambda: build)
            first = await connect(tmp_path)
        web = await first.spawn(order(tmp_path, "web-1", "web-1", listen={"http": endpoint}))
        await first.wait_ready("web-1", Ready("http"), deadline_s=DEADLINE_S)
        await first.close()
        async with supervisor(tmp_path) as second:
            assert second.supervisor_pid != first.supervisor_pid
            assert not is_alive(first.supervisor_pid)
            [state] = (await second.guests()).values()
            assert (state.pid, state.serving) == (web.pid, True)
            assert "1.0" in await asyncio.to_thread(http_get, endpoint)

    asyncio.run(scenario())


def test_guests_in_a_state_file_that_another_version_has_written_are_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = await connect(tmp_path)
        spinning = await first.spawn(order(tmp_path, "spin-1", "probe", "spin"))
        await first.wait_ready("spin-1", None, deadline_s=DEADLINE_S)
        await killed(first)
        path = tmp_path / STATE_NAME
        state = msgspec.msgpack.decode(path.read_bytes())
        state["version"], state["living"][0]["new"] = 99, "unknown here"
        path.write_bytes(msgspec.msgpack.encode(state))
        async with supervisor(tmp_path) as second:
            assert await second.guests() == {}
            assert not is_alive(spinning.pid)

    asyncio.run(scenario())
