"""The history of a name: which blobs were put under it, so that the next version can be kept as a delta of the last.

A name is any text that means "the same thing, later", such as a path. It protects nothing from collection.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

import lmdb
from blake3 import blake3

from cas.batch import Batch
from cas.entries import BadEntry, seal, unseal
from cas.environment import Environment

MAX_NAME_BYTES = 4096
HISTORY_LENGTH = 256
"""Older blobs of a name are forgotten (the blobs themselves stay)."""

_NAME_BYTES = 16
_SEQUENCE = struct.Struct(">Q")
_LAST = (1 << 64) - 1


def key_of(name: str) -> bytes:
    """Raises ValueError for a name that is empty or too long."""
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME_BYTES:
        raise ValueError(f"a blob's name has 1 to {MAX_NAME_BYTES} bytes, not {len(encoded)}")
    return blake3(encoded).digest(length=_NAME_BYTES)


def newest_first(
    env: Environment, txn: lmdb.Transaction[bytes] | lmdb.Transaction[memoryview], name: str
) -> Iterator[bytes]:
    """Raw digests put under a name, each once. Damaged entries are passed over: they only cost a base."""
    return newest_first_of_key(env, txn, key_of(name))


def newest_first_of_key(
    env: Environment, txn: lmdb.Transaction[bytes] | lmdb.Transaction[memoryview], name_key: bytes
) -> Iterator[bytes]:
    """As `newest_first`, for a name of which only the key is known (`keys`)."""
    seen = set()
    for _, raw in _entries(env, txn, name_key):
        if raw is not None and raw not in seen:
            seen.add(raw)
            yield raw


def remember(batch: Batch, name: str, raw: bytes) -> None:
    """Make a blob the newest of a name."""
    name_key = key_of(name)
    last = next(_entries(batch.env, batch.txn, name_key), None)
    if last is not None and last[1] == raw:
        return
    sequence = last[0] + 1 if last else 0
    key = name_key + _SEQUENCE.pack(sequence)
    batch.txn.put(key, seal(key, raw), db=batch.env.names)
    if sequence >= HISTORY_LENGTH:
        batch.txn.delete(name_key + _SEQUENCE.pack(sequence - HISTORY_LENGTH), db=batch.env.names)


def keys(env: Environment, txn: lmdb.Transaction[memoryview]) -> list[bytes]:
    """Of all names that have a history."""
    found = []
    with txn.cursor(env.names) as cursor:
        more = cursor.first()
        while more:
            found.append(bytes(cursor.key()[:_NAME_BYTES]))
            more = cursor.set_range(found[-1] + _SEQUENCE.pack(_LAST))
    return found


def newest_of_all(env: Environment, txn: lmdb.Transaction[bytes] | lmdb.Transaction[memoryview]) -> Iterator[bytes]:
    """The raw digest that was last put under each name."""
    with txn.cursor(env.names) as cursor:
        found = cursor.last()
        while found:
            key = bytes(cursor.key())
            with suppress(BadEntry):
                yield unseal(key, cursor.value())
            # On to the last entry of the name before.
            found = cursor.set_range(key[:_NAME_BYTES]) and cursor.prev()


def _entries(
    env: Environment, txn: lmdb.Transaction[bytes] | lmdb.Transaction[memoryview], name_key: bytes
) -> Iterator[tuple[int, bytes | None]]:
    """(sequence, raw digest or None where damaged), newest first."""
    with txn.cursor(env.names) as cursor:
        found = cursor.set_range(name_key + _SEQUENCE.pack(_LAST))
        found = cursor.prev() if found else cursor.last()
        while found:
            key = bytes(cursor.key())
            if not key.startswith(name_key):
                return
            try:
                raw: bytes | None = unseal(key, cursor.value())
            except BadEntry:
                raw = None
            yield _SEQUENCE.unpack(key[_NAME_BYTES:])[0], raw
            found = cursor.prev()
