"""Collection: remove what nothing needs, in small steps, while everything else goes on.

Mark, then sweep. The marker that a collection sets makes every later change note which blobs it stores, protects or
acknowledges (`Batch.touch`), and each step of the sweep looks at these notes in its own transaction; blobs newer than
the marker are never looked at. So nothing that is wanted between mark and sweep is lost. A collection that dies leaves
a store that is whole; the next one starts over.

The bases of what stays, stay. Packs of which less than half is left are written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock

import msgspec

from cas import begun, entries, incoming, patches, protection, reading, refs, similarity
from cas.access import Access
from cas.batch import Batch, clear_mark, set_mark, sparse_packs
from cas.bodies import RecordMissing, read_stored
from cas.digest import RAW_BYTES, Digest, from_raw, to_raw
from cas.entries import BadEntry, Entry
from cas.errors import BlobDamaged, BlobMissing, CasError, StoreBusy
from cas.interface import Collected, Damage
from cas.lockfile import FileLock

SCAN_BLOBS = 2048
SWEEP_BLOBS = 512
REPACK_BYTES = 4 << 20
"""How much one transaction looks at, removes, or writes anew."""


class _Tally:
    """What a sweep has done so far."""

    def __init__(self) -> None:
        self.blobs = 0
        self.bytes = 0
        self.kept = 0
        self.failed: list[Damage] = []


class _Doomed(msgspec.Struct, frozen=True):
    raw: bytes
    stored: int


def collect(access: Access, roots: Iterable[Digest], *, dry_run: bool, ignoring: str | None = None) -> Collected:
    """Leases and pins of the owner `ignoring` protect nothing. Raises StoreBusy where another collection is running."""
    named = [to_raw(root) for root in roots]
    tally = _Tally()
    if dry_run:
        keep = _mark(access, named, tally, ignoring)
        for group in _doomed(access, keep, None, tally):
            tally.blobs += len(group)
            tally.bytes += sum(item.stored for item in group)
    else:
        busy = StoreBusy(f"the store {access.env.path} is being collected already", hint="wait until that has ended")
        with alone(access.env.collect_lock, access.env.path / "collect.lock", busy):
            newest = access.write(set_mark)
            try:
                keep = _mark(access, named, tally, ignoring)
                for group in _doomed(access, keep, newest, tally):
                    _sweep(access, group, tally)
                _drop_useless_patches(access)
                _discard_abandoned(access)
                _repack(access, tally)
            finally:
                access.write(clear_mark)
    return Collected(tally.blobs, tally.bytes, tally.kept, tuple(tally.failed))


@contextmanager
def alone(within: Lock, lock_file: Path, busy: StoreBusy) -> Iterator[None]:
    """One at a time, in this process and in others. Raises `busy`."""
    if not within.acquire(blocking=False):
        raise busy
    try:
        lock = FileLock(lock_file)
        try:
            if not lock.try_acquire():
                raise busy
            yield
        finally:
            lock.close()
    finally:
        within.release()


def _mark(access: Access, roots: list[bytes], tally: _Tally, ignoring: str | None) -> set[bytes]:
    """Everything that must stay: roots, refs, leases, pins, and what these are built on."""
    now = access.clock()
    with access.env.reading() as txn:
        wanted = set(roots)
        wanted.update(protection.protected(access.env, txn, now, ignoring))
        wanted.update(to_raw(target) for _, target in refs.every(access.env, txn))
    keep: set[bytes] = set()
    waiting = list(wanted)
    while waiting:
        group, waiting = waiting[-SCAN_BLOBS:], waiting[:-SCAN_BLOBS]
        with access.env.reading() as txn:
            for raw in group:
                if raw in keep:
                    continue
                keep.add(raw)
                try:
                    entry = reading.find_entry(access.env, txn, raw)
                except BlobDamaged as error:
                    tally.failed.append(Damage(error.digest, error.reason))
                    continue
                if entry is not None and entry.base is not None:
                    waiting.append(entry.base)
    return keep


def _doomed(access: Access, keep: set[bytes], newest: int | None, tally: _Tally) -> Iterator[list[_Doomed]]:
    """Blobs that nothing needs, in groups, found in short transactions in the order of their digests."""
    group: list[_Doomed] = []
    for raw, entry in scan(access):
        if raw in keep:
            tally.kept += 1
        elif isinstance(entry, str):
            tally.failed.append(Damage(from_raw(raw), entry))
            tally.kept += 1
        elif newest is not None and entry.body >= newest:
            tally.kept += 1
        else:
            group.append(_Doomed(raw, entry.stored))
        if len(group) >= SWEEP_BLOBS:
            yield group
            group = []
    if group:
        yield group


def scan(access: Access) -> Iterator[tuple[bytes, Entry | str]]:
    """Every blob in the order of the digests, with its entry or what is wrong with it. No transaction stays open."""
    after = b""
    while True:
        found: list[tuple[bytes, Entry | str]] = []
        with access.env.reading() as txn, txn.cursor(access.env.blobs) as cursor:
            more = cursor.set_range(after) if after else cursor.first()
            while more and len(found) < SCAN_BLOBS:
                raw = bytes(cursor.key())
                try:
                    found.append((raw, entries.decode(raw, cursor.value())))
                except BadEntry as error:
                    found.append((raw, str(error)))
                more = cursor.next()
        yield from found
        if not more:
            return
        after = found[-1][0] + b"\0"


def _sweep(access: Access, group: list[_Doomed], tally: _Tally) -> None:
    """Remove a group in one transaction; where that fails, one by one, so that a bad item does not stop the rest."""
    try:
        _count(tally, group, access.write(partial(_remove, group=group)))
    except StoreBusy:
        raise
    except CasError:
        for item in group:
            try:
                _count(tally, [item], access.write(partial(_remove, group=[item])))
            except StoreBusy:
                raise
            except CasError as error:
                tally.failed.append(Damage(from_raw(item.raw), str(error)))
                tally.kept += 1


def _count(tally: _Tally, group: list[_Doomed], removed: list[int]) -> None:
    tally.blobs += len(removed)
    tally.bytes += sum(removed)
    tally.kept += len(group) - len(removed)


def _remove(batch: Batch, group: list[_Doomed]) -> list[int]:
    """Stored bytes of each blob that was removed."""
    removed = []
    for item in group:
        if batch.touched(item.raw):
            continue
        try:
            entry = batch.entry(item.raw)
        except BadEntry:
            continue
        if entry is not None:
            batch.remove(item.raw, entry)
            if entry.size >= similarity.LEAST_BYTES:
                similarity.forget(batch, item.raw)
            removed.append(entry.stored)
    return removed


def _drop_useless_patches(access: Access) -> None:
    """Kept deltas of which one side is gone."""
    with access.env.reading() as txn:
        get, blobs = txn.get, access.env.blobs
        useless = [
            key
            for key, _ in patches.every(access.env, txn)
            if get(key[:RAW_BYTES], db=blobs) is None or get(key[RAW_BYTES:], db=blobs) is None
        ]

    def change(batch: Batch) -> None:
        for key in useless:
            patches.drop(batch, key)

    if useless:
        access.write(change)


def _discard_abandoned(access: Access) -> None:
    """Leases that have run out, and streams that will not come to an end."""
    now = access.clock()
    access.write(lambda batch: protection.drop_expired(batch, now))
    with access.env.reading() as txn:
        bodies = incoming.expired(access.env, txn, now)
        begun_there = [to_raw(digest) for digest in begun.stale(access.env, txn, bodies)]
    for body in bodies:
        access.write(partial(incoming.discard, body=body))
    for raw in begun_there:
        access.write(partial(begun.take, raw=raw))


# --- packs ----------------------------------------------------------------------------------------------------------


def _repack(access: Access, tally: _Tally) -> None:
    with access.env.reading() as txn:
        sparse = sparse_packs(access.env, txn)
    if not sparse:
        return
    group: list[bytes] = []
    size = 0
    for raw, entry in scan(access):
        if isinstance(entry, str) or not entry.packed or entry.body not in sparse:
            continue
        group.append(raw)
        size += entry.stored
        if size >= REPACK_BYTES:
            _move(access, group, sparse, tally)
            group, size = [], 0
    if group:
        _move(access, group, sparse, tally)


def _move(access: Access, group: list[bytes], sparse: set[int], tally: _Tally) -> None:
    """Write blobs into new packs. Their bytes are taken over as they are: what was damaged stays known as damaged."""
    copied: list[tuple[bytes, Entry, bytes]] = []
    with access.env.reading() as txn:
        for raw in group:
            try:
                entry = reading.get_entry(access.env, txn, raw)
                copied.append((raw, entry, read_stored(access.env, txn, entry)))
            except BlobMissing:
                continue
            except (BlobDamaged, RecordMissing) as error:
                tally.failed.append(Damage(from_raw(raw), str(error)))

    def change(batch: Batch) -> None:
        for raw, entry, stored in copied:
            try:
                now = batch.entry(raw)
            except BadEntry:
                continue
            if now is not None and now.body == entry.body and now.body in sparse:
                batch.remove(raw, now)
                batch.add(
                    raw,
                    now.encoding,
                    now.size,
                    stored,
                    now.check,
                    base=now.base,
                    depth=now.depth,
                    chain_bytes=now.chain_bytes,
                )

    access.write(change)
