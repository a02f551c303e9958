"""What each call does: check, announce in the journal, act. One method per call.

Order inside a call on a process, under that process's turn: is what is asked for there already (then nothing is done)?
Does `expect` hold? Is the specification sound, is there room, are its blobs here and compiled? Only then the call is
announced in the journal, and only then anything changes. So a refusal for any of these leaves no trace and changes
nothing; a call that was announced and fails, in whatever way, is followed by a `call-failed`. Where the failure left it
half done (a lost supervisor, a full disk), that comes from the next look at the guests, which finishes or undoes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import msgspec

from agent.api.answers import Outcome, Reason
from agent.api.calls import (
    Check,
    Collect,
    Configure,
    CreateVolume,
    DeleteVolume,
    Envelope,
    Replace,
    Resize,
    Restart,
    RestoreVolume,
    SnapshotVolume,
    Stage,
    Start,
    Stop,
    call_digest,
)
from agent.api.journal import Event
from agent.api.processes import ProcessSpec, spec_digest
from agent.daemon.announcing import announced_on_host, told
from agent.daemon.code_cache import CodeCache
from agent.daemon.guests import Guests
from agent.daemon.journal import Facts, Journal
from agent.daemon.lifecycle import Lifecycle
from agent.daemon.processes import Processes
from agent.daemon.refusal import Refused
from agent.daemon.retention import STOP, blobs_of_last_releases
from agent.daemon.spec_check import check_spec
from agent.daemon.staging import Staging, blobs_of
from agent.daemon.state import Version
from agent.daemon.volume_calls import UNCHANGED, VolumeCalls
from cas.digest import Digest, short
from cas.interface import BlobSource, BlobStore

STAGED_FOR_S: Final = 3600.0
"""How long what a call brings up is protected from collection before its record protects it."""
RESIZABLE: Final = ("cores_milli", "restart", "restart_limit", "ready", "update")
GROWING: Final = ("memory_bytes",)
"""What may become more under a guest that runs, and not less."""

_log = logging.getLogger(__name__)


class Wish(NamedTuple):
    """In whose name something is done."""

    release: Digest | None
    plan: Digest | None
    call: Digest
    by: str

    def version(self, spec: ProcessSpec) -> Version:
        return Version(spec=spec, release=self.release, plan=self.plan, call=self.call, by=self.by)


Act = Callable[[Lifecycle, Wish], Coroutine[Any, Any, Outcome]]


class Handlers:
    """The calls of one host."""

    def __init__(
        self,
        processes: Processes,
        guests: Guests,
        staging: Staging,
        volume_calls: VolumeCalls,
        journal: Journal,
        store: BlobStore,
        cache: CodeCache,
        source: Callable[[], BlobSource | None] = lambda: None,
    ) -> None:
        """`source`: where blobs come from that are damaged here."""
        self._processes = processes
        self._guests = guests
        self._staging = staging
        self._volume_calls = volume_calls
        self._journal = journal
        self._store = store
        self._cache = cache
        self._source = source
        self._store_turn = asyncio.Lock()
        """Collecting and checking read the whole store: one at a time."""

    async def call(self, envelope: Envelope, *, by: str) -> Outcome:
        """Carry a call out in the name of `by`. Raises Refused."""
        match envelope.call:
            case Stage() as call:
                return await self._stage(call)
            case Start() as call:
                return await self._start(call, envelope, by)
            case Stop() as call:
                return await self._stop(call, envelope, by)
            case Replace() as call:
                return await self._replace(call, envelope, by)
            case Configure() as call:
                return await self._configure(call, envelope, by)
            case Resize() as call:
                return await self._resize(call, envelope, by)
            case Restart() as call:
                return await self._restart(call, envelope, by)
            case CreateVolume() as call:
                return await self._volume_calls.create(call, envelope, by)
            case DeleteVolume() as call:
                return await self._volume_calls.delete(call, envelope, by)
            case SnapshotVolume() as call:
                return await self._volume_calls.snapshot(call, envelope, by)
            case RestoreVolume() as call:
                return await self._volume_calls.restore(call, envelope, by)
            case Collect() as call:
                return await self._collect(call, envelope, by)
            case Check():
                return await self._check()

    def deciding(self) -> tuple[str, ...]:
        """What the calls are about that may change at any moment what this host runs, in words."""
        processes = [f"process {name}" for name in self._processes.deciding()]
        return (*processes, *(f"volume {name}" for name in self._volume_calls.deciding))

    async def uncompiled(self, binaries: Sequence[Digest]) -> tuple[Digest, ...]:
        """Those of which there is no compiled code that this host's engine may use."""
        return tuple([binary for binary in binaries if not await asyncio.to_thread(self._cache.holds, binary)])

    # --- processes ---------------------------------------------------------------------------------------------------

    async def _on_process(self, process: str, envelope: Envelope, by: str, act: Act) -> Outcome:
        lifecycle = self._processes.get(process)
        if lifecycle is None:
            raise Refused(Reason.NOT_FOUND, f"no process {process} on this host", hint="`lowcloud ps` shows what is")
        return await self._carry_out(lifecycle, envelope, by, act)

    async def _carry_out(self, lifecycle: Lifecycle, envelope: Envelope, by: str, act: Act) -> Outcome:
        wish = Wish(envelope.release, envelope.plan, call_digest(envelope), by)
        try:
            return await lifecycle.carry_out(wish.call, lambda: act(lifecycle, wish))
        finally:
            self._processes.drop_if_gone(lifecycle.record.process)

    async def _start(self, call: Start, envelope: Envelope, by: str) -> Outcome:
        async def act(lifecycle: Lifecycle, wish: Wish) -> Outcome:
            current = lifecycle.record.current
            if current is None:
                return await self._take_over(lifecycle, "start", wish.version(call.spec))
            if current.digest == spec_digest(call.spec):
                return UNCHANGED
            raise Refused(
                Reason.UNEXPECTED_STATE,
                f"{call.spec.name} is on this host already, as {short(current.digest)}",
                hint="replace it instead; `lowcloud plan` does where it sees what runs",
            )

        check_spec(call.spec)
        return await self._carry_out(self._processes.get_or_make(call.spec.name), envelope, by, act)

    async def _replace(self, call: Replace, envelope: Envelope, by: str) -> Outcome:
        async def act(lifecycle: Lifecycle, wish: Wish) -> Outcome:
            if _current(lifecycle).digest == spec_digest(call.spec):
                return UNCHANGED
            _expect(lifecycle, call.expect)
            return await self._take_over(lifecycle, "replace", wish.version(call.spec))

        check_spec(call.spec)
        return await self._on_process(call.spec.name, envelope, by, act)

    async def _configure(self, call: Configure, envelope: Envelope, by: str) -> Outcome:
        async def act(lifecycle: Lifecycle, wish: Wish) -> Outcome:
            current = _current(lifecycle)
            if current.spec.config == call.config:
                return UNCHANGED
            _expect(lifecycle, call.expect)
            spec = msgspec.structs.replace(current.spec, config=call.config)
            check_spec(spec)
            if spec.update.rereads and spec.config.keys() == current.spec.config.keys() and lifecycle.serves:
                return await self._reload(lifecycle, wish.version(spec))
            return await self._take_over(lifecycle, "configure", wish.version(spec))

        return await self._on_process(call.process, envelope, by, act)

    async def _restart(self, call: Restart, envelope: Envelope, by: str) -> Outcome:
        async def act(lifecycle: Lifecycle, wish: Wish) -> Outcome:
            current = _current(lifecycle)
            if lifecycle.record.nonce == call.nonce:
                return UNCHANGED
            _expect(lifecycle, call.expect)
            version = msgspec.structs.replace(
                wish.version(current.spec),
                release=wish.release or current.release,
                plan=wish.plan or current.plan,
            )
            return await self._take_over(lifecycle, "restart", version, nonce=call.nonce)

        return await self._on_process(call.process, envelope, by, act)

    async def _resize(self, call: Resize, envelope: Envelope, by: str) -> Outcome:
        async def act(lifecycle: Lifecycle, wish: Wish) -> Outcome:
            current = _current(lifecycle)
            if current.digest == spec_digest(call.spec):
                return UNCHANGED
            _expect(lifecycle, call.expect)
            fixed = _fixed_at_start(current.spec, call.spec)
            if fixed:
                raise Refused(
                    Reason.BAD_REQUEST,
                    f"{call.spec.name} cannot be resized: {', '.join(fixed)} would change too",
                    hint="use replace, which swaps: a guest that runs can be given more memory, not less, and other "
                    "cores; all else is fixed at its start",
                )
            with self._processes.room_for(call.spec):
                problem = await lifecycle.grow(call.spec)
                if not problem:
                    async with self._announced(lifecycle, "resize", wish.version(call.spec)):
                        await lifecycle.resize(call.spec, release=wish.release, plan=wish.plan)
                        await lifecycle.share()
                    await self._processes.place()
                    return Outcome(changed=True)
            outcome = await self._take_over(lifecycle, "replace", wish.version(call.spec))
            return msgspec.structs.replace(outcome, detail=f"by a swap: {problem}")

        check_spec(call.spec)
        return await self._on_process(call.spec.name, envelope, by, act)

    async def _stop(self, call: Stop, envelope: Envelope, by: str) -> Outcome:
        async def act(lifecycle: Lifecycle, wish: Wish) -> Outcome:
            current = lifecycle.record.current
            if current is None:
                return UNCHANGED
            _expect(lifecycle, call.expect)
            stopped = msgspec.structs.replace(wish.version(current.spec), guest=current.guest)
            async with self._announced(lifecycle, STOP, stopped):
                steps = await lifecycle.stop()
            return Outcome(changed=True, steps=steps)

        lifecycle = self._processes.get(call.process)
        if lifecycle is None:
            return UNCHANGED
        outcome = await self._carry_out(lifecycle, envelope, by, act)
        await self._processes.place()
        return outcome

    async def _take_over(self, lifecycle: Lifecycle, what: str, version: Version, *, nonce: str = "") -> Outcome:
        """Check what can be checked beforehand, announce, and swap."""
        with self._processes.room_for(version.spec):
            await self._staging.stage([version.spec], hold_s=STAGED_FOR_S)
            async with self._announced(lifecycle, what, version):
                await self._processes.place()
                steps = await lifecycle.take_over(version, nonce=nonce)
        return Outcome(changed=True, steps=steps)

    async def _reload(self, lifecycle: Lifecycle, version: Version) -> Outcome:
        await self._staging.stage([version.spec], hold_s=STAGED_FOR_S)
        async with self._announced(lifecycle, "reload", version):
            steps = await lifecycle.reload(version)
        return Outcome(changed=True, steps=steps, detail="the running guest got the new files")

    @asynccontextmanager
    async def _announced(self, lifecycle: Lifecycle, what: str, version: Version) -> AsyncIterator[None]:
        """Announce a call on a process; a failure inside that leaves nothing to finish or to undo is noted."""
        await self._guests.announce(Event.CALL, version, detail=what)
        try:
            yield
        except Exception as error:
            if not lifecycle.is_half_done(version):
                await self._guests.note(Event.CALL_FAILED, version, detail=f"{what}: {told(error)}")
            raise

    # --- blobs -------------------------------------------------------------------------------------------------------

    async def _stage(self, call: Stage) -> Outcome:
        for spec in call.specs:
            check_spec(spec)
        specs = {spec.name: spec for spec in call.specs}
        if len(specs) < len(call.specs):
            raise Refused(Reason.BAD_REQUEST, "two specifications to stage have the same name")
        hint = "choose another host, or ask for less; `lowcloud host show` says what it has"
        self._processes.check_room(specs, hint=hint, volumes_bytes=0)
        compiled = self._staging.compiled
        await self._staging.stage(call.specs, hold_s=call.hold_s)
        fresh = self._staging.compiled - compiled
        return Outcome(changed=fresh > 0, detail=f"{fresh} programs compiled")

    async def _collect(self, call: Collect, envelope: Envelope, by: str) -> Outcome:
        async with self._turn_on_store():
            facts: Facts = {"call": call_digest(envelope), "by": by, "detail": f"collect, keep {call.keep}"}
            async with announced_on_host(self._journal, facts):
                held = {digest for spec in self._processes.specs_held() for digest in blobs_of(spec)}
                kept = await asyncio.to_thread(blobs_of_last_releases, self._journal.entries(), call.keep)
                kept |= await asyncio.to_thread(self._volume_calls.blobs_kept)
                collected = await asyncio.to_thread(self._store.collect, held | kept)
                code_bytes = await asyncio.to_thread(self._cache.prune, held | kept, to_bytes=0)
                detail = f"{collected.blobs} blobs, {collected.bytes} bytes, and {code_bytes} bytes of compiled code"
                await asyncio.to_thread(self._journal.append, Event.COLLECTED, by=by, detail=detail)
        return Outcome(
            changed=bool(collected.blobs or code_bytes),
            blobs=collected.blobs,
            bytes=collected.bytes,
            detail=detail,
            damaged=tuple(damage.digest for damage in collected.failed),
        )

    async def _check(self) -> Outcome:
        async with self._turn_on_store():
            source = self._source()
            checked = await asyncio.to_thread(lambda: self._store.check(source=source))
        for damage in checked.damaged:
            end = "repaired from another host" if damage.repaired else "not repaired"
            _log.warning("blob %s is damaged: %s; %s", damage.digest, damage.reason, end)
        damaged = tuple(damage.digest for damage in checked.damaged if not damage.repaired)
        repaired = len(checked.damaged) - len(damaged)
        return Outcome(
            changed=repaired > 0,
            blobs=checked.blobs,
            bytes=checked.bytes,
            damaged=damaged,
            detail=f"damaged, and repaired from other hosts: {repaired}" if repaired else "",
        )

    @asynccontextmanager
    async def _turn_on_store(self) -> AsyncIterator[None]:
        if self._store_turn.locked():
            raise Refused(Reason.BUSY, "this host's store is being collected or checked", hint="ask again later")
        async with self._store_turn:
            yield


def _fixed_at_start(old: ProcessSpec, new: ProcessSpec) -> list[str]:
    """The fields in which these differ and that a guest which runs cannot be given."""
    differing = [name for name in ProcessSpec.__struct_fields__ if getattr(old, name) != getattr(new, name)]
    growing = {name for name in GROWING if getattr(old, name) < getattr(new, name)}
    return [name for name in differing if name not in RESIZABLE and name not in growing]


def _current(lifecycle: Lifecycle) -> Version:
    current = lifecycle.record.current
    if current is None:
        process = lifecycle.record.process
        raise Refused(Reason.NOT_FOUND, f"no process {process} on this host", hint="`lowcloud ps` shows what is")
    return current


def _expect(lifecycle: Lifecycle, expect: Digest) -> None:
    """Raises Refused(UNEXPECTED_STATE) where another specification runs than the caller believes."""
    current = _current(lifecycle)
    if current.digest != expect:
        raise Refused(
            Reason.UNEXPECTED_STATE,
            f"{current.spec.name} is {short(current.digest)} on this host, not {short(expect)}",
            hint="someone else changed it: plan again from what is there",
        )
