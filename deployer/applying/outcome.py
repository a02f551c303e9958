"""What became of an apply: every call that was made, and what the hosts say they run now.

The two are kept apart on purpose. Whether an apply succeeded is computed from what the hosts report at its end, never
from what was sent to them.
"""

from __future__ import annotations

import enum

import msgspec

from agent.api.answers import Reason
from agent.api.facts import ProcessState
from agent.api.processes import spec_digest
from cas.digest import Digest
from deployer.applying.observe import Observed
from deployer.planning.plan import Kind, Plan, State, Step, advance


class Outcome(enum.StrEnum):
    UNCHANGED = "unchanged"
    """There was nothing to do."""
    APPLIED = "applied"
    """Every host that was called runs what the plan says, and no host of the definition was left for later."""
    REVERTED = "reverted"
    """Something failed, and every host that was called runs again what it should have run before."""
    PARTIAL = "partial"
    """None of these: `hosts` says which host runs what. It ends so too where hosts were left alone."""


class HostEnd(enum.StrEnum):
    """What a host that was called reports at the end."""

    NEW = "new"
    """All of the plan."""
    OLD = "old"
    """What the plan found; after a return, what should have run before."""
    BETWEEN = "between"
    """Some of its calls were carried out, or it runs something else."""
    UNWELL = "unwell"
    """The right specifications, but a process that was called does not run."""
    UNKNOWN = "unknown"
    """It does not answer."""


class CallDone(msgspec.Struct, frozen=True, kw_only=True):
    """One call and its answer."""

    host: str
    subject: str
    kind: Kind
    ok: bool
    changed: bool = False
    """False where the host had it already."""
    ms: float = 0.0
    """From the first try to the answer, as the deployer sees it."""
    steps: dict[str, float] = {}
    """Milliseconds that each part took on the host: for a swap `spawn`, `ready`, `flip`, `drain`."""
    reason: Reason | None = None
    """Of a refusal; None where the host could not be reached."""
    message: str = ""
    """Why it failed; of one that was carried out, what there is to say of how."""
    hint: str = ""
    output_tail: str = ""
    """What a guest that did not become ready had printed last."""


class Brought(msgspec.Struct, frozen=True):
    """What came to a host from where, in bytes on the wire."""

    deployer_bytes: int = 0
    region_bytes: int = 0
    """From hosts of its region."""
    border_bytes: int = 0
    """From hosts of other regions."""
    blobs: int = 0
    whole_bytes: int = 0
    """What these blobs are, each whole."""
    region: str = ""
    wrong: tuple[str, ...] = ()
    """Hosts that sent it wrong bytes."""


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an apply."""

    outcome: Outcome
    plan: Digest
    release: Digest | None
    """None where nothing was to be done and nothing was recorded."""
    calls: tuple[CallDone, ...] = ()
    """In the order of their answers."""
    hosts: dict[str, HostEnd] = {}
    bytes_sent: int = 0
    """By the deployer."""
    brought: dict[str, Brought] = {}
    """By host."""
    seconds: float = 0.0
    interrupted: bool = False
    """It was told to stop before it was through."""
    superseded: bool = False
    """Another operator's release took over meanwhile; the rest is theirs."""
    revert: Applied | None = None
    """How the hosts were brought back, where that was tried; `hosts` tells where they are after it."""
    trouble: str = ""
    """What kept a revert from being tried or finished, or why a process that was changed does not run."""
    unheard: str = ""
    """Why hosts that were away cannot learn of the release from others; "" where they can."""

    @property
    def failed(self) -> tuple[CallDone, ...]:
        return tuple(call for call in self.calls if not call.ok)

    @property
    def is_behind(self) -> bool:
        """Is nothing wrong but that hosts are away, and were left for later?"""
        troubled = self.failed or self.interrupted or self.superseded or self.trouble
        told = set(self.hosts.values())
        return self.outcome is Outcome.PARTIAL and not troubled and told <= {HostEnd.NEW, HostEnd.UNKNOWN}

    @property
    def exit_code(self) -> int:
        """0 done, 4 applied in part or reverted."""
        return 0 if self.outcome in (Outcome.APPLIED, Outcome.UNCHANGED) else 4


def ends(plan: Plan, observed: Observed) -> dict[str, HostEnd]:
    """What each host that the plan calls is at, from what it reports."""
    after = advance(plan.expect, plan.steps())
    return {host: _end(plan, observed, host, after) for host in plan.hosts()}


def unwell(steps: tuple[Step, ...], observed: Observed) -> list[tuple[Step, str]]:
    """The processes that these steps have brought about and that do not run, each with the reason its host gives."""
    found: list[tuple[Step, str]] = []
    for step in steps:
        state = observed.hosts.get(step.host)
        process = state.processes.get(step.subject) if state and step.spec else None
        if process and process.state in (ProcessState.BACKOFF, ProcessState.FAILED):
            why = f": {process.reason}" if process.reason else ""
            found.append((step, f"{step.subject}@{step.host} is in state {process.state}{why}"))
    return found


def off_probation(steps: tuple[Step, ...], first: Observed, now: Observed, *, over: bool) -> list[tuple[Step, str]]:
    """The processes that these steps have brought about and that have not stood their probation, by what the hosts
    said when it began and say now. A new guest must never have been started again, one that was there before not since
    the probation began. A host that does not answer is asked again until the time is `over`; then it counts
    as one that has failed."""
    found = unwell(steps, now)
    told = {(step.host, step.subject) for step, _ in found}
    for step in {(step.host, step.subject): step for step in steps if step.spec is not None}.values():
        if (step.host, step.subject) in told or step.spec is None:
            continue
        name = f"{step.subject}@{step.host}"
        if step.host in now.unreachable:
            if over:
                found.append((step, f"{name} is not known to run: {now.unreachable[step.host]}"))
            continue
        runs = now.hosts[step.host].processes.get(step.subject)
        if runs is None or runs.digest != spec_digest(step.spec):
            found.append((step, f"{name} no longer runs what the plan gave it"))
        elif (again := _restarts(now, step) - (_restarts(first, step) if step.kind is Kind.RESIZE else 0)) > 0:
            found.append((step, f"{name} was started again {again} {'time' if again == 1 else 'times'}"))
    return found


def _restarts(observed: Observed, step: Step) -> int:
    return sum(status.restarts for status in observed.statuses.get(step.host, ()) if status.process == step.subject)


def _end(plan: Plan, observed: Observed, host: str, after: State) -> HostEnd:
    if host not in observed.hosts:
        return HostEnd.UNKNOWN
    runs = {name: process.digest for name, process in observed.hosts[host].processes.items()}
    if runs == after.get(host, {}):
        of_host = tuple(step for step in plan.steps() if step.host == host)
        if not _volumes_there(of_host, observed.hosts[host].volumes):
            return HostEnd.BETWEEN
        return HostEnd.UNWELL if unwell(of_host, observed) else HostEnd.NEW
    return HostEnd.OLD if runs == plan.expect.get(host, {}) else HostEnd.BETWEEN


def _volumes_there(steps: tuple[Step, ...], volumes: dict[str, int]) -> bool:
    return all(volumes.get(step.subject, 0) >= (step.size_bytes or 0) for step in steps if step.size_bytes is not None)
