"""One process of this host through its life: start, take-over, stop, and what happens to it between calls.

**Who does what.** Each process has one `Lifecycle`. Calls on it come one at a time: while one decides which guest
serves, another is refused as BUSY, except the repetition of the same call, which joins it. Once a new version serves,
the next call may come although the old guest still drains (a rollback must not wait for slow connections). Between
calls `agent.daemon.supervision` keeps `current` running.

**Start-first** (the rule): the new guest starts dark beside the old one, is proven ready, then flipped to; the old one
drains and ends. Not ready: the new one ends and the old one never noticed. If the old one ends by itself meanwhile, the
attempt goes on, and should it fail the old version is started again.

**Hand-over** (`stop-first`, and wherever a volume is involved): the old one drains and ends, its listeners keep their
queue, the new one starts. Not ready: the old version is started again before the call returns.

**Probation** (`agent.daemon.probation`): a call whose version is watched returns when that is over.

**Reload.** Where the program rereads its files, new ones are put under its guest; a crash between record and files is
made good when the guest is adopted.

**Crashes.** Every step is in the `Record` before it is done; `_settle` applies what `agent.daemon.recovery` decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from agent.api.answers import Outcome, Reason
from agent.api.facts import ProcessState, ProcessStatus
from agent.api.journal import Event
from agent.api.processes import ProcessSpec
from agent.daemon.backoff import starts_again
from agent.daemon.capacity import in_its_own_way
from agent.daemon.checking import CheckFailed
from agent.daemon.crash_loop import since_boot, taken_up, told
from agent.daemon.guests import Guests, new_guest_id
from agent.daemon.probation import ended_well, hands_over, probation_of
from agent.daemon.recovery import recover, taken_over
from agent.daemon.refusal import Refused
from agent.daemon.retirement import Retirement
from agent.daemon.standing import Standing
from agent.daemon.state import Pending, Record, State, Version
from agent.daemon.supervision import Supervision, code_of, how_it_ended, ran_to_its_end
from agent.runtime import EndpointTaken, GuestFailed, GuestState, RuntimeUnavailable
from cas.digest import Digest

_log = logging.getLogger(__name__)


class Lifecycle:
    """One process. Use from one event loop; `resume` sets it going."""

    def __init__(
        self,
        record: Record,
        state: State,
        guests: Guests,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.standing = Standing(record, state, guests.clock)
        self._guests = guests
        self._retirement = Retirement(self.standing, guests)
        self._supervision = Supervision(self.standing, guests, self._retirement, self._settle, sleep)
        self._calls: dict[Digest, asyncio.Task[Outcome]] = {}
        self._turn: Digest | None = None
        """The call that is deciding which guest serves."""

    @property
    def record(self) -> Record:
        return self.standing.record

    @property
    def gone(self) -> bool:
        """Nothing is left of it, and no call is about to change that."""
        return self._turn is None and self.record.empty

    @property
    def deciding(self) -> bool:
        """Is a call about to change what is current?"""
        return self._turn is not None

    @property
    def serves(self) -> bool:
        """Does a guest of the current version run that was proven ready?"""
        return self.standing.running is not None and self.standing.serving

    def is_half_done(self, version: Version) -> bool:
        """Is it for the next look at the guests to finish or to undo the call that this version came with?"""
        record = self.record
        begun = [record.current, record.pending.version if record.pending else None]
        return record.stopping or any(one is not None and one.call == version.call for one in begun)

    def status(self) -> ProcessStatus | None:
        return self.standing.status()

    def exited(self, state: GuestState) -> None:
        self.standing.exited(state)

    def resume(self) -> None:
        """Supervise. Safe to repeat."""
        if self._turn is None:
            self._supervision.resume()

    def unsettle(self) -> None:
        """The connection to the supervisor is a new one: look at the guests again."""
        self.standing.settled = False
        self.standing.ended.set()  # wakes the supervision, which finds no exit and settles first

    async def close(self) -> None:
        """Stop deciding; the guests stay as they are."""
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._supervision.close()
        await self._retirement.cancel()

    # --- calls -------------------------------------------------------------------------------------------------------

    async def carry_out(self, call: Digest, act: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        """Carry out a call; its repetition while it is under way gets the same outcome. It is finished even where the
        caller has gone. Raises Refused."""
        task = self._calls.get(call)
        if task is None:
            if self._turn is not None:
                raise Refused(
                    Reason.BUSY,
                    f"another call on {self.record.process} is under way",
                    hint="wait for it to end, then look at what runs before asking again",
                )
            self._turn = call
            task = asyncio.get_running_loop().create_task(self._take_turn(call, act))
            self._calls[call] = task
            task.add_done_callback(lambda _: self._calls.pop(call, None))
        return await asyncio.shield(task)

    async def _take_turn(self, call: Digest, act: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        try:
            await self._supervision.pause()
            if not self.standing.settled:
                await self._settle()
            return await act()
        except RuntimeUnavailable as error:
            self.standing.settled = False
            raise _unreachable(error) from error
        except Refused:
            raise
        except BaseException:
            # A full disk, or a defect: what was half done is finished or undone like after a crash.
            self.standing.settled = False
            raise
        finally:
            if self._turn == call:
                self._end_turn()

    def _end_turn(self) -> None:
        self._turn = None
        self._supervision.resume()

    async def take_over(self, version: Version, *, nonce: str = "") -> dict[str, float]:
        """Make `version` the current one, by its rule. Returns milliseconds by step, once the old one has ended.
        Raises Refused: then the version from before runs, as well as it did. Raises RuntimeUnavailable."""
        version = msgspec.structs.replace(version, guest=new_guest_id(self.record.process))
        order = await self._guests.builder.order(version)
        old = self.record.current
        hand_over = old is not None and hands_over(old.spec, version.spec)
        steps: dict[str, float] = {}
        await self.standing.save(lambda record: msgspec.structs.replace(record, pending=Pending(version, nonce=nonce)))
        try:
            if old is not None and hand_over:
                await self._hand_over(old, steps)
            with self._timed("spawn", steps):
                state = await self._guests.spawn(version, order)
            with self._timed("ready", steps):
                await self._ready_or_done(version)
            await self.standing.save(_flipping)
            with self._timed("flip", steps):
                if version.spec.listen:
                    await self._guests.flip(version)
        except GuestFailed as error:
            raise await self._undo(version, error, handed_over=hand_over) from error
        await self.standing.save(lambda record: taken_over(record, now_unix=self._guests.clock()))
        await self._guests.note(Event.SERVING, version, pid=state.pid)
        self.standing.runs(state, serving=True)
        self._supervision.backoff.reset()
        self.standing.remark = ""
        verdict = await self._supervision.begin_probation()
        self._retirement.begin()
        self._end_turn()
        with self._timed("drain", steps):
            await self._retirement.wait()
        await self._stand_probation(version, verdict, steps)
        return steps

    async def reload(self, version: Version) -> dict[str, float]:
        """Put new configuration files under the running guest. Returns milliseconds by step. Raises Refused where the
        guest fails its probation with them."""
        guest = self.record.current.guest if self.record.current else None
        version = msgspec.structs.replace(version, guest=guest)
        steps: dict[str, float] = {}

        def reloaded(record: Record) -> Record:
            probation = probation_of(record, version, now_unix=self._guests.clock())
            return msgspec.structs.replace(record, current=version, probation=probation)

        await self.standing.save(reloaded)
        with self._timed("reload", steps):
            await self._guests.builder.rewrite(version)
        pid = self.standing.running.pid if self.standing.running else None
        await self._guests.note(Event.SERVING, version, pid=pid, detail="with other configuration files")
        verdict = await self._supervision.begin_probation()
        self._end_turn()
        await self._stand_probation(version, verdict, steps)
        return steps

    async def stop(self) -> dict[str, float]:
        """Drain and end the process, and remove its record. Raises RuntimeUnavailable: then it is ended later."""
        await self.standing.save(lambda record: msgspec.structs.replace(record, stopping=True))
        self._supervision.end_probation("")
        steps: dict[str, float] = {}
        with self._timed("drain", steps):
            await self._finish_stop()
        return steps

    async def resize(self, spec: ProcessSpec, *, release: Digest | None, plan: Digest | None) -> None:
        """Record changed rules and cores, without a new guest."""

        def resized(record: Record) -> Record:
            if record.current is None:
                return record
            finished = record.finished
            if finished and not finished.is_given_up and starts_again(spec.restart, finished.exit_code):
                finished = None
            was = record.current
            current = msgspec.structs.replace(was, spec=spec, release=release or was.release, plan=plan or was.plan)
            return taken_up(msgspec.structs.replace(record, current=current, finished=finished))

        await self.standing.save(resized)

    async def grow(self, spec: ProcessSpec) -> str:
        """Let the guest that runs have as much memory as this says; why it cannot, or nothing. It is done before it is
        announced and recorded, because whether it can be done decides what will be: what a crash leaves behind then is
        a guest with more room than it may count on, until its next start."""
        current = self.record.current
        if current is None or self.standing.running is None or spec.memory_bytes <= current.spec.memory_bytes:
            return ""
        try:
            await self._guests.set_memory(msgspec.structs.replace(current, spec=spec))
        except (GuestFailed, OSError) as error:
            _log.warning("%s gets more memory by a swap: %s", self.record.process, error)
            return str(error)
        return ""

    async def share(self) -> None:
        """Give the guest that runs its share of the processors. Where that fails it has it at its next start."""
        current = self.record.current
        if current is None or self.standing.running is None:
            return
        try:
            await self._guests.builder.resized(current)
        except OSError as error:
            _log.warning("%s keeps its share until its next start: %s", self.record.process, error)

    async def set_cpus(self, cpus: tuple[int, ...]) -> None:
        """Move the running guest. Where that fails it moves at its next start."""
        if self.standing.running is None:
            return
        try:
            await self._guests.set_cpus(self.standing.running.guest, cpus)
        except (RuntimeUnavailable, GuestFailed) as error:
            _log.warning("%s keeps its CPUs until its next start: %s", self.record.process, error)

    async def _stand_probation(
        self, version: Version, verdict: asyncio.Future[str] | None, steps: dict[str, float]
    ) -> None:
        """Wait until it is over; another call on the process ends it too. Raises Refused."""
        if verdict is None:
            return
        with self._timed("probation", steps):
            problem = await verdict
        if problem:
            raise Refused(
                Reason.NOT_READY,
                f"{self.record.process} failed its probation: {problem}; the version from before takes over again",
                hint="its last output is part of this answer; `lowcloud ps` says what runs",
                output_tail=await self._guests.builder.output_tail(version),
            )

    # --- steps of calls ----------------------------------------------------------------------------------------------

    async def _ready_or_done(self, version: Version) -> None:
        """Wait until a guest is ready. One without listeners that is meant to end may have done so."""
        try:
            await self._guests.wait_ready(version)
        except GuestFailed as error:
            if error.state is None or not ran_to_its_end(version.spec, error.state):
                raise
            self.standing.exited(error.state)

    async def _hand_over(self, old: Version, steps: dict[str, float]) -> None:
        with self._timed("drain", steps):
            if old.guest is not None:
                await self._guests.drain(old, deadline_s=old.spec.update.drain_s, hands_over=True)
                self.standing.runs_not()
                await self._guests.end(old)

    async def _undo(self, version: Version, error: GuestFailed, *, handed_over: bool) -> Refused:
        """Put everything back after a version that did not become ready; the refusal to raise."""
        process = self.record.process
        tail = await self._guests.builder.output_tail(version)
        if isinstance(error, CheckFailed) and error.output:
            tail += f"[lowcloud] its check printed:\n{error.output}"
        await self._guests.end(version)
        await self.standing.save(lambda record: msgspec.structs.replace(record, pending=None))
        stays = "; the version from before still runs" if self.standing.running else ""
        if handed_over and self.record.finished is None:
            stays = await self._start_again()
        await self._guests.forget(version)  # not before: its listeners may hold connections for who serves now
        old = self.record.current
        itself = in_its_own_way(old.spec, version.spec) if old is not None and not handed_over else ""
        if isinstance(error, EndpointTaken) and itself:
            return Refused(
                Reason.NO_ROOM,
                f"{process}: both versions cannot listen at once: {itself}{stays}",
                hint='set `order = "stop-first"` for this update: the old version then ends before the new one starts',
            )
        if isinstance(error, EndpointTaken):
            return Refused(Reason.NO_ROOM, f"{process}: {error}{stays}", hint="free the port, or listen on another one")
        return Refused(
            Reason.NOT_READY,
            f"{process} did not become ready: {str(error).removeprefix(f'{process} is not ready: ')}{stays}",
            hint="its last output is part of this answer; what ran before is untouched",
            output_tail=tail,
        )

    async def _start_again(self) -> str:
        """Bring the version from before back after a hand-over that failed; how that went."""
        try:
            await self._supervision.start()
            await self._supervision.serve(pausable=False)
        except (GuestFailed, Refused) as error:
            return f"; the version from before does not start either ({error}) and is tried again"
        return "; the version from before runs again"

    async def _finish_stop(self) -> None:
        current, pending = self.record.current, self.record.pending
        await self._retirement.cancel()
        if pending is not None:
            await self._guests.discard(pending.version)
        if current is not None and current.guest is not None:
            await self._guests.drain(current, deadline_s=current.spec.update.drain_s)
            self.standing.runs_not()
            await self._guests.discard(current)
        for retiring in self.record.retiring:
            await self._guests.discard(retiring.version)
        await self.standing.save(lambda record: Record(process=record.process))

    async def _settle(self) -> None:
        """Bring record and guests together, as `agent.daemon.recovery` decides. Raises RuntimeUnavailable."""
        known = await self._guests.known()
        was = since_boot(self.record, self._guests.boot)
        decided = recover(was, known, now_unix=self._guests.clock())
        await self.standing.save(lambda _: decided.record)
        if decided.undone is not None and was.pending is not None:
            await self._guests.discard(was.pending.version)
            await self._guests.note(Event.CALL_FAILED, was.pending.version, detail="undone: it was not ready yet")
        if decided.stop:
            await self._finish_stop()
        elif decided.adopt is not None and decided.record.current is not None:
            proven = decided.flip is None or (was.pending is not None and was.pending.version.guest == decided.flip)
            await self._adopt(
                decided.record.current, known[decided.adopt], flip=decided.flip is not None, proven=proven
            )
        elif decided.record.current is not None:
            self.standing.runs_not()
            await self._found_dead(decided.record.current, known.get(decided.record.current.guest or ""))
        self.standing.settled = True

    async def _adopt(self, current: Version, state: GuestState, *, flip: bool, proven: bool) -> None:
        """Go on with a guest that runs. One that was never proven ready is left to supervision."""
        if current.spec.update.rereads:
            await self._guests.builder.rewrite(current)  # a crash may have come between record and files
        if proven and flip and current.spec.listen:
            await self._guests.flip(current)
        if proven and not self._guests.has_served(current):
            await self._guests.note(Event.SERVING, current, pid=state.pid, detail="found ready")
        self.standing.runs(state, serving=proven)
        if proven:
            self.standing.show(ProcessState.RUNNING, since_unix=state.started_unix)

    async def _found_dead(self, current: Version, state: GuestState | None) -> None:
        """No guest of `current` lives. If it ended by itself, its restart rule decides; if it went with the host or the
        supervisor, it is simply started again."""
        finished = self.record.finished
        if finished is not None and finished.is_given_up:
            self.standing.show(ProcessState.FAILED, told(self.record), since_unix=finished.at_unix)
        elif finished is not None:
            self.standing.show(ProcessState.EXITED, f"it ended with exit code {finished.exit_code}")
        elif state is not None and self.record.watched is not None and not ended_well(current.spec, state):
            if self._guests.has_served(current):
                await self._guests.note(Event.EXITED, current, pid=state.pid, detail=how_it_ended(state))
            await self._supervision.go_back(how_it_ended(state))
        elif state is not None and not starts_again(current.spec.restart, code_of(state)):
            await self._supervision.finish(state)
        else:
            self.standing.restart_due = state is not None
            ran_s = self._guests.clock() - state.started_unix if state else 0.0
            if (
                state
                and self._guests.has_served(current)
                and await self._supervision.count_failure(how_it_ended(state), ran_s=ran_s, exit_code=code_of(state))
            ):
                return
            if self._guests.has_served(current):
                how = how_it_ended(state) if state else "it was gone when the agent looked"
                await self._guests.note(Event.EXITED, current, detail=how)

    @contextmanager
    def _timed(self, step: str, steps: dict[str, float]) -> Iterator[None]:
        started = self._guests.monotonic()
        yield
        steps[step] = round((self._guests.monotonic() - started) * 1000, 3)


def _flipping(record: Record) -> Record:
    if record.pending is None:
        return record
    return msgspec.structs.replace(record, pending=msgspec.structs.replace(record.pending, phase="flipping"))


def _unreachable(error: RuntimeUnavailable) -> Refused:
    return Refused(
        Reason.INTERNAL,
        f"this host's supervisor cannot be reached: {error}",
        hint="the agent makes a new connection and then finishes or undoes the call; ask again",
    )
