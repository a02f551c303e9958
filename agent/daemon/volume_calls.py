"""The calls on volumes: create or grow, delete, take a snapshot, restore one.

Making and deleting take turns. A snapshot or a restoring may take long: it is carried out to its end even where the
caller has gone, the repetition of the call joins it, and meanwhile every other call on that volume but growing it is
refused as BUSY. Its process may start and stop as it likes during a snapshot, and not have the volume at the end of a
restoring.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.api.answers import Outcome, Reason, SnapshotFacts
from agent.api.calls import CreateVolume, DeleteVolume, Envelope, RestoreVolume, SnapshotVolume, call_digest
from agent.api.journal import Event
from agent.daemon.announcing import announced_on_host
from agent.daemon.journal import Facts, Journal
from agent.daemon.processes import Processes
from agent.daemon.refusal import Refused
from agent.daemon.snapshots import kept as kept_snapshots
from agent.daemon.snapshots.worker import WORK_WITHIN_S, Done, Failed, Order, Place, Restore, Take, work
from agent.daemon.volumes import Volumes
from agent.sandbox import growing, mounts
from cas.digest import Digest, short
from cas.errors import BlobMissing
from cas.interface import BlobStore
from cas.tree import Snapshot, blobs_of, decode_snapshot, reader

UNCHANGED: Final = Outcome(changed=False, detail="what was asked for is there already")
RESTORE_OWNER: Final = "restore"


class Home(NamedTuple):
    """What the calls need to know of their host."""

    host: str
    store: Path
    store_quota_bytes: int | None
    work: Path


class VolumeCalls:
    """Use from one event loop."""

    def __init__(self, home: Home, processes: Processes, volumes: Volumes, journal: Journal, store: BlobStore) -> None:
        self._home = home
        self._processes = processes
        self._volumes = volumes
        self._journal = journal
        self._store = store
        self._turn = asyncio.Lock()
        self._long: dict[Digest, asyncio.Task[Outcome]] = {}
        self._deciding: Counter[str] = Counter()
        self._busy: dict[str, str] = {}
        """What is being done with a volume."""
        self._to_come: dict[str, int] = {}
        """Bytes that volumes which are being restored will be promised."""

    async def close(self) -> None:
        """Give up what takes long; whom a snapshot holds goes on at once."""
        tasks = list(self._long.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def blobs_kept(self) -> set[Digest]:
        """What a collection must leave. Reads the store: call it in a thread."""
        homes = [self._volumes.home(name) for name in self._volumes.sizes]
        snapshots = [one.facts.snapshot for home in homes for one in kept_snapshots.load(home)]
        return kept_snapshots.protected(self._store, snapshots)

    # --- making and deleting -----------------------------------------------------------------------------------------

    @property
    def deciding(self) -> tuple[str, ...]:
        """Volumes that are about to be made, grown or deleted."""
        return tuple(sorted(self._deciding))

    @asynccontextmanager
    async def _turn_on(self, volume: str) -> AsyncIterator[None]:
        self._deciding[volume] += 1
        try:
            async with self._turn:
                yield
        finally:
            self._deciding -= Counter([volume])

    async def create(self, call: CreateVolume, envelope: Envelope, by: str) -> Outcome:
        async with self._turn_on(call.volume):
            has = self._volumes.sizes.get(call.volume)
            if has == call.size_bytes:
                return UNCHANGED
            if has is not None and has > call.size_bytes:
                raise Refused(
                    Reason.UNEXPECTED_STATE,
                    f"the volume {call.volume} has {has} bytes; it cannot shrink to {call.size_bytes}",
                    hint="ask for its present size or more, or move what is in it to a new volume",
                )
            if has is None:
                self._refuse_busy(call.volume)
            self._check_room(call.volume, call.size_bytes, "ask for a smaller volume")
            what = f"create volume of {call.size_bytes} bytes"
            async with announced_on_host(self._journal, _facts(call.volume, envelope, by, what)):
                await asyncio.to_thread(self._volumes.create, call.volume, call.size_bytes)
                how = "" if has is None else await asyncio.to_thread(self._grow, call.volume)
                created = _facts(call.volume, envelope, by, f"{call.size_bytes} bytes")
                await self._note(Event.VOLUME_CREATED, created)
        return Outcome(changed=True, detail=how)

    def _grow(self, volume: str) -> str:
        """Give a volume in use its new size now where that can be; how it went."""
        mount, pid = self._volumes.mount(volume), self._pid_of(volume)
        if mount is None or not pid:
            return ""
        problem = growing.grow_in_use(mount.image, os.path.realpath(mount.target), pid)
        return f"its process has the new size at its next start: {problem}" if problem else "grown while in use"

    async def delete(self, call: DeleteVolume, envelope: Envelope, by: str) -> Outcome:
        async with self._turn_on(call.volume):
            if call.volume not in self._volumes.sizes:
                return UNCHANGED
            self._refuse_held(call.volume)
            self._refuse_busy(call.volume)
            async with announced_on_host(self._journal, _facts(call.volume, envelope, by, "delete volume")):
                await asyncio.to_thread(self._volumes.delete, call.volume)
                await self._note(Event.VOLUME_DELETED, _facts(call.volume, envelope, by, ""))
        return Outcome(changed=True)

    # --- snapshots ---------------------------------------------------------------------------------------------------

    async def snapshot(self, call: SnapshotVolume, envelope: Envelope, by: str) -> Outcome:
        return await self._carry_out(envelope, self._snapshot(call, envelope, by))

    async def restore(self, call: RestoreVolume, envelope: Envelope, by: str) -> Outcome:
        return await self._carry_out(envelope, self._restore(call, envelope, by))

    async def _carry_out(self, envelope: Envelope, act: Coroutine[Any, Any, Outcome]) -> Outcome:
        call = call_digest(envelope)
        task = self._long.get(call)
        if task is None:
            task = self._long[call] = asyncio.get_running_loop().create_task(act)
            task.add_done_callback(lambda _: self._long.pop(call, None))
        else:
            act.close()
        return await asyncio.shield(task)

    async def _snapshot(self, call: SnapshotVolume, envelope: Envelope, by: str) -> Outcome:
        size_bytes = self._volumes.sizes.get(call.volume)
        if size_bytes is None:
            raise Refused(Reason.NOT_FOUND, f"no volume {call.volume} on this host", hint="`lowcloud volume ls`")
        home = self._volumes.home(call.volume)
        for one in await asyncio.to_thread(kept_snapshots.load, home):
            if one.nonce == call.nonce:
                return Outcome(changed=False, detail=UNCHANGED.detail, snapshot=one.facts)
        with self._occupied(call.volume, "a snapshot of it is being taken"):
            facts = _facts(call.volume, envelope, by, "snapshot")
            async with announced_on_host(self._journal, facts):
                order = await asyncio.to_thread(self._order_to_take, call, size_bytes, by)
                done = await _done(order)
                found = SnapshotFacts(
                    snapshot=done.snapshot,
                    at_unix_ns=done.at_unix_ns,
                    entries=done.entries,
                    data_bytes=done.data_bytes,
                    read_bytes=done.read_bytes,
                    blobs=done.blobs,
                    stored_bytes=done.bytes,
                    pause_ms=done.paused_s * 1000,
                    left_out=done.left_out,
                )
                await asyncio.to_thread(kept_snapshots.add, home, kept_snapshots.Kept(call.nonce, found))
                told = f"{call.volume}: {done.snapshot}, {done.entries} entries, held for {found.pause_ms:.1f} ms"
                await self._note(Event.VOLUME_SNAPSHOT, {**facts, "detail": told})
        return Outcome(changed=True, blobs=done.blobs, bytes=done.bytes, snapshot=found)

    def _order_to_take(self, call: SnapshotVolume, size_bytes: int, by: str) -> Take:
        pid, mount = self._pid_of(call.volume), self._volumes.mount(call.volume)
        if mount is not None and not pid and mounts.attached(mount.image):
            raise Refused(
                Reason.BUSY, f"the process that has {call.volume} is about to start or to end", hint="try again"
            )
        return Take(
            place=self._place(self._volumes.path(call.volume), mount.image if mount else ""),
            memory=str(self._volumes.home(call.volume) / kept_snapshots.MEMORY),
            pid=pid,
            max_pause_s=call.max_pause_s,
            volume=call.volume,
            host=self._home.host,
            size_bytes=size_bytes,
            by=by,
            message=call.message,
        )

    async def _restore(self, call: RestoreVolume, envelope: Envelope, by: str) -> Outcome:
        name = call.volume
        if self._volumes.restored_by(name) == call.nonce:
            return UNCHANGED
        exists = name in self._volumes.sizes
        if exists and not call.replace:
            raise Refused(
                Reason.UNEXPECTED_STATE,
                f"there is a volume {name} on this host",
                hint="`--replace` gives up what is in it; a snapshot of it first costs little",
            )
        self._refuse_held(name)
        with self._occupied(name, "it is being restored"):
            self._check_room(name, call.size_bytes, "restore it elsewhere, or make room")
            self._to_come[name] = call.size_bytes
            try:
                snapshot = await asyncio.to_thread(self._require, call)
                taken = datetime.fromtimestamp(snapshot.at_unix_ns // 10**9, UTC)
                source = f"{snapshot.volume}@{snapshot.host} of {taken:%Y-%m-%d %H:%M:%S} UTC"
                facts = _facts(name, envelope, by, f"restore {call.snapshot}, {source}, {call.size_bytes} bytes")
                async with announced_on_host(self._journal, facts):
                    done = await self._restored(call)
                    if exists:
                        gone = f"{name}: replaced by {short(call.snapshot)}"
                        await self._note(Event.VOLUME_DELETED, {**facts, "detail": gone})
                    made = f"{name}: {call.size_bytes} bytes, restored from {call.snapshot}, {source}"
                    await self._note(Event.VOLUME_CREATED, {**facts, "detail": made})
            finally:
                del self._to_come[name]
        return Outcome(changed=True, bytes=done.bytes, detail=f"restored from {source}")

    async def _restored(self, call: RestoreVolume) -> Done:
        try:
            fresh = await asyncio.to_thread(self._volumes.prepare, call.volume, call.size_bytes, call.nonce)
            place = self._place(fresh.data, str(fresh.image or ""))
            done = await _done(Restore(place, call.snapshot))
            self._refuse_held(call.volume)
            self._volumes.swap_in(call.volume)  # in one turn of the loop with the look at who holds it
        finally:
            await asyncio.to_thread(self._volumes.settle, call.volume)
            await asyncio.to_thread(self._store.release, f"{RESTORE_OWNER}:{call.volume}")
        return done

    def _require(self, call: RestoreVolume) -> Snapshot:
        """The snapshot, with all that it takes protected. Raises Refused, BlobDamaged, TreeInvalid."""
        try:
            return self._protected(call, f"{RESTORE_OWNER}:{call.volume}")
        except BlobMissing as error:
            raise _missing([error.digest]) from error

    def _protected(self, call: RestoreVolume, owner: str) -> Snapshot:
        read = reader(self._store)
        self._store.lease([call.snapshot], owner=owner, ttl_s=WORK_WITHIN_S)
        snapshot = decode_snapshot(read(call.snapshot))
        if snapshot.data_bytes > call.size_bytes:
            raise Refused(
                Reason.NO_ROOM,
                f"the snapshot has {snapshot.data_bytes} bytes, the volume would have {call.size_bytes}",
                hint=f"the volume that it was taken of had {snapshot.size_bytes}",
            )
        self._store.lease(snapshot.pages, owner=owner, ttl_s=WORK_WITHIN_S)
        blobs = blobs_of(call.snapshot, read)
        self._store.lease(blobs, owner=owner, ttl_s=WORK_WITHIN_S)
        missing = self._store.missing(blobs)
        if missing:
            raise _missing(missing)
        return snapshot

    # --- what holds --------------------------------------------------------------------------------------------------

    def _place(self, data: Path, image: str) -> Place:
        return Place(
            store=str(self._home.store),
            store_quota_bytes=self._home.store_quota_bytes,
            work=str(self._home.work),
            data=os.path.realpath(data),
            image=image,
        )

    def _pid_of(self, volume: str) -> int:
        """Of the guest that has a volume; 0 where none runs."""
        process = self._processes.holder_of(volume)
        lifecycle = self._processes.get(process) if process else None
        running = lifecycle.standing.running if lifecycle else None
        return running.pid if running is not None and running.exit_code is None else 0

    def _check_room(self, volume: str, size_bytes: int, hint: str) -> None:
        sizes = {**self._volumes.sizes, **self._to_come, volume: size_bytes}
        hint = f"{hint}; `lowcloud host show` says what the host has"
        self._processes.check_room(self._processes.desired(), hint=hint, volumes_bytes=sum(sizes.values()))

    def _refuse_held(self, volume: str) -> None:
        holder = self._processes.holder_of(volume)
        if holder is not None:
            raise Refused(Reason.IN_USE, f"the volume {volume} is held by {holder}", hint=f"stop {holder} first")

    def _refuse_busy(self, volume: str) -> None:
        if volume in self._busy:
            raise Refused(Reason.BUSY, f"the volume {volume}: {self._busy[volume]}", hint="wait for that to end")

    @contextmanager
    def _occupied(self, volume: str, by_what: str) -> Iterator[None]:
        self._refuse_busy(volume)
        self._busy[volume] = by_what
        try:
            yield
        finally:
            del self._busy[volume]

    async def _note(self, event: Event, facts: Facts) -> None:
        await asyncio.to_thread(lambda: self._journal.append(event, **facts))


def _missing(blobs: list[Digest]) -> Refused:
    return Refused(
        Reason.MISSING_BLOBS,
        f"blobs of the snapshot are not on this host: {len(blobs)} or more",
        hint="send them first; `lowcloud volume restore` does",
        missing=tuple(blobs),
    )


async def _done(order: Order) -> Done:
    """Raises Refused."""
    verdict = await work(order)
    if verdict.done is None:
        failed = verdict.failed or Failed(Reason.INTERNAL, "the snapshot's process said nothing")
        raise Refused(failed.reason, failed.problem, hint=failed.hint)
    return verdict.done


def _facts(volume: str, envelope: Envelope, by: str, what: str) -> Facts:
    return {
        "release": envelope.release,
        "plan": envelope.plan,
        "call": call_digest(envelope),
        "by": by,
        "detail": f"{volume}: {what}" if what else volume,
    }
