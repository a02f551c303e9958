"""Hosts that exist only in a simulation: what they run, how long they take, and when they fail.

`ModelClient` stands where an agent's client stands, so that the apply that talks to it is the real one. It answers as
an agent does: compare-and-swap, idempotent calls, refusals with their reason, and silence where the host is down.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from agent.api.answers import Outcome, Reason, Refusal
from agent.api.blobs import BlobAnswer, BlobBegun, BlobQuery, BlobReceipt
from agent.api.calls import Call, Configure, CreateVolume, Envelope, Replace, Resize, Stage, Start, Stop
from agent.api.facts import HostFacts, HostReport, ProcessState, ProcessStatus, VolumeStatus
from agent.api.fetching import Fetch, Fetched, HaveAnswer, HaveQuery
from agent.api.neighbours import Acquaint, Meet, PeersStatus
from agent.api.processes import ProcessSpec, spec_digest
from agent.client.client import AgentClient
from agent.client.connections import CONNECT_TIMEOUT_S
from agent.client.errors import CallRefused, HostUnreachable
from cas.digest import Digest
from deployer.applying.observe import HostState
from deployer.applying.transfer import Lack
from deployer.planning.plan import Kind
from deployer.planning.simulate.clock import now_s
from deployer.planning.simulate.failures import Failure, FailureKind
from deployer.planning.timing import CALL_S, STAGE_S, Links, compile_s, patience_s

SLOWER_RATE: Final = 100
SLOWER_ROUND_TRIP: Final = 50
NOTICED_AFTER_S: Final = 25.0
"""A host that dies while it owes an answer is noticed by its missing pulse (`agent.pulse`)."""

Cost = Callable[[Lack], int]
"""Bytes on the wire for what a host lacks."""
Size = Callable[[Digest], int]


class _Guest(msgspec.Struct):
    spec: ProcessSpec
    release: Digest | None = None
    plan: Digest | None = None
    ends_at_s: float | None = None
    """From when on it ends again and again."""


class ModelHost:
    """One host. All times are the loop's."""

    def __init__(
        self,
        name: str,
        state: HostState,
        lack: Lack,
        links: Links,
        failures: Iterable[Failure],
        chance: random.Random,
        tell: Callable[[str], None],
    ) -> None:
        self.name = name
        self.lack = lack
        self.compiled: set[Digest] = set()
        self._guests = {name: _Guest(runs.spec, runs.release) for name, runs in state.processes.items()}
        self._before = {name: runs.digest for name, runs in state.processes.items()}
        self._volumes = dict(state.volumes)
        self._failures = tuple(failures)
        self._chance = chance
        self._tell = tell
        self._told: set[str] = set()
        slow = any(failure.kind is FailureKind.SLOW_LINK for failure in self._failures)
        self.links = Links(links.bytes_per_s / SLOWER_RATE, links.round_trip_s * SLOWER_ROUND_TRIP) if slow else links

    # --- failing ---

    def is_down(self) -> bool:
        at_s = now_s()
        for failure in self._failures:
            if failure.kind is FailureKind.HOST_DOWN and failure.at_s <= at_s:
                if failure.until_s is None or at_s < failure.until_s:
                    self._once(f"{self.name} is down")
                    return True
                self._once(f"{self.name} is back")
        return False

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)

    def _fails(self, kind: FailureKind, spec: ProcessSpec) -> Failure | None:
        """Only what is new fails: what ran before the plan runs again when it is brought back."""
        if self._before.get(spec.name) == spec_digest(spec):
            return None
        return next((f for f in self._failures if f.kind is kind and f.process == spec.name), None)

    # --- answering ---

    def facts(self) -> HostFacts:
        volumes = tuple(VolumeStatus(name, size, 0) for name, size in sorted(self._volumes.items()))
        return HostFacts(
            host=self.name,
            cores=0,
            memory_bytes=0,
            disk_bytes=0,
            disk_free_bytes=0,
            addresses=(),
            kernel="model",
            engine="model",
            guarantees=(),
            volumes=volumes,
        )

    def statuses(self) -> tuple[ProcessStatus, ...]:
        return tuple(self._status(name, guest) for name, guest in sorted(self._guests.items()))

    def _status(self, name: str, guest: _Guest) -> ProcessStatus:
        ended = guest.ends_at_s is not None and guest.ends_at_s <= now_s()
        if ended:
            self._once(f"{name}@{self.name} ends again and again")
        return ProcessStatus(
            process=name,
            spec=guest.spec,
            spec_digest=spec_digest(guest.spec),
            state=ProcessState.BACKOFF if ended else ProcessState.RUNNING,
            pid=None,
            since_unix=0.0,
            restarts=3 if ended else 0,
            release=guest.release,
            plan=guest.plan,
            reason="the guest ended by itself" if ended else "",
        )

    async def carry_out(self, envelope: Envelope, size: Size) -> Outcome:
        """Raises CallRefused, HostUnreachable."""
        call = envelope.call
        if isinstance(call, Stage):
            return await self._stage(call, size)
        if self._is_there(call):
            return Outcome(changed=False)
        spec = self._after(call)
        if spec is not None and self._fails(FailureKind.NEVER_READY, spec):
            await asyncio.sleep(patience_s(spec))
            raise refused(Reason.NOT_READY, f"{spec.name} did not become ready within {patience_s(spec):g} s")
        await asyncio.sleep(CALL_S[_KINDS[type(call)]])
        if self.is_down() and self._chance.random() < 0.5:
            raise HostUnreachable(f"{self.name} went down before it had done what it was asked")
        self._act(call, spec, envelope)
        return Outcome(changed=True)

    async def _stage(self, call: Stage, size: Size) -> Outcome:
        binaries = {spec.binary for spec in call.specs} & set(self.lack.missing) - self.compiled
        await asyncio.sleep(STAGE_S + sum(compile_s(size(binary)) for binary in binaries))
        self.compiled |= binaries
        return Outcome(changed=False)

    def _is_there(self, call: Call) -> bool:
        match call:
            case Start(spec=spec) | Replace(spec=spec) | Resize(spec=spec):
                return spec.name in self._guests and self._guests[spec.name].spec == spec
            case Configure(process=name, config=config):
                return name in self._guests and self._guests[name].spec.config == config
            case Stop(process=name):
                return name not in self._guests
            case CreateVolume(volume=volume, size_bytes=size_bytes):
                return self._volumes.get(volume, 0) >= size_bytes
        raise refused(Reason.BAD_REQUEST, f"the model knows no {type(call).__name__}")

    def _after(self, call: Call) -> ProcessSpec | None:
        """What runs afterwards; first whether the call finds what it expects."""
        name, expect = _expected(call)
        runs = self._guests.get(name) if name else None
        if name and (spec_digest(runs.spec) if runs else None) != expect:
            raise refused(Reason.UNEXPECTED_STATE, f"{name} is not what the call expects")
        match call:
            case Start(spec=spec) | Replace(spec=spec) | Resize(spec=spec):
                self._check(spec)
                return spec
            case Configure(config=config) if runs is not None:
                return msgspec.structs.replace(runs.spec, config=config)
        return None

    def _check(self, spec: ProcessSpec) -> None:
        if absent := sorted(set(spec.volume.values()) - self._volumes.keys()):
            raise refused(Reason.NOT_FOUND, f"{spec.name} needs the volume {absent[0]}, which is not there")
        for name, guest in self._guests.items():
            if name != spec.name and (taken := set(guest.spec.listen.values()) & set(spec.listen.values())):
                raise refused(Reason.NO_ROOM, f"{name} listens on {min(map(str, taken))}")

    def _act(self, call: Call, spec: ProcessSpec | None, envelope: Envelope) -> None:
        if isinstance(call, CreateVolume):
            self._volumes[call.volume] = call.size_bytes
        elif isinstance(call, Stop):
            del self._guests[call.process]
        elif spec is not None:
            later = self._fails(FailureKind.DIES_LATER, spec)
            ends_at_s = now_s() + later.at_s if later else None
            self._guests[spec.name] = _Guest(spec, envelope.release, envelope.plan, ends_at_s)


class ModelClient(AgentClient):
    """How the real apply meets a model host."""

    def __init__(self, host: ModelHost, cost: Cost, size: Size) -> None:
        super().__init__(host.name, "model", Path())
        self._host = host
        self._cost = cost
        self._size = size

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """There is nothing to close."""

    async def call(self, envelope: Envelope, *, timeout_s: float | None = None) -> Outcome:
        del timeout_s  # a call to the model always comes to its end
        await self._arrive()
        try:
            outcome = await self._host.carry_out(envelope, self._size)
        except HostUnreachable:
            await asyncio.sleep(NOTICED_AFTER_S)
            raise
        await self._leave()
        return outcome

    async def host(self) -> HostFacts:
        await self._arrive()
        return self._host.facts()

    async def processes(self) -> tuple[ProcessStatus, ...]:
        await self._arrive()
        return self._host.statuses()

    async def report(self) -> HostReport:
        await self._arrive()
        return HostReport(self._host.facts(), self._host.statuses())

    async def acquaint(self, acquaint: Acquaint) -> bool:
        """It is told, and makes nothing of it."""
        del acquaint
        await self._arrive()
        return True

    async def meet(self, meet: Meet) -> PeersStatus:
        """It knows of no neighbours: what it lacks is sent to it."""
        del meet
        await self._arrive()
        return PeersStatus("", ())

    async def fetch(self, fetch: Fetch) -> Fetched:
        """Nothing comes from neighbours."""
        del fetch
        await self._arrive()
        return Fetched(self._host.lack.missing, under_way=False)

    async def have(self, query: HaveQuery) -> HaveAnswer:
        """As an agent that knows no pieces."""
        del query
        await self._arrive()
        raise refused(Reason.NOT_FOUND, "the model has no such route")

    async def query(self, query: BlobQuery) -> BlobAnswer:
        await self._arrive()
        wanted, offered = set(query.want), set(query.bases)
        lack = self._host.lack
        return BlobAnswer(
            tuple(digest for digest in lack.missing if digest in wanted),
            tuple(digest for digest in lack.bases if digest in offered),
        )

    async def begun(self, blobs: Sequence[Digest]) -> tuple[BlobBegun, ...]:
        """No stream to it breaks off half done."""
        del blobs
        await self._arrive()
        return ()

    async def send_blobs(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> BlobReceipt:
        """The bytes are counted as the deployer would estimate them."""
        del chunks  # nothing is encoded or read
        lack = self._host.lack
        wire_bytes = self._cost(lack)
        await self._arrive()
        await asyncio.sleep(wire_bytes / self._host.links.bytes_per_s)
        await self._leave()
        self._host.lack = Lack((), lack.bases)
        return BlobReceipt(len(lack.missing), wire_bytes, wire_bytes)

    async def _arrive(self) -> None:
        if self._host.is_down():
            await asyncio.sleep(CONNECT_TIMEOUT_S)
            if self._host.is_down():
                raise HostUnreachable(f"{self.host_name} cannot be reached")
        await asyncio.sleep(self._host.links.round_trip_s)

    async def _leave(self) -> None:
        """What was done is done; but it may be that nobody learns of it."""
        if self._host.is_down():
            await asyncio.sleep(NOTICED_AFTER_S)
            raise HostUnreachable(f"{self.host_name} went down before it answered")


def refused(reason: Reason, message: str) -> CallRefused:
    return CallRefused(Refusal(reason, message))


_KINDS: Final = {
    Start: Kind.START,
    Stop: Kind.STOP,
    Replace: Kind.REPLACE,
    Configure: Kind.CONFIGURE,
    Resize: Kind.RESIZE,
    CreateVolume: Kind.CREATE_VOLUME,
}


def _expected(call: Call) -> tuple[str, Digest | None]:
    match call:
        case Start(spec=spec):
            return spec.name, None
        case Replace(spec=spec, expect=expect) | Resize(spec=spec, expect=expect):
            return spec.name, expect
        case Configure(process=name, expect=expect) | Stop(process=name, expect=expect):
            return name, expect
    return "", None
