"""Deltas that are kept beside the blobs they make, because they are what a receiver of the next version needs.

When `cas.repack` turns the newest version of a name into a whole copy, so that reading it costs no decoding, the delta
that it had been stored as moves here: a host that has the version before it is still sent a few kilobytes. A kept delta
is no promise: it goes when either of its two blobs does, and when newer versions have made it useless.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import lmdb
from blake3 import blake3

from cas import entries
from cas.batch import Batch
from cas.bodies import RecordMissing, read_stored, write_records
from cas.digest import RAW_BYTES, Digest, from_raw
from cas.entries import CHECK_BYTES, DELTA, NOT_PACKED, BadEntry, Entry
from cas.environment import Environment


def keep(batch: Batch, raw: bytes, base: bytes, size: int, patch: bytes) -> None:
    """Keep a delta that makes a blob of `size` bytes from a base. In a body of its own: there are few of them."""
    key = raw + base
    if batch.txn.get(key, db=batch.env.patches) is not None:
        return
    body = batch.new_body()
    write_records(batch.env, batch.txn, body, patch)
    check = blake3(patch).digest(length=CHECK_BYTES)
    entry = Entry(DELTA, size, len(patch), body, NOT_PACKED, check, base, 1, len(patch))
    batch.txn.put(key, entries.encode(raw, entry), db=batch.env.patches)
    batch.totals.stored_bytes += len(patch)


def drop(batch: Batch, key: bytes) -> None:
    """Drop a kept delta, if it is there."""
    sealed = batch.txn.get(key, db=batch.env.patches)
    if sealed is None:
        return
    entry = _entry(key, sealed)
    batch.txn.delete(key, db=batch.env.patches)
    if entry is not None:
        batch.drop_records(entry.body)
        batch.totals.stored_bytes -= entry.stored


def sizes(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes) -> list[tuple[bytes, int]]:
    """The base and the bytes of each kept delta of a blob."""
    return [(key[RAW_BYTES:], entry.stored) for key, entry in _of(env, txn, raw)]


def smallest(
    env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes, bases: Collection[bytes]
) -> tuple[Digest, bytes] | None:
    """The smallest sound one from one of these bases."""
    fitting = [(entry.stored, key, entry) for key, entry in _of(env, txn, raw) if key[RAW_BYTES:] in bases]
    for _, key, entry in sorted(fitting, key=lambda one: one[0]):
        patch = _bytes_of(env, txn, entry)
        if patch is not None:
            return from_raw(key[RAW_BYTES:]), patch
    return None


def every(env: Environment, txn: lmdb.Transaction[memoryview]) -> list[tuple[bytes, Entry | None]]:
    """Key (digest of the blob, digest of the base) and entry, None where that is damaged, of all that are kept."""
    return [(bytes(key), _entry(bytes(key), value)) for key, value in txn.cursor(env.patches)]


def is_sound(env: Environment, txn: lmdb.Transaction[memoryview], key: bytes) -> bool:
    """Whether a kept delta is what it was."""
    sealed = txn.get(key, db=env.patches)
    entry = None if sealed is None else _entry(key, sealed)
    return entry is not None and _bytes_of(env, txn, entry) is not None


def _of(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes) -> Iterator[tuple[bytes, Entry]]:
    with txn.cursor(env.patches) as cursor:
        more = cursor.set_range(raw)
        while more and bytes(cursor.key()[:RAW_BYTES]) == raw:
            key = bytes(cursor.key())
            entry = _entry(key, cursor.value())
            if entry is not None:
                yield key, entry
            more = cursor.next()


def _bytes_of(env: Environment, txn: lmdb.Transaction[memoryview], entry: Entry) -> bytes | None:
    try:
        stored = read_stored(env, txn, entry)
    except RecordMissing:
        return None
    return stored if blake3(stored).digest(length=CHECK_BYTES) == entry.check else None


def _entry(key: bytes, sealed: bytes | memoryview) -> Entry | None:
    try:
        entry = entries.decode(key[:RAW_BYTES], sealed)
    except BadEntry:
        return None
    return entry if entry.base == key[RAW_BYTES:] else None
