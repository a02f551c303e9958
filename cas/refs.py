"""Refs: named pointers to blobs, moved by compare and swap. The only mutable thing in the system."""

from __future__ import annotations

from collections.abc import Iterator

import lmdb

from cas.batch import Batch
from cas.digest import RAW_BYTES, Digest, from_raw
from cas.entries import BadEntry, seal, unseal
from cas.environment import Environment
from cas.errors import RefMoved, StoreUnreadable

MAX_REF_BYTES = 400
"""What fits into an LMDB key."""


def key_of(name: str) -> bytes:
    """Raises ValueError for a name that is empty or too long."""
    key = name.encode()
    if not 0 < len(key) <= MAX_REF_BYTES:
        raise ValueError(f"a ref's name has 1 to {MAX_REF_BYTES} bytes, not {len(key)}")
    return key


def read(env: Environment, txn: lmdb.Transaction[bytes] | lmdb.Transaction[memoryview], name: str) -> Digest | None:
    """Raises StoreUnreadable where the ref is damaged: a guess would be worse."""
    key = key_of(name)
    sealed = txn.get(key, db=env.refs)
    return None if sealed is None else _target(env, key, sealed)


def move(batch: Batch, name: str, expected: Digest | None, to: bytes | None) -> None:
    """Raises RefMoved."""
    actual = read(batch.env, batch.txn, name)
    if actual != expected:
        raise RefMoved(name, expected, actual)
    key = key_of(name)
    if to is None:
        batch.txn.delete(key, db=batch.env.refs)
    else:
        batch.txn.put(key, seal(key, to), db=batch.env.refs)
        batch.protect(to)


def every(env: Environment, txn: lmdb.Transaction[memoryview]) -> Iterator[tuple[str, Digest]]:
    for key, sealed in txn.cursor(env.refs):
        yield bytes(key).decode(), _target(env, bytes(key), sealed)


def _target(env: Environment, key: bytes, sealed: bytes | memoryview) -> Digest:
    try:
        raw = unseal(key, sealed)
        if len(raw) != RAW_BYTES:
            raise BadEntry("a ref of the wrong length")
    except BadEntry as error:
        raise StoreUnreadable(
            f"the ref {key.decode(errors='replace')!r} in the store {env.path} is damaged",
            hint="find the newest release in a host's journal and move the ref there again",
        ) from error
    return from_raw(raw)
