"""Everything at once, by chance: calls, ends of guests, lost links, reboots, agents that end in the middle. In the end
each process runs as exactly one guest of the version that the last successful call asked for, or of one whose outcome
nobody learned."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest

from agent.api.answers import Reason
from agent.api.calls import Call, Replace, Restart, Start, Stop
from agent.api.facts import ProcessState
from agent.api.journal import Event
from agent.api.processes import ProcessSpec, Ready, Update
from agent.client.errors import CallRefused, HostUnreachable
from agent.runtime import RuntimeUnavailable
from cas.digest import Digest
from tests.agent.service.support import ROUNDS, Cloud, MemoryRuntime, host, put, run, spec_digest, until, wasm, web

AGENTS = 4
STEPS = 25
NAMES = ("web", "kv")
ACTS = ["spawn", "ready", "flip", "drain", "kill", "forget"]


class Storm:
    """A host, what it may be running by process (digests; None: nothing), and dice."""

    def __init__(self, seed: int, binaries: list[Digest]) -> None:
        self.dice = random.Random(seed)
        self.runtime = MemoryRuntime()
        self.possible: dict[str, set[Digest | None]] = {name: {None} for name in NAMES}
        self._binaries = binaries
        self._asking: dict[str, asyncio.Task[None]] = {}

    def version(self, name: str) -> ProcessSpec:
        dice = self.dice
        return web(
            dice.choice(self._binaries),
            name=name,
            port=8000 + NAMES.index(name),
            env=dice.choice([{}, {}, {}, {"ACT": "silent"}, {"ACT": "fail"}]),
            ready=Ready("http", within_s=0.05),
            update=Update(
                order=dice.choice(["start-first", "stop-first"]),
                drain_s=0.1,
                probation_s=dice.choice([0.0, 0.0, 0.05]),
            ),
        )

    async def step(self, cloud: Cloud) -> None:
        kind = self.dice.randrange(10)
        if kind < 6:
            name = self.dice.choice(NAMES)
            if name not in self._asking:
                task = self._asking[name] = asyncio.create_task(self._call(cloud, name))
                task.add_done_callback(lambda _: self._asking.pop(name, None))
                if self.dice.random() < 0.7:
                    await task
        elif kind < 8:
            for state in self.dice.sample(self.runtime.alive(), min(1, len(self.runtime.alive()))):
                self.runtime.ends(state.guest, self.dice.randrange(2))
        elif kind == 8:
            self.runtime.links[-1].sever()
        elif self.dice.random() < 0.3:
            self.runtime.lose_everything()
        else:
            await asyncio.sleep(0)

    async def _call(self, cloud: Cloud, name: str) -> None:
        call, after = self._choose(name)
        before = self.possible[name]
        self.possible[name] = before | {after}
        try:
            await cloud.ask(call)
        except CallRefused as error:
            if error.refusal.reason is not Reason.INTERNAL:  # else the supervisor was lost: done or undone, later
                self.possible[name] = before
        except HostUnreachable:
            return
        else:
            self.possible[name] = {after}

    def _choose(self, name: str) -> tuple[Call, Digest | None]:
        current = self.dice.choice(sorted(self.possible[name], key=str))
        spec = self.version(name)
        if current is None:
            return Start(spec), spec_digest(spec)
        kind = self.dice.randrange(4)
        if kind == 0:
            return Stop(name, expect=current), None
        if kind == 1:
            return Restart(name, expect=current, nonce=f"{self.dice.random():.12f}"), current
        return Replace(spec, expect=current), spec_digest(spec)

    async def calm(self) -> None:
        await asyncio.gather(*self._asking.values(), return_exceptions=True)


async def at_rest(cloud: Cloud) -> bool:
    statuses = await cloud.client.processes()
    with suppress(RuntimeUnavailable):
        states = list((await cloud.agent.processes.known_guests()).values())
        running = [s for s in statuses if s.spec.env.get("ACT") is None]
        return (
            all(s.state is ProcessState.RUNNING for s in running)
            and {s.pid for s in running} == {s.pid for s in states if s.serving and s.exit_code is None}
            and len(states) <= len(statuses)
        )
    return False


@pytest.mark.parametrize("seed", range(3 * ROUNDS))
def test_after_any_storm_each_process_runs_once_and_as_it_should(seed: int) -> None:
    async def work(tmp: Path) -> None:
        storm = Storm(seed, put(tmp / "state", wasm("one"), wasm("two")))
        for _ in range(AGENTS):
            async with host(tmp / "state", storm.runtime) as cloud:
                for _ in range(storm.dice.randrange(STEPS)):
                    await storm.step(cloud)
                if storm.dice.random() < 0.5:
                    storm.runtime.stop_at(storm.dice.choice(ACTS))
                    await asyncio.wait([asyncio.create_task(storm.step(cloud))], timeout=0.05)
            await storm.calm()
            storm.runtime.hold.clear()
        async with host(tmp / "state", storm.runtime) as cloud:
            await until(lambda: at_rest(cloud))
            runs = {status.process: status.spec_digest for status in await cloud.client.processes()}
            for name in NAMES:
                assert runs.get(name) in storm.possible[name]
            check_each_guest_served_once(await whole_journal(cloud))

    run(work)


async def whole_journal(cloud: Cloud) -> list[tuple[Event, str]]:
    found: list[tuple[Event, str]] = []
    after = -1
    while page := await cloud.client.journal(after):
        found += [(entry.event, entry.guest) for entry in page]
        after = page[-1].seq
    return found


def check_each_guest_served_once(events: list[tuple[Event, str]]) -> None:
    serving: set[str] = set()
    over: set[str] = set()
    for event, guest in events:
        if event is Event.SERVING:
            assert guest not in serving | over
            serving.add(guest)
        elif event in (Event.ENDED, Event.EXITED):
            serving.discard(guest)
            over.add(guest)
    assert len(serving) <= len(NAMES)
