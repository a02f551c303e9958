"""A plan: which calls, in which order, lead from what runs to a definition, and why each of them.

A plan is data, written by a planner, read by people before it is carried out, carried out by `deployer.applying.apply`,
and kept for ever as a blob that its release names; so an auditor can check that a host did what was planned and nothing
else. It holds everything it needs: the release it starts from, the state it expects of every host, each call, and the
fields whose change is the call's reason.

**Stages.** The calls of a stage do not depend on each other and may all be under way at once, on one host or on many; a
stage begins when the one before has succeeded as a whole.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from agent.api.calls import (
    MAX_SPECS_PER_STAGE,
    Call,
    Configure,
    CreateVolume,
    Envelope,
    Replace,
    Resize,
    Stage,
    Start,
    Stop,
    call_digest,
)
from agent.api.processes import ProcessSpec, spec_digest
from cas.digest import Digest, digest_of
from deployer.history.records import seal, unseal
from deployer.language.schema import Change

MAX_PLAN_BYTES: Final = 256 << 20
MAX_HOLD_S: Final = 7 * 86400.0
STAGE_CALL_BYTES: Final = 2 << 20
"""A host's staging is cut into calls of about this size, half of what an agent accepts."""

State = dict[str, dict[str, Digest]]
"""What runs: host, process, digest of its specification."""


class Kind(enum.StrEnum):
    """The calls that a plan can hold."""

    CREATE_VOLUME = "create-volume"
    START = "start"
    REPLACE = "replace"
    CONFIGURE = "configure"
    RESIZE = "resize"
    STOP = "stop"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what a plan consists of."""


class Cause(Record, frozen=True):
    """A field that a call is there for: one that the new definition changes, or (`drift`) one in which the host differs
    from what it should be."""

    path: tuple[str, ...]
    drift: bool = False


class Changed(Record, frozen=True):
    """A field in which the two definitions differ, and what a change of it means."""

    path: tuple[str, ...]
    change: Change


class Step(Record, frozen=True, kw_only=True):
    """One call on one host."""

    host: str
    subject: str
    """The process, or for `create-volume` the volume."""
    kind: Kind
    change: Change
    """The strongest that any of the causes means."""
    causes: tuple[Cause, ...]
    spec: ProcessSpec | None = None
    """What runs afterwards; none for `stop` and `create-volume`."""
    expect: Digest | None = None
    """The specification that the host must run before; none for `start` and `create-volume`."""
    size_bytes: Annotated[int, Meta(ge=1)] | None = None
    """Of a volume."""
    was: ProcessSpec | None = None
    """The specification behind `expect`, for the way back; none in a plan of an older lowcloud."""

    def __post_init__(self) -> None:
        runs_after = self.kind in (Kind.START, Kind.REPLACE, Kind.CONFIGURE, Kind.RESIZE)
        runs_before = self.kind in (Kind.REPLACE, Kind.CONFIGURE, Kind.RESIZE, Kind.STOP)
        if (self.spec is not None) != runs_after or (self.expect is not None) != runs_before:
            raise ValueError(f"a step of kind {self.kind} with the wrong parts")
        if (self.size_bytes is not None) != (self.kind is Kind.CREATE_VOLUME):
            raise ValueError(f"a step of kind {self.kind} with the wrong parts")
        if self.spec is not None and self.spec.name != self.subject:
            raise ValueError(f"a step for {self.subject} with the specification of {self.spec.name}")
        if self.was is not None and (self.expect is None or self.was.name != self.subject):
            raise ValueError(f"a step for {self.subject} with a past that is not its own")

    def call(self) -> Call:
        """The call as the agent's API has it."""
        match self:
            case Step(kind=Kind.START, spec=ProcessSpec() as spec):
                return Start(spec)
            case Step(kind=Kind.REPLACE, spec=ProcessSpec() as spec, expect=str(expect)):
                return Replace(spec, expect)
            case Step(kind=Kind.CONFIGURE, spec=ProcessSpec() as spec, expect=str(expect)):
                return Configure(self.subject, spec.config, expect)
            case Step(kind=Kind.RESIZE, spec=ProcessSpec() as spec, expect=str(expect)):
                return Resize(spec, expect)
            case Step(kind=Kind.STOP, expect=str(expect)):
                return Stop(self.subject, expect)
            case Step(kind=Kind.CREATE_VOLUME, size_bytes=int(size_bytes)):
                return CreateVolume(self.subject, size_bytes)
        raise AssertionError("a step is checked when it is made")


class Hold(Record, frozen=True):
    """A probation: before the plan goes on, everything that it has changed so far must keep running for a time."""

    after: Annotated[int, Meta(ge=1)]
    """So many stages come before it."""
    hold_s: Annotated[float, Meta(ge=0, le=MAX_HOLD_S)]


class Plan(Record, frozen=True, kw_only=True):
    """Everything that an apply does."""

    planner: str
    definition: Digest
    """What runs afterwards."""
    from_release: Digest | None = None
    """The release that must be the newest when the plan is carried out; None: there is none yet."""
    from_definition: Digest | None = None
    expect: State
    """The state it was made for, of every host that answered: host, process, digest of its specification."""
    stages: tuple[tuple[Step, ...], ...] = ()
    changes: tuple[Changed, ...] = ()
    """Every field in which the two definitions differ, also those that need no call."""
    notes: tuple[str, ...] = ()
    """What a person should know before they agree."""
    unreachable: tuple[str, ...] = ()
    """Hosts that did not answer and that this plan therefore leaves alone."""
    holds: tuple[Hold, ...] = ()
    """In the order of the stages, at most one between two of them."""

    def __post_init__(self) -> None:
        places = [hold.after for hold in self.holds]
        if places != sorted(set(places)) or (places and places[-1] > len(self.stages)):
            raise ValueError("a plan whose probations are not between its stages")

    def steps(self) -> Iterator[Step]:
        for stage in self.stages:
            yield from stage

    @property
    def is_empty(self) -> bool:
        """True where nothing has to be called."""
        return not self.stages

    def hosts(self) -> tuple[str, ...]:
        """The hosts that are called, in order of their names."""
        return tuple(sorted({step.host for step in self.steps()}))


# --- as a blob ------------------------------------------------------------------------------------------------------


def encode(plan: Plan) -> bytes:
    return seal("plan", plan)


def decode(data: bytes) -> Plan:
    """Raises RecordInvalid."""
    return unseal("plan", data, Plan, max_bytes=MAX_PLAN_BYTES)


def plan_digest(plan: Plan) -> Digest:
    return digest_of(encode(plan))


# --- what follows from a plan ---------------------------------------------------------------------------------------


def advance(state: Mapping[str, Mapping[str, Digest]], steps: Iterable[Step]) -> State:
    """The state after these steps have succeeded. Raises ValueError where one expects another state than there is."""
    after = {host: dict(processes) for host, processes in state.items()}
    for step in steps:
        if step.kind is Kind.CREATE_VOLUME:
            continue
        processes = after.setdefault(step.host, {})
        if processes.get(step.subject) != step.expect:
            raise ValueError(f"{step.kind} of {step.subject}@{step.host} expects another state than there is")
        if step.spec is None:
            del processes[step.subject]
        else:
            processes[step.subject] = spec_digest(step.spec)
    return after


def blobs_of(spec: ProcessSpec) -> tuple[Digest, ...]:
    """The blobs that a specification needs on its host, each once."""
    files = (held[path] for held in (spec.config, spec.secrets) for path in sorted(held))
    return tuple(dict.fromkeys((spec.binary, *files)))


def blobs_by_host(plan: Plan) -> dict[str, tuple[Digest, ...]]:
    """Which blobs each host must have before the plan is carried out."""
    wanted: dict[str, dict[Digest, None]] = {}
    for step in plan.steps():
        of_host = wanted.setdefault(step.host, {})
        if step.spec is not None:
            of_host.update(dict.fromkeys(blobs_of(step.spec)))
    return {host: tuple(digests) for host, digests in sorted(wanted.items())}


def staging(plan: Plan) -> dict[str, tuple[Stage, ...]]:
    """The calls that make each host ready. They follow from the plan alone, so that an auditor can tell that a staging
    belongs to it."""
    specs: dict[str, list[ProcessSpec]] = {}
    for step in plan.steps():
        if step.spec is not None:
            specs.setdefault(step.host, []).append(step.spec)
    return {host: tuple(Stage(part) for part in _parts(of_host)) for host, of_host in sorted(specs.items())}


def call_digests(plan: Plan, host: str, *, plan_name: Digest, release: Digest, by: str) -> frozenset[Digest]:
    """The digest of every call that carrying out this plan for this release makes on a host: its steps in the release's
    name, and its staging, which comes before the release is decided and names the plan only."""
    of_host = (step.call() for step in plan.steps() if step.host == host)
    steps = (Envelope(call, release=release, plan=plan_name, by=by) for call in of_host)
    stagings = (Envelope(stage, plan=plan_name, by=by) for stage in staging(plan).get(host, ()))
    return frozenset(call_digest(envelope) for envelopes in (steps, stagings) for envelope in envelopes)


def _parts(specs: list[ProcessSpec]) -> Iterator[tuple[ProcessSpec, ...]]:
    part: list[ProcessSpec] = []
    size = 0
    for spec in specs:
        spec_bytes = len(msgspec.msgpack.encode(spec))
        if part and (size + spec_bytes > STAGE_CALL_BYTES or len(part) == MAX_SPECS_PER_STAGE):
            yield tuple(part)
            part, size = [], 0
        part.append(spec)
        size += spec_bytes
    if part:
        yield tuple(part)
