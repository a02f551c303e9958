"""How one process stands: its durable record, and what this agent has seen of its guest since it started.

Shared by what acts on a process (`lifecycle`), what keeps it running (`supervision`) and what lets old guests go
(`retirement`). All of them run in one event loop, and the record is changed by `save` only: one change after the other,
each on disk before it is seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from msgspec import UNSET, UnsetType

from agent.api.facts import ProcessState, ProcessStatus, Troubles
from agent.daemon import crash_loop
from agent.daemon.backoff import GOOD_RUN_S
from agent.daemon.state import Record, State
from agent.runtime import GuestId, GuestState


class Standing:
    """One process, as it is known now."""

    def __init__(self, record: Record, state: State, clock: Callable[[], float]) -> None:
        self.record = record
        self.running: GuestState | None = None
        """The guest of `record.current`, as long as it lives."""
        self.serving = False
        """That guest has been proven ready and receives the connections."""
        self.ended = asyncio.Event()
        """Set when the running guest ended by itself."""
        self.restart_due = False
        """The last guest of `current` ended by itself: its next start counts as a restart."""
        self.settled = False
        """Record and guests have been brought together since the last time they may have differed."""
        self.remark = ""
        """What `status` says of a guest that runs: why it is not the first one."""
        self._state = state
        self._clock = clock
        self._saving = asyncio.Lock()
        self._exits: dict[GuestId, GuestState] = {}
        self._phase = ProcessState.STARTING
        self._reason = ""
        self._since = clock()
        self._next_start_unix: float | UnsetType = UNSET

    async def save(self, change: Callable[[Record], Record]) -> None:
        """Change the record; it is durable when this returns."""
        async with self._saving:
            record = change(self.record)
            if record != self.record:
                await asyncio.to_thread(self._state.save, record)
                self.record = record

    def exited(self, state: GuestState) -> None:
        """The supervisor says that a guest ended. It may say so before the guest is known to run, and twice."""
        if state.guest in self.record.guests():
            self._exits[state.guest] = state
            if self.running is not None and self.running.guest == state.guest:
                self.ended.set()

    def exit_of(self, guest: GuestId) -> GuestState | None:
        return self._exits.get(guest)

    def runs(self, state: GuestState, *, serving: bool) -> None:
        """This guest is the one of `current` from now on."""
        known = self.record.guests()
        self._exits = {guest: seen for guest, seen in self._exits.items() if guest in known}
        self.running, self.serving, self.restart_due = state, serving, False
        self.ended.clear()
        if state.guest in self._exits:
            self.ended.set()
        self.show(ProcessState.RUNNING if serving else ProcessState.STARTING)

    def runs_not(self) -> None:
        self.running, self.serving = None, False

    def show(self, phase: ProcessState, reason: str = "", *, since_unix: float | None = None) -> None:
        """What `status` tells."""
        self._phase, self._reason = phase, reason
        self._since = self._clock() if since_unix is None else since_unix
        self._next_start_unix = UNSET

    def show_wait(self, phase: ProcessState, reason: str, wait_s: float) -> None:
        """The same, of a process that is started again after a wait."""
        self.show(phase, reason)
        self._next_start_unix = self._clock() + wait_s

    def status(self) -> ProcessStatus | None:
        """What an operator sees; None where there is nothing to see."""
        version = self.record.current or (self.record.pending.version if self.record.pending else None)
        if version is None:
            return None
        return ProcessStatus(
            process=self.record.process,
            spec=version.spec,
            spec_digest=version.digest,
            state=self._phase,
            pid=self.running.pid if self.running else None,
            since_unix=self._since,
            restarts=self.record.restarts,
            release=version.release,
            plan=version.plan,
            reason=self._reason or self._remark(),
            troubles=self._troubles(),
            next_start_unix=self._next_start_unix,
            given_up=True if self.record.finished is not None and self.record.finished.is_given_up else UNSET,
        )

    def _troubles(self) -> Troubles | UnsetType:
        """None of a guest that has run well for long enough: its end will be the first again."""
        ran_s = self._clock() - self.running.started_unix if self.running and self.serving else 0.0
        return UNSET if ran_s >= GOOD_RUN_S else self.record.troubles

    def _remark(self) -> str:
        watched = self.record.watched
        left_s = watched.until_unix - self._clock() if watched else 0.0
        if watched and left_s > 0:
            return f"on probation for {left_s:.0f} s more"
        return self.remark if self._troubles() is UNSET else crash_loop.told(self.record)


def without_guest(record: Record) -> Record:
    """The record once the guest of `current` has been forgotten."""
    if record.current is None:
        return record
    return msgspec.structs.replace(record, current=msgspec.structs.replace(record.current, guest=None))
