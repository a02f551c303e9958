"""Keeping a process running between calls: one task that watches the guest of `current` and starts it again.

A guest that ends by itself is started again where its restart rule says so, after a wait that doubles
(`agent.daemon.backoff`). One that cannot be started, or does not become ready, likewise. A host gives up only where the
specification sets a limit (`agent.daemon.crash_loop`). A version on probation (`agent.daemon.probation`) is not started
again when it fails, but the one before it is. The task stands back while a call acts (`pause`), at a point where
nothing is half done, and goes on afterwards (`resume`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET

from agent.api.facts import ProcessState
from agent.api.journal import Event
from agent.api.processes import ProcessSpec
from agent.daemon.backoff import Backoff, starts_again
from agent.daemon.crash_loop import failed, given_up, gives_up, told
from agent.daemon.guests import Guests, new_guest_id
from agent.daemon.probation import gone_back, hands_over, problem_of, stood
from agent.daemon.refusal import Refused
from agent.daemon.retirement import Retirement
from agent.daemon.standing import Standing, without_guest
from agent.daemon.state import Finished, Record, Retiring, Version
from agent.runtime import GuestFailed, GuestState, RuntimeUnavailable
from cas.digest import short

RETRY_S: Final = 1.0
"""Between attempts while the supervisor cannot be reached or the disk refuses."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Paused(Exception):
    """A call wants to act: supervision is to stand back."""


class Supervision:
    """The task of one process. `settle` brings record and guests together (see `agent.daemon.recovery`)."""

    def __init__(
        self,
        standing: Standing,
        guests: Guests,
        retirement: Retirement,
        settle: Callable[[], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        troubles = standing.record.troubles
        self.backoff = Backoff(0 if troubles is UNSET else troubles.starts)
        self._standing = standing
        self._guests = guests
        self._retirement = retirement
        self._settle = settle
        self._sleep = sleep
        self._pause = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._verdict: asyncio.Future[str] | None = None

    def resume(self) -> None:
        """Start, or go on after a pause."""
        if self._task is None or self._task.done():
            self._pause.clear()
            self._task = asyncio.get_running_loop().create_task(self._supervise())

    async def pause(self) -> None:
        """Stand back; returns when the task has come to rest."""
        self._pause.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def close(self) -> None:
        """Stop at once; the guests stay as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- probation ---------------------------------------------------------------------------------------------------

    async def begin_probation(self) -> asyncio.Future[str] | None:
        """A version has just taken over, so whatever probation there was is over without a verdict. Where the new one
        is on probation: what was wrong with it, once that is known; empty where nothing was."""
        self.end_probation("")
        current, watched = self._standing.record.current, self._standing.record.watched
        if current is None or watched is None:
            return None
        self._verdict = asyncio.get_running_loop().create_future()
        await self._guests.note(Event.PROBATION, current, detail=f"begins, {current.spec.update.watched_s:g} s")
        return self._verdict

    def end_probation(self, problem: str) -> None:
        """Tell whoever waits."""
        verdict, self._verdict = self._verdict, None
        if verdict is not None and not verdict.done():
            verdict.set_result(problem)

    async def go_back(self, problem: str) -> None:
        """`current` has failed its probation: make the version from before the current one. It is started by the next
        step. Raises RuntimeUnavailable."""
        failed, watched = self._standing.record.current, self._standing.record.watched
        if failed is None or watched is None:
            return
        if failed.guest is not None and hands_over(failed.spec, watched.was.spec):
            await self._guests.drain(failed, deadline_s=failed.spec.update.drain_s, hands_over=True)
            await self._guests.end(failed, detail="it failed its probation")
        await self._standing.save(lambda record: gone_back(record, now_unix=self._guests.clock()))
        self._standing.runs_not()
        self._standing.restart_due = False
        self.backoff.reset()
        self._standing.show(ProcessState.STARTING)
        self._standing.remark = f"back from {short(failed.digest)}, which failed its probation: {problem}"
        detail = f"failed, back to {short(watched.was.digest)}: {problem}"
        await self._guests.note(Event.PROBATION, failed, detail=detail)
        self.end_probation(problem)

    async def _watch(self) -> None:
        current, running = self._standing.record.current, self._standing.running
        if current is None or running is None:
            return
        problem = await self._or_pause(problem_of(self._standing, self._guests))
        if problem:
            ended = self._standing.exit_of(running.guest)
            if ended is not None:
                await self._guests.note(Event.EXITED, current, pid=ended.pid, detail=how_it_ended(ended))
            await self.go_back(problem)
            return
        await self._standing.save(stood)
        await self._guests.note(Event.PROBATION, current, detail="stood", ms=current.spec.update.watched_s * 1000)
        self.end_probation("")

    # --- starting `current` ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start a guest of `current`. Raises GuestFailed, Refused, RuntimeUnavailable."""
        before = self._standing.record.current
        if before is None:
            return
        version = msgspec.structs.replace(before, guest=new_guest_id(before.spec.name))
        order = await self._guests.builder.order(version)
        counted, self._standing.restart_due = self._standing.restart_due, False
        await self._standing.save(lambda record: restarted(record, version, self._guests.clock(), counted=counted))
        try:
            state = await self._guests.spawn(version, order)
        except GuestFailed:
            await self._drop(version)
            raise
        self._standing.runs(state, serving=False)

    async def serve(self, *, pausable: bool) -> None:
        """Wait until the guest of `current` is ready, and make it serve. Raises GuestFailed, RuntimeUnavailable, and
        Paused if it is `pausable`."""
        current, state = self._standing.record.current, self._standing.running
        if current is None or state is None:
            return
        try:
            ready = self._guests.wait_ready(current)
            await (self._or_pause(ready) if pausable else ready)
            if current.spec.listen:
                await self._guests.flip(current)
        except GuestFailed as error:
            if not ran_to_its_end(current.spec, error.state):
                self._standing.restart_due = error.state is not None and error.state.exit_code is not None
                await self._drop(current)
                raise
            self._standing.exited(error.state or state)
        await self._guests.note(Event.SERVING, current, pid=state.pid)
        self._standing.runs(state, serving=True)
        self._retirement.begin()

    async def finish(self, state: GuestState) -> None:
        """The guest of `current` ended by itself, and its rule leaves it so."""
        current = self._standing.record.current
        if current is None:
            return
        finished = Finished(exit_code=code_of(state), reason=state.exit_reason, at_unix=self._guests.clock())
        await self._standing.save(lambda record: msgspec.structs.replace(record, finished=finished))
        await self._guests.note(Event.EXITED, current, pid=state.pid, detail=how_it_ended(state))
        self._standing.runs_not()
        self._standing.show(ProcessState.EXITED, how_it_ended(state))
        await self._guests.discard(current)

    async def _drop(self, version: Version) -> None:
        """End a guest of `current` that never served."""
        self._standing.runs_not()
        await self._guests.discard(version)
        await self._standing.save(without_guest)

    # --- the task ----------------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while not self._pause.is_set():
            try:
                if not self._standing.settled:
                    await self._settle()
                if self._standing.record.current is None or self._standing.record.finished is not None:
                    return
                await self._step()
            except Paused:
                return
            except (RuntimeUnavailable, OSError) as error:
                await self._trouble(str(error))
            except Exception as error:
                _log.exception("supervising %s", self._standing.record.process)
                await self._trouble(f"internal error: {error}")

    async def _step(self) -> None:
        if self._standing.running is None:
            await self._start_or_wait()
        elif not self._standing.serving:
            await self._serve_or_wait()
        elif self._standing.record.watched is not None:
            self._retirement.begin()
            await self._watch()
        else:
            self._retirement.begin()
            await self._or_pause(self._standing.ended.wait())
            await self._after_exit(self._standing.running)

    async def _start_or_wait(self) -> None:
        try:
            await self.start()
        except GuestFailed as error:
            await self._wait_after_failure(str(error))
        except Refused as error:  # something is missing on this host, for which no version is to blame
            await self._wait_after_failure(error.refusal.message, to_blame=False)

    async def _serve_or_wait(self) -> None:
        try:
            await self.serve(pausable=True)
        except GuestFailed as error:
            await self._wait_after_failure(str(error))

    async def _after_exit(self, was: GuestState) -> None:
        current, state = self._standing.record.current, self._standing.exit_of(was.guest)
        if current is None or state is None:
            return
        if not starts_again(current.spec.restart, code_of(state)):
            await self.finish(state)
            return
        ran_s = max(0.0, self._guests.clock() - state.started_unix)
        self._standing.remark = f"{how_it_ended(state)}, after {ran_s:.1f} s"
        if await self.count_failure(self._standing.remark, ran_s=ran_s, exit_code=code_of(state)):
            return
        self._standing.runs_not()
        self._standing.restart_due = True
        wait_s = self.backoff.wait_s(ran_s)
        self._standing.show_wait(ProcessState.BACKOFF, told(self._standing.record) or self._standing.remark, wait_s)
        await self._guests.note(Event.EXITED, current, pid=state.pid, detail=how_it_ended(state))
        await self._or_pause(self._sleep(wait_s))

    async def count_failure(self, last: str, *, ran_s: float = 0.0, exit_code: int | None = None) -> bool:
        """A start of `current` came to nothing. Is it given up with that? Raises RuntimeUnavailable."""
        now_unix, boot = self._guests.clock(), self._guests.boot

        def counted(record: Record) -> Record:
            record = failed(record, last, ran_s=ran_s, exit_code=exit_code, now_unix=now_unix, boot=boot)
            return given_up(record) if gives_up(record) else record

        await self._standing.save(counted)
        record = self._standing.record
        if record.current is None or record.finished is None:
            return False
        how = told(record)
        self._standing.runs_not()
        self._standing.remark = ""
        self._standing.show(ProcessState.FAILED, how)
        _log.warning("%s: %s", record.process, how)
        event = Event.EXITED if exit_code is not None else Event.ENDED
        await self._guests.note(event, record.current, detail=how)
        if record.current.guest is not None:
            await self._guests.discard(record.current)
        return True

    async def _wait_after_failure(self, reason: str, *, to_blame: bool = True) -> None:
        if self._standing.record.watched is not None:
            await self.go_back(reason)
            return
        if to_blame and await self.count_failure(reason):
            return
        wait_s = self.backoff.wait_s(0.0)
        how = told(self._standing.record) if to_blame else reason
        self._standing.show_wait(ProcessState.FAILED, how, wait_s)
        await self._or_pause(self._sleep(wait_s))

    async def _trouble(self, reason: str) -> None:
        self._standing.settled = False
        self._standing.show(ProcessState.FAILED, reason)
        pause = asyncio.ensure_future(self._pause.wait())
        await asyncio.wait({pause, asyncio.ensure_future(self._sleep(RETRY_S))}, return_when=asyncio.FIRST_COMPLETED)
        pause.cancel()

    async def _or_pause(self, work: Awaitable[T]) -> T:
        """Do this wait, or leave it when a call wants to act. Raises Paused."""
        waiting, pause = asyncio.ensure_future(work), asyncio.ensure_future(self._pause.wait())
        try:
            await asyncio.wait({waiting, pause}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            raise Paused
        finally:
            waiting.cancel()
            pause.cancel()
            await asyncio.gather(waiting, pause, return_exceptions=True)


def restarted(record: Record, version: Version, now_unix: float, *, counted: bool) -> Record:
    """The record once another guest of `current` is to be started; `counted` where the last one ended by itself."""
    before = record.current
    gone: tuple[Retiring, ...] = ()
    if before is not None and before.guest is not None:
        gone = (Retiring(version=before, until_unix=now_unix),)
    return msgspec.structs.replace(
        record,
        current=version,
        retiring=(*record.retiring, *gone),
        finished=None,
        restarts=record.restarts + (1 if counted else 0),
    )


def ran_to_its_end(spec: ProcessSpec, state: GuestState | None) -> bool:
    """Did a guest that is meant to end do so, and well?"""
    return state is not None and state.exit_code == 0 and not spec.listen and spec.restart != "always"


def code_of(state: GuestState) -> int:
    return state.exit_code if state.exit_code is not None else 0


def how_it_ended(state: GuestState) -> str:
    reason = f": {state.exit_reason}" if state.exit_reason else ""
    return f"it ended with exit code {code_of(state)}{reason}"
