"""More memory for a guest that runs: exactly so much more, for every kind of guest, and nothing beyond the guest itself
is written to."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from agent.api.calls import Resize, Start
from agent.api.facts import ProcessStatus
from agent.api.processes import ProcessSpec, spec_digest
from agent.runtime import GuestFailed, RuntimeUnavailable
from agent.sandbox import engine, zygote
from agent.sandbox.cgroups import Groups
from agent.supervisor.client import connect
from tests import guests
from tests.agent.runtime.support import DEADLINE_S, IS_ROOT, OTHER_UID, needs_root, order, output_of, supervisor
from tests.agent.runtime.test_engine import _in_a_process
from tests.agent.service.daemon import needs_guests
from tests.agent.service.support import Cloud, changed, put, real, run, until

MIB = 1 << 20


def reached(text: str) -> int:
    """How many MiB a guest in the mode `reach` said last that it has."""
    said = [line.removeprefix("has ") for line in text.splitlines() if line.startswith("has ")]
    return int(said[-1]) if said else 0


async def grows_to(directory: Path, guest: str, mib: int) -> None:
    """It gets all but what its program itself takes, and no more."""
    await until(lambda: mib - 2 <= reached(output_of(directory, guest)))
    assert reached(output_of(directory, guest)) < mib


def data_limit(pid: int) -> int:
    line = next(one for one in Path(f"/proc/{pid}/limits").read_text().splitlines() if one.startswith("Max data size"))
    return int(line.split()[3])


@needs_guests
@pytest.mark.parametrize("uid", [None, pytest.param(OTHER_UID, marks=needs_root, id="own")])
def test_a_guest_that_runs_gets_exactly_so_much_more(tmp_path: Path, uid: int | None) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            made = order(tmp_path, "reach-1", "probe", "reach", memory_bytes=16 * MIB, uid=uid)
            other = await client.spawn(order(tmp_path, "other-1", "probe", "reach", memory_bytes=16 * MIB, uid=uid))
            state = await client.spawn(made)
            await grows_to(tmp_path, "reach-1", 16)
            before = data_limit(state.pid)
            for mib in (40, 41, 64):
                await client.set_memory("reach-1", mib * MIB)
                await grows_to(tmp_path, "reach-1", mib)
                assert data_limit(state.pid) == before + (mib - 16) * MIB
            assert (await client.guests())["reach-1"].pid == state.pid
            assert reached(output_of(tmp_path, "other-1")) < 16
            assert data_limit(other.pid) == before
            with pytest.raises(GuestFailed, match="not less"):
                await client.set_memory("reach-1", 16 * MIB)
            await client.kill("reach-1")
            with pytest.raises(GuestFailed):
                await client.set_memory("reach-1", 80 * MIB)

    asyncio.run(scenario())


@needs_guests
@needs_root
def test_a_successor_of_a_killed_supervisor_can_do_it_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = await connect(tmp_path)
        await first.spawn(order(tmp_path, "reach-1", "probe", "reach", memory_bytes=16 * MIB))
        await first.wait_ready("reach-1", None, deadline_s=DEADLINE_S)  # a successor takes over what serves
        await first.set_memory("reach-1", 24 * MIB)
        os.kill(first.supervisor_pid, signal.SIGKILL)
        with pytest.raises(RuntimeUnavailable):
            async for _ in first.exits():
                pass
        await first.close()
        async with supervisor(tmp_path) as client:
            await client.set_memory("reach-1", 32 * MIB)
            await grows_to(tmp_path, "reach-1", 32)

    asyncio.run(scenario())


def test_what_is_written_governs_every_memory_of_every_instance() -> None:
    assert _in_a_process(_check_memory_limit) == 0
    assert _in_a_process(_check_self_test) == 0


def test_a_store_that_is_laid_out_otherwise_is_left_alone_and_guests_are_started_all_the_same() -> None:
    assert _in_a_process(_check_another_layout) == 0


def _check_memory_limit() -> None:
    assert engine.check_memory_limit()


def _check_self_test() -> None:
    assert zygote.self_test()[1]


def _check_another_layout() -> None:
    # Looking at too little of it is what a moved field looks like.
    setattr(engine, "_STORE_WORDS", 2)  # noqa: B010 - it is Final for everybody else
    component, resizable = zygote.self_test()
    assert component
    assert not resizable


async def shown(cloud: Cloud) -> ProcessStatus:
    status = await cloud.status("reach")
    assert status is not None
    return status


@needs_guests
def test_memory_is_resized_by_a_call_under_the_running_guest_with_its_control_group() -> None:
    async def work(tmp: Path) -> None:
        (probe,) = put(tmp / "state", guests.path("probe").read_bytes())
        spec = ProcessSpec("reach", probe, args=("reach",), memory_bytes=16 * MIB, cores_milli=100)
        larger = changed(spec, memory_bytes=200 * MIB)
        async with real(tmp) as cloud:
            await cloud.ask(Start(spec))
            before = await shown(cloud)
            [guest] = await cloud.agent.processes.known_guests()
            outcome = await cloud.ask(Resize(larger, expect=spec_digest(spec)))
            assert (outcome.changed, outcome.detail) == (True, "")
            output = tmp / "state" / "output" / "reach" / guest
            await until(lambda: reached(output.read_text()) >= 198)
            after = await shown(cloud)
            assert (after.pid, after.spec) == (before.pid, larger)
            # With 96 MiB for the engine the first limit of the group would have ended it by now.
            if IS_ROOT and "memory" in Groups.open("lowcloud-test").controllers:
                limit = next(
                    (Path(directory) / name).read_text()
                    for directory in group_of(before.pid)
                    for name in ("memory.max", "memory.limit_in_bytes")
                    if (Path(directory) / name).exists()
                )
                assert int(limit) == 296 * MIB

    run(work)


def group_of(pid: int | None) -> list[str]:
    """Directories of the control groups that a process is in."""
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        found += [f"/sys/fs/cgroup/{name}{path}" for name in names.split(",")] + [f"/sys/fs/cgroup{path}"]
    return found
