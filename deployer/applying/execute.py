"""Making the calls of a plan: a stage at a time, everything in a stage side by side, and a stop at the first trouble.

**Stopping.** When a call fails, or the task is cancelled (Ctrl-C), no further call begins; those that are under way are
waited for, because only then is it known what the hosts run. A second cancellation is obeyed at once.

**Repeating.** A host that does not answer may or may not have done what it was asked; calls are idempotent, so it is
asked again a few times. A host that is busy with the same process is asked again too. Every other refusal is final.

**Probation.** Where the plan holds, everything that it has changed so far is watched for that long, in what the hosts
report: it must keep running, as the specification that the plan gave it, without being started again.

All waiting is the event loop's, so that a simulation may bring a clock of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from agent.api.answers import Outcome, Reason
from agent.api.calls import Envelope, Replace
from agent.api.processes import spec_digest
from agent.client.client import CALL_SLACK_S, call_timeout_s
from agent.client.errors import AgentError, CallRefused, HostSilent, HostUnreachable
from cas.digest import Digest
from deployer.applying.observe import Observed, observe
from deployer.applying.outcome import CallDone, off_probation, unwell
from deployer.applying.site import Site
from deployer.planning.plan import Kind, Plan, Step

CALLS_AT_ONCE: Final = 64
CALLS_AT_ONCE_PER_HOST: Final = 4
WAITS_S: Final = (0.2, 1.0, 3.0)
"""Before the second try and those after it."""
LOOKS_PER_PROBATION: Final = 10
LOOK_AGAIN_S: Final = (0.5, 10.0)
"""The shortest and the longest time between two looks of a probation."""


async def undisturbed(tasks: Sequence[asyncio.Task[Any]], *, told: Callable[[], None] = lambda: None) -> bool:
    """Wait until these tasks are done, also when cancelled meanwhile: then `told` is called, and True returned. When
    cancelled again, ends them and raises CancelledError."""
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        swallow_cancellation()
        told()
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        return True
    return False


def swallow_cancellation() -> None:
    """Without this, task groups that this task enters later would believe that they are being cancelled."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class Execution:
    """The calls of one plan for one release. `run` once; then read what became of it."""

    def __init__(
        self, site: Site, plan: Plan, *, plan_name: Digest, release: Digest, interrupted: bool = False
    ) -> None:
        self.done: list[CallDone] = []
        self.interrupted = interrupted
        self.superseded = False
        self.unwell: list[tuple[Step, str]] = []
        self.last_look: Observed | None = None
        """What hosts have said since the last call."""
        self._site = site
        self._plan = plan
        self.plan_name = plan_name
        self.release = release
        self._halted = asyncio.Event()
        self._all = asyncio.Semaphore(CALLS_AT_ONCE)
        self._per_host = {host: asyncio.Semaphore(CALLS_AT_ONCE_PER_HOST) for host in plan.hosts()}

    @property
    def went_well(self) -> bool:
        return not (self.interrupted or self.superseded or self.unwell or any(not call.ok for call in self.done))

    async def run(self) -> None:
        """Carry out the plan, or as much of it as goes well. Never raises for what a host answers; raises
        CancelledError only when cancelled twice."""
        self._site.progress.phase("apply", len(self._plan.hosts()))
        holds = {hold.after: hold.hold_s for hold in self._plan.holds}
        for number, stage in enumerate(self._plan.stages, 1):
            if self.interrupted:
                return
            if await self._is_superseded():
                return
            self.last_look = None
            await self._all_of([self._step(step) for step in stage])
            if not self.went_well:
                return
            await self._all_of([self._look_after(stage)])
            if not self.went_well:
                return
            if number in holds:
                await self._all_of([self._probation(number, holds[number])])
                if not self.went_well:
                    return

    async def _is_superseded(self) -> bool:
        """Has another release taken over, or was the plan told to stop while that was found out?"""
        reading = asyncio.ensure_future(asyncio.to_thread(self._site.store.read_ref, self._site.ref))
        self.interrupted = await undisturbed([reading]) or self.interrupted
        self.superseded = reading.result() != self.release
        return self.superseded or self.interrupted

    async def _all_of(self, parts: list[Coroutine[Any, Any, None]]) -> None:
        tasks = [asyncio.ensure_future(part) for part in parts]
        if await undisturbed(tasks, told=self._halt):
            self.interrupted = True
        for task in tasks:
            task.result()

    def _halt(self) -> None:
        self._halted.set()

    async def _look_after(self, stage: tuple[Step, ...]) -> None:
        """What a stage has changed must run before the next one begins."""
        self.last_look = await observe(self._site.fleet, {step.host for step in stage})
        self.unwell += unwell(stage, self.last_look)

    async def _probation(self, stages: int, hold_s: float) -> None:
        """Watch what these first stages have changed until the time is over, something is not as it should be, or the
        plan is told to stop."""
        steps = tuple(step for stage in self._plan.stages[:stages] for step in stage)
        hosts = {step.host for step in steps}
        self._site.progress.phase("probation", len(hosts))
        self.last_look = None
        clock = asyncio.get_running_loop().time
        ends = clock() + hold_s
        shortest_s, longest_s = LOOK_AGAIN_S
        every_s = min(max(hold_s / LOOKS_PER_PROBATION, shortest_s), longest_s)
        first = await observe(self._site.fleet, hosts)
        while not self._halted.is_set() and not self.unwell:
            left_s = ends - clock()
            if left_s > 0 and await _comes(self._halted, within_s=min(every_s, left_s)):
                return
            now = await observe(self._site.fleet, hosts)
            over = clock() >= ends
            self.unwell += off_probation(steps, first, now, over=over)
            if over:
                return

    async def _step(self, step: Step) -> None:
        async with self._per_host[step.host], self._all:
            if self._halted.is_set():
                return
            self._site.progress.step(step, "begins")
            done = await self._call(step)
            self.done.append(done)
            if not done.ok:
                self._halt()
            self._site.progress.step(step, "done" if done.ok else "failed", done.message)

    async def _call(self, step: Step) -> CallDone:
        began = _now()
        try:
            outcome = await self._ask(step)
        except AgentError as error:
            refusal = error.refusal if isinstance(error, CallRefused) else None
            return CallDone(
                host=step.host,
                subject=step.subject,
                kind=step.kind,
                ok=False,
                ms=_ms_since(began),
                reason=refusal.reason if refusal else None,
                message=refusal.message if refusal else str(error),
                hint=error.hint,
                output_tail=refusal.output_tail if refusal else "",
            )
        return CallDone(
            host=step.host,
            subject=step.subject,
            kind=step.kind,
            ok=True,
            changed=outcome.changed,
            ms=_ms_since(began),
            steps=outcome.steps,
            message=outcome.detail if outcome.changed else "",
        )

    async def _ask(self, step: Step) -> Outcome:
        client = await self._site.fleet.client(step.host)
        envelope = Envelope(step.call(), release=self.release, plan=self.plan_name, by=self._site.by)
        limit_s = call_limit_s(step)
        gives_up = _now() + limit_s
        for wait_s in WAITS_S:
            try:
                return await client.call(envelope, timeout_s=limit_s)
            except HostUnreachable as error:
                if _now() >= gives_up or isinstance(error, HostSilent):
                    raise  # it took the call and was silent all the time: it would be so again
                await asyncio.sleep(wait_s)
            except CallRefused as error:
                if error.refusal.reason is not Reason.BUSY:
                    raise
                await asyncio.sleep(wait_s)
        return await client.call(envelope, timeout_s=limit_s)


def call_limit_s(step: Step) -> float:
    """How long a host may take for a step: as for a replacement, by what both specifications allow, whatever the call
    is; a call to configure or to stop does not carry them."""
    if step.kind is Kind.CREATE_VOLUME:
        return CALL_SLACK_S
    if step.spec is None and step.was is None:
        return call_timeout_s(step.call())
    return max(call_timeout_s(Replace(spec, spec_digest(spec))) for spec in (step.spec, step.was) if spec)


async def _comes(event: asyncio.Event, *, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()


def _ms_since(began: float) -> float:
    return round((_now() - began) * 1000, 3)
