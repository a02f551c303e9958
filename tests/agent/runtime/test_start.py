"""What a start costs that can be counted without a clock. The clock's part is `benchmarks/start.py`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.api.processes import Endpoint, Ready
from benchmarks.start import children_of, private_kib
from tests.agent.runtime.support import DEADLINE_S, order, supervisor
from tests.ports import free_port

GUESTS = 3
MAX_PRIVATE_KIB = 4096


def test_small_guests_are_the_supervisors_children_and_have_4_mib_of_their_own_at_most(tmp_path: Path) -> None:
    async def run() -> None:
        async with supervisor(tmp_path) as client:
            pids = []
            for number in range(GUESTS):
                listen = {"http": Endpoint("127.0.0.1", free_port())}
                state = await client.spawn(order(tmp_path, f"web{number}-1", "web-1", listen=listen))
                await client.wait_ready(state.guest, Ready("http", "/healthz"), deadline_s=DEADLINE_S)
                pids.append(state.pid)
            assert set(pids) <= set(children_of(client.supervisor_pid))
            # Not earlier: the engine's code counts as private while only one process has touched it.
            assert max(private_kib(pid) for pid in pids) <= MAX_PRIVATE_KIB

    asyncio.run(run())
