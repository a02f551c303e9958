"""Leases and pins: what keeps a blob from being collected although nothing refers to it (yet).

Both are durable, belong to an owner, and may name blobs that are not here yet. A lease ends by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import lmdb
from blake3 import blake3

from cas.batch import Batch
from cas.digest import RAW_BYTES
from cas.entries import BadEntry, seal, unseal
from cas.environment import Environment

MAX_OWNER_BYTES = 1024
_OWNER_BYTES = 16
_EXPIRY = struct.Struct("<d")


def key_of(owner: str) -> bytes:
    """Raises ValueError for an owner that is empty or too long."""
    encoded = owner.encode()
    if not 0 < len(encoded) <= MAX_OWNER_BYTES:
        raise ValueError(f"an owner has 1 to {MAX_OWNER_BYTES} bytes, not {len(encoded)}")
    return blake3(encoded).digest(length=_OWNER_BYTES)


def lease(batch: Batch, raws: Iterable[bytes], owner: str, expires_unix: float) -> None:
    """Protect blobs until then; a lease that ends later already is left as it is."""
    owner_key = key_of(owner)
    for raw in sorted(raws):
        key = owner_key + raw
        if _expiry(key, batch.txn.get(key, db=batch.env.leases)) < expires_unix:
            batch.txn.put(key, seal(key, _EXPIRY.pack(expires_unix)), db=batch.env.leases)
        batch.protect(raw)


def release(batch: Batch, owner: str) -> None:
    owner_key = key_of(owner)
    with batch.txn.cursor(batch.env.leases) as cursor:
        found = cursor.set_range(owner_key)
        while found and cursor.key().startswith(owner_key):
            cursor.delete()
            found = bool(cursor.key())


def pin(batch: Batch, raw: bytes, owner: str) -> None:
    key = key_of(owner) + raw
    batch.txn.put(key, seal(key, b""), db=batch.env.pins)
    batch.protect(raw)


def unpin(batch: Batch, raw: bytes, owner: str) -> None:
    batch.txn.delete(key_of(owner) + raw, db=batch.env.pins)


def protected(
    env: Environment, txn: lmdb.Transaction[memoryview], now_unix: float, ignoring: str | None = None
) -> Iterator[bytes]:
    """Everything under a pin or a lease that has not run out, of any owner but one. A damaged lease or pin still
    protects."""
    ignored = None if ignoring is None else key_of(ignoring)
    for key, value in txn.cursor(env.leases):
        if _expiry(bytes(key), value) > now_unix and bytes(key[:_OWNER_BYTES]) != ignored:
            yield _raw(key)
    for key, _ in txn.cursor(env.pins):
        if bytes(key[:_OWNER_BYTES]) != ignored:
            yield _raw(key)


def drop_expired(batch: Batch, now_unix: float) -> int:
    """Forget leases that have run out."""
    dropped = 0
    with batch.txn.cursor(batch.env.leases) as cursor:
        found = cursor.first()
        while found:
            if _expiry(cursor.key(), cursor.value()) > now_unix:
                found = cursor.next()
            else:
                cursor.delete()
                dropped += 1
                found = bool(cursor.key())
    return dropped


def _raw(key: bytes | memoryview) -> bytes:
    return bytes(key[_OWNER_BYTES : _OWNER_BYTES + RAW_BYTES])


def _expiry(key: bytes, sealed: bytes | memoryview | None) -> float:
    if sealed is None:
        return float("-inf")
    try:
        expiry: float = _EXPIRY.unpack(unseal(key, sealed))[0]
    except (BadEntry, struct.error):
        return float("inf")
    return expiry
