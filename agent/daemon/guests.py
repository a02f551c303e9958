"""What is done with one guest: started, proven ready, made to serve, drained, ended, forgotten. Each act is journaled.

This is the agent's only user of the `Runtime`. Every wait is bounded: a supervisor that does not answer in time counts
as one that cannot be reached. Which of these acts happen, and when, is `agent.daemon.lifecycle`'s decision.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, TypeVar, Unpack

import msgspec
from msgspec import UNSET

from agent.api.journal import Event, JournalEntry
from agent.daemon.checking import CheckBuilder, Checking
from agent.daemon.journal import Facts, Journal, JournalUnwritable
from agent.daemon.state import Version
from agent.runtime import GuestFailed, GuestId, GuestOrder, GuestState, Runtime, RuntimeUnavailable
from agent.sandbox.cpusets import Claim

READY_WITHIN_S: Final = 30.0
"""How long a process without a readiness rule may take until its listeners are open."""
SUPERVISOR_ANSWERS_S: Final = 30.0
WAIT_SLACK_S: Final = 5.0
"""Given to the supervisor beyond a deadline that it keeps itself."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Builder(CheckBuilder, Protocol):
    """Makes what a guest needs on disk."""

    async def order(self, version: Version) -> GuestOrder:
        """Stage whatever is missing, write the guest's files, and say how to run it. Raises Refused."""
        ...

    async def rewrite(self, version: Version) -> None:
        """Put the version's configuration files under its running guest, each in one step. Raises Refused."""
        ...

    async def resized(self, version: Version) -> None:
        """Give the guest that runs the share of the processors, and the bound of memory, that its specification says
        now. Raises OSError."""
        ...

    async def placed(self, claims: Mapping[str, Claim]) -> None:
        """Give these processes, as far as they run, their CPUs, and close those that are theirs alone to others."""
        ...

    async def clear(self, process: str, guest: GuestId) -> None:
        """Remove the files of a guest of the process. Its output stays for a while."""
        ...

    def scratch(self, guest: GuestId) -> Path:
        """Where the guest's scratch space is."""
        ...

    async def output_tail(self, version: Version) -> str:
        """The last lines that the guest has printed."""
        ...


class Guests:
    """The guests of a host, as things to act on. `runtime` is set by whoever keeps the connection."""

    def __init__(
        self,
        builder: Builder,
        journal: Journal,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boot: str = "",
    ) -> None:
        """`boot` names this run of the machine."""
        self.builder = builder
        self.boot = boot
        self.clock = clock
        self.monotonic = monotonic
        self.runtime: Runtime | None = None
        self._journal = journal
        self._checking = Checking(builder, self._check, self._discard_check, clock=monotonic)

    # --- acts --------------------------------------------------------------------------------------------------------

    async def spawn(self, version: Version, order: GuestOrder) -> GuestState:
        """Raises GuestFailed, EndpointTaken, RuntimeUnavailable."""
        started = self.monotonic()
        state = await self._bounded(self._runtime.spawn(order), SUPERVISOR_ANSWERS_S)
        await self.note(Event.SPAWNED, version, pid=state.pid, ms=self._ms_since(started))
        return state

    async def wait_ready(self, version: Version) -> None:
        """Raises GuestFailed with the reason, RuntimeUnavailable."""
        ready, guest = version.spec.ready, guest_of(version)
        deadline_s = ready.within_s if ready else READY_WITHIN_S
        until = self.monotonic() + deadline_s
        probe = msgspec.structs.replace(ready, run=UNSET) if ready and ready.tcp else None
        wait = self._runtime.wait_ready(guest, probe, deadline_s=deadline_s)
        await self._bounded(wait, deadline_s + WAIT_SLACK_S)
        if ready is not None and ready.command:
            await self._checking.wait_until_passed(version, until=until)

    async def flip(self, version: Version) -> None:
        """Make it serve. Raises GuestFailed, RuntimeUnavailable."""
        await self._bounded(self._runtime.flip(guest_of(version)), SUPERVISOR_ANSWERS_S)

    async def drain(self, version: Version, *, deadline_s: float, hands_over: bool = False) -> None:
        """Let a guest finish its connections, at most so long. `hands_over`: new ones wait for the next guest. Raises
        RuntimeUnavailable."""
        guest = guest_of(version)
        if not await self.alive(guest):
            return
        started = self.monotonic()
        drain = self._runtime.drain(guest, deadline_s=deadline_s, hands_over=hands_over)
        finished = await self._bounded(drain, deadline_s + SUPERVISOR_ANSWERS_S)
        if guest in self._journal.serving:
            detail = "" if finished else f"connections were open after {deadline_s:.1f} s and are cut"
            await self.note(Event.DRAINED, version, ms=self._ms_since(started), detail=detail)

    async def end(self, version: Version, *, detail: str = "") -> None:
        """End a guest now. Raises RuntimeUnavailable."""
        guest = guest_of(version)
        state = (await self.known()).get(guest)
        if state is not None and state.exit_code is None:
            state = await self.kill(guest)
        if guest in self._journal.serving:
            await self.note(Event.ENDED, version, pid=state.pid if state else None, detail=detail)

    async def forget(self, version: Version) -> None:
        """Drop everything that is kept of a guest that has ended. Raises RuntimeUnavailable."""
        guest = guest_of(version)
        if guest in await self.known():
            await self.forget_guest(guest)
        await self.builder.clear(version.spec.name, guest)

    async def discard(self, version: Version) -> None:
        """End and forget. Raises RuntimeUnavailable."""
        await self.end(version)
        await self.forget(version)

    async def kill(self, guest: GuestId) -> GuestState:
        """End a guest now, whosever it is."""
        return await self._bounded(self._runtime.kill(guest), SUPERVISOR_ANSWERS_S)

    async def forget_guest(self, guest: GuestId) -> None:
        await self._bounded(self._runtime.forget(guest), SUPERVISOR_ANSWERS_S)

    async def set_cpus(self, guest: GuestId, cpus: tuple[int, ...]) -> None:
        await self._bounded(self._runtime.set_cpus(guest, cpus), SUPERVISOR_ANSWERS_S)

    async def _check(self, order: GuestOrder, within_s: float) -> GuestState:
        return await self._bounded(self._runtime.check(order, deadline_s=within_s), within_s + SUPERVISOR_ANSWERS_S)

    async def _discard_check(self, process: str, check: GuestId) -> None:
        """End a check, should it still run, and remove its files. What cannot be reached now is swept up later."""
        with suppress(GuestFailed, RuntimeUnavailable):
            await self.kill(check)
        await self.builder.clear(process, check)

    async def set_memory(self, version: Version) -> None:
        """Give its guest, which runs, the memory that the specification says. Raises GuestFailed, RuntimeUnavailable,
        and OSError for its control group."""
        await self.builder.resized(version)
        set_memory = self._runtime.set_memory(guest_of(version), version.spec.memory_bytes)
        await self._bounded(set_memory, SUPERVISOR_ANSWERS_S)

    # --- facts -------------------------------------------------------------------------------------------------------

    async def known(self) -> dict[GuestId, GuestState]:
        """Every guest that the supervisor knows. Raises RuntimeUnavailable."""
        return await self._bounded(self._runtime.guests(), SUPERVISOR_ANSWERS_S)

    async def alive(self, guest: GuestId) -> bool:
        state = (await self.known()).get(guest)
        return state is not None and state.exit_code is None

    def has_served(self, version: Version) -> bool:
        """Does the journal say that this guest serves, and not yet that it ended?"""
        return version.guest in self._journal.serving

    def serving(self) -> set[GuestId]:
        """Of which guests does the journal say that they serve?"""
        return set(self._journal.serving)

    # --- the journal -------------------------------------------------------------------------------------------------

    async def announce(self, event: Event, version: Version, **facts: Unpack[Facts]) -> JournalEntry:
        """Write down what is about to be done. Raises JournalUnwritable: then it must not be done."""
        entry: Facts = {
            "process": version.spec.name,
            "spec": version.digest,
            "binary": version.spec.binary,
            "config": version.spec.config,
            "secret": version.spec.secret,
            "release": version.release,
            "plan": version.plan,
            "call": version.call,
            "by": version.by,
            "guest": version.guest or "",
        }
        entry.update(facts)
        return await asyncio.to_thread(lambda: self._journal.append(event, **entry))

    async def note(self, event: Event, version: Version, **facts: Unpack[Facts]) -> None:
        """Write down what has been done. It cannot be taken back, so a journal that fails is only reported."""
        try:
            await self.announce(event, version, **facts)
        except JournalUnwritable:
            _log.exception("%s of %s is not in the journal", event.value, version.guest)

    async def note_stray(self, guest: GuestId, detail: str) -> None:
        """Write down that a guest which no record knows has ended, if it served."""
        served = self._journal.serving.get(guest)
        if served is None:
            return
        facts: Facts = {
            "process": served.process,
            "spec": served.spec,
            "binary": served.binary,
            "config": served.config,
            "secret": served.secret,
            "release": served.release,
            "plan": served.plan,
            "guest": guest,
            "detail": detail,
        }
        try:
            await asyncio.to_thread(lambda: self._journal.append(Event.ENDED, **facts))
        except JournalUnwritable:
            _log.exception("the end of %s is not in the journal", guest)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _runtime(self) -> Runtime:
        if self.runtime is None:
            raise RuntimeUnavailable("the agent has no connection to this host's supervisor and is making a new one")
        return self.runtime

    async def _bounded(self, act: Awaitable[T], limit_s: float) -> T:
        try:
            async with asyncio.timeout(limit_s):
                return await act
        except TimeoutError as error:
            raise RuntimeUnavailable(f"this host's supervisor did not answer within {limit_s:.0f} s") from error

    def _ms_since(self, started: float) -> float:
        return round((self.monotonic() - started) * 1000, 3)


def guest_of(version: Version) -> GuestId:
    if version.guest is None:
        raise ValueError(f"no guest was ever started for this version of {version.spec.name}")
    return version.guest


def new_guest_id(process: str) -> GuestId:
    """A name that this host never used: sorted by time, told apart by chance."""
    return f"{process}-{time.time_ns():016x}-{os.urandom(4).hex()}"
