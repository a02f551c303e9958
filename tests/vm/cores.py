"""What only version 2 of control groups can show, as root: `python -m tests.vm tests/vm/cores.py`. Not found by pytest
alone, because elsewhere there is nothing to show."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from agent import tls
from agent.api.calls import Envelope, Replace, Resize, Start, Stop
from agent.api.processes import ProcessSpec, Ready, Update, spec_digest
from agent.client.client import AgentClient
from agent.daemon.assembly import Agent, groups_name
from agent.main import listening
from agent.sandbox.cgroups import Groups, Limits
from agent.sandbox.cpusets import Claim
from tests.agent.runtime.support import order, supervisor
from tests.agent.service.daemon import needs_guests
from tests.agent.service.support import HOST, changed, prepare, put, until, web
from tests.ports import free_port
from tools import guests

MIB = 1 << 20
TOP = Path("/sys/fs/cgroup")
LAST = max(os.sched_getaffinity(0))
EVERYWHERE = os.sched_getaffinity(0)


@contextmanager
def stranger() -> Iterator[int]:
    """A program that is none of lowcloud's; its process."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def may_run_on(pid: int) -> set[int]:
    return os.sched_getaffinity(pid)


def test_a_closed_core_is_one_process_s_and_comes_back_to_all(tmp_path: Path) -> None:
    groups = Groups.open("lowcloud-test-" + tmp_path.name)
    assert groups.controllers["cpuset"] == 2
    limits = Limits(256 * MIB, 1000)

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            for guest in ("spin-1", "spin-2"):  # as in a swap: both versions are the same process
                directories = groups.make("spin", guest, limits, Claim((LAST,), alone=True))
                made = order(tmp_path, guest, "probe", "spin", cpus=(LAST,))
                state = await client.spawn(msgspec.structs.replace(made, cgroups=directories))
                assert may_run_on(state.pid) == {LAST}
                assert LAST not in may_run_on(other) | may_run_on(os.getpid())
            assert groups.closed_cpus() == {LAST}
            assert Groups.open("lowcloud-test-" + tmp_path.name).closed_cpus() == {LAST}
            await asyncio.to_thread(subprocess.run, ["systemctl", "daemon-reload"], check=True)
            assert LAST not in may_run_on(other)
            groups.give({"spin": Claim()})
            assert may_run_on(state.pid) == may_run_on(other) == EVERYWHERE
            groups.give({"spin": Claim((LAST,), alone=True)})
            assert LAST not in may_run_on(other)

    with stranger() as other:
        try:
            asyncio.run(scenario())
        finally:
            groups.sweep(())
        asyncio.run(until(lambda: may_run_on(other) == EVERYWHERE))
    assert not groups_below(TOP, "lowcloud-test-" + tmp_path.name)


def test_what_the_kernel_does_not_close_is_said_and_stays_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = Groups.open("lowcloud-test-" + tmp_path.name)
    try:
        groups.make("all", "all-1", Limits(256 * MIB, 1000), Claim(tuple(EVERYWHERE), alone=True))
        assert "cannot be closed to others" in caplog.text
        assert groups.closed_cpus() == set()
        assert may_run_on(os.getpid()) == EVERYWHERE
    finally:
        groups.sweep(())


def test_two_processes_trade_their_cores_in_one_step(tmp_path: Path) -> None:
    groups = Groups.open("lowcloud-test-" + tmp_path.name)
    try:
        groups.make("one", "one-1", Limits(256 * MIB, 1000), Claim((LAST,), alone=True))
        groups.make("two", "two-1", Limits(256 * MIB, 1000), Claim((0,)))
        groups.give({"one": Claim((0,)), "two": Claim((LAST,), alone=True)})
        assert groups.closed_cpus() == {LAST}
        assert [path.name for path in TOP.glob("lowcloud-test-*") if "root" in partition(path)] == [
            f"lowcloud-test-{tmp_path.name}.two"
        ]
    finally:
        groups.sweep(())


def groups_below(top: Path, name: str) -> list[Path]:
    return list(top.glob(f"{name}*"))


def partition(group: Path) -> str:
    return (group / "cpuset.cpus.partition").read_text()


@asynccontextmanager
async def pinning_host(state_dir: Path) -> AsyncIterator[AgentClient]:
    credentials, operator = prepare(state_dir)
    agent = await Agent.open(HOST, state_dir)
    try:
        async with (
            listening(agent, tls.server_context(credentials), "127.0.0.1", 0) as address,
            AgentClient(HOST, address, operator) as client,
        ):
            await asyncio.wait_for(agent.processes.linked.wait(), 60)
            yield client
    finally:
        await agent.close()


@needs_guests
def test_resize_swap_and_a_new_agent_move_a_closed_core_and_a_stop_gives_it_back(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"

    async def scenario() -> None:
        prepare(state_dir)
        first, second = put(state_dir, *(guests.path(name).read_bytes() for name in ("web-1", "web-2")))
        alone = web(
            first,
            port=free_port(),
            cores_milli=1000,
            memory_bytes=16 * MIB,
            ready=Ready("http", within_s=60.0),
            update=Update(drain_s=0.1),
        )

        async def pid_of(client: AgentClient, spec: ProcessSpec) -> int:
            (status,) = await client.processes()
            assert status.spec == spec
            return status.pid or 0

        with stranger() as other:
            async with pinning_host(state_dir) as client:
                await client.call(Envelope(call=Start(alone)))
                assert may_run_on(await pid_of(client, alone)) == {LAST}
                assert LAST not in may_run_on(other)
                newer = changed(alone, binary=second)
                await client.call(Envelope(call=Replace(newer, expect=spec_digest(alone))))
                assert may_run_on(await pid_of(client, newer)) == {LAST}
                assert LAST not in may_run_on(other)
                share = changed(newer, cores_milli=500)
                await client.call(Envelope(call=Resize(share, expect=spec_digest(newer))))
                assert may_run_on(await pid_of(client, share)) == may_run_on(other) == EVERYWHERE
                await client.call(Envelope(call=Resize(newer, expect=spec_digest(share))))
                assert LAST not in may_run_on(other)
            assert LAST not in may_run_on(other)  # the agent has gone, its guest has not
            async with pinning_host(state_dir) as client:
                assert (await client.host()).cores == len(EVERYWHERE)
                assert may_run_on(await pid_of(client, newer)) == {LAST}
                await client.call(Envelope(call=Stop("web", expect=spec_digest(newer))))
                await until(lambda: may_run_on(other) == EVERYWHERE, within_s=60)
                await client.shut_down(guests=True)

    asyncio.run(scenario())
    assert not groups_below(TOP, groups_name(state_dir))
