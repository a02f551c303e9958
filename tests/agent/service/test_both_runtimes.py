"""The same life of a process over the runtime in memory and over the real one: the double may be trusted where it is
used.

The programs differ (a real guest does what its code says, one in memory what its environment says), the claims do not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.api.answers import Reason
from agent.api.calls import Replace, Restart, Start, Stop
from agent.api.facts import ProcessState
from agent.api.journal import Event
from agent.api.processes import ProcessSpec, Ready, Update, spec_digest
from agent.client.errors import CallRefused
from agent.runtime import GuestState
from agent.supervisor.client import connect
from cas.digest import Digest
from tests.agent.service.daemon import READY_S, needs_guests
from tests.agent.service.support import Cloud, MemoryRuntime, changed, host, put, run, until, wasm, web
from tests.ports import free_port
from tools import guests

BOTH = pytest.mark.parametrize("kind", ["memory", pytest.param("real", marks=needs_guests)])


class World:
    """A host over one of the two runtimes, and the programs that behave as each test needs."""

    def __init__(self, tmp: Path, kind: str) -> None:
        self.state_dir = tmp / "state"
        self.kind = kind
        self.memory = MemoryRuntime()
        self.port = free_port()
        names = ["web-1", "web-2"] if kind == "real" else []
        files = [guests.path(name).read_bytes() for name in names] or [wasm("one"), wasm("two")]
        self.one, self.two, self.waits, self.wrong = put(self.state_dir, *files, wasm(), b"nonsense")

    @asynccontextmanager
    async def agent(self, *, end_guests: bool = False) -> AsyncIterator[Cloud]:
        real = (lambda: connect(self.state_dir)) if self.kind == "real" else None
        async with host(self.state_dir, self.memory, connect=real) as cloud:
            try:
                yield cloud
            finally:
                if end_guests:
                    await cloud.client.shut_down(guests=True)
                    await cloud.agent.ended.wait()

    def good(self, binary: Digest, **fields: Any) -> ProcessSpec:
        return web(binary, port=self.port, ready=Ready("http", path="/", within_s=READY_S), **fields)

    def silent(self) -> ProcessSpec:
        """Runs and never listens."""
        ready = Ready("http", within_s=0.3)
        return changed(self.good(self.waits), ready=ready, env={"ACT": "silent"})

    def failing(self) -> ProcessSpec:
        """Ends at once, with code 1."""
        return changed(self.good(self.one), config={"/etc/web.toml": self.wrong}, env={"ACT": "exit:1"})


async def known(cloud: Cloud) -> dict[str, GuestState]:
    return await cloud.agent.processes.known_guests()


async def one_guest(cloud: Cloud, spec: ProcessSpec) -> GuestState | None:
    """The one guest, once it serves this specification and nothing else is left."""
    status = await cloud.status(spec.name)
    states = list((await known(cloud)).values())
    if status is None or status.state is not ProcessState.RUNNING or status.spec_digest != spec_digest(spec):
        return None
    return states[0] if len(states) == 1 and states[0].pid == status.pid and states[0].serving else None


@BOTH
def test_a_process_starts_swaps_restarts_and_stops(kind: str) -> None:
    async def work(tmp: Path) -> None:
        world = World(tmp, kind)
        first, second = world.good(world.one), world.good(world.two)
        async with world.agent(end_guests=True) as cloud:
            await cloud.ask(Start(first))
            before = await until(lambda: one_guest(cloud, first))
            await cloud.ask(Replace(second, expect=spec_digest(first)))
            after = await until(lambda: one_guest(cloud, second))
            assert before.guest != after.guest
            await cloud.ask(Restart("web", expect=spec_digest(second), nonce="12345678"))
            assert (await until(lambda: one_guest(cloud, second))).guest != after.guest
            await cloud.ask(Stop("web", expect=spec_digest(second)))
            assert await known(cloud) == {}
            events = [e.event for e in await cloud.events(Event.SERVING, Event.DRAINED, Event.ENDED)]
            swap = [Event.SERVING, Event.DRAINED, Event.ENDED]
            assert events == [Event.SERVING, *swap, *swap, Event.DRAINED, Event.ENDED]

    run(work)


@BOTH
def test_a_version_that_fails_leaves_the_old_one_serving(kind: str) -> None:
    async def work(tmp: Path) -> None:
        world = World(tmp, kind)
        first = world.good(world.one)
        async with world.agent(end_guests=True) as cloud:
            await cloud.ask(Start(first))
            before = await until(lambda: one_guest(cloud, first))
            for wrong in (world.silent(), world.failing()):
                with pytest.raises(CallRefused) as caught:
                    await cloud.ask(Replace(wrong, expect=spec_digest(first)))
                assert caught.value.refusal.reason is Reason.NOT_READY
                assert (await until(lambda: one_guest(cloud, first))).guest == before.guest
            assert [e.guest for e in await cloud.events(Event.SERVING)] == [before.guest]

    run(work)


@BOTH
def test_a_hand_over_ends_the_old_one_first_and_brings_it_back_where_the_new_one_fails(kind: str) -> None:
    async def work(tmp: Path) -> None:
        world = World(tmp, kind)
        rule = Update(order="stop-first", drain_s=0.5)
        first, second = world.good(world.one, update=rule), world.good(world.two, update=rule)
        async with world.agent(end_guests=True) as cloud:
            await cloud.ask(Start(first))
            await cloud.ask(Replace(second, expect=spec_digest(first)))
            await until(lambda: one_guest(cloud, second))
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Replace(changed(world.failing(), update=rule), expect=spec_digest(second)))
            assert "runs again" in caught.value.refusal.message
            await until(lambda: one_guest(cloud, second))

    run(work)


@BOTH
def test_guests_outlive_the_agent_and_are_found_again(kind: str) -> None:
    async def work(tmp: Path) -> None:
        world = World(tmp, kind)
        first = world.good(world.one)
        async with world.agent() as cloud:
            await cloud.ask(Start(first))
            before = await until(lambda: one_guest(cloud, first))
        async with world.agent(end_guests=True) as cloud:
            assert (await until(lambda: one_guest(cloud, first))).pid == before.pid

    run(work)
