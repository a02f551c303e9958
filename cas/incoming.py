"""A large blob on its way in: written into records as it arrives, in bounded memory, and indexed only when complete.

Until then its body is noted in the `pending` table with a time after which it may be thrown away, so that a process
that dies in the middle leaves nothing for ever. A flush is a job like any other, so what is written is durable.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeVar

import lmdb
from blake3 import blake3

from cas.batch import Batch
from cas.bodies import RECORD_BYTES, delete_records, record_key
from cas.entries import CHECK_BYTES, NOT_PACKED, PLAIN, BadEntry, Entry, seal, unseal
from cas.environment import Environment

FLUSH_RECORDS = 32
"""8 MiB: what a stream holds in memory, and what one flush writes."""
PENDING_TTL_S = 3600.0

_BODY = struct.Struct(">Q")
_EXPIRY = struct.Struct("<d")

Result = TypeVar("Result")
Submit = Callable[[Callable[[Batch], None], int], None]
"""Runs a job of so many bytes and returns once it is durable."""


class IncomingBody:
    """Encoded bytes that become a body. Not thread-safe; one per stream."""

    def __init__(self, submit: Submit, clock: Callable[[], float], *, checked: bool = True) -> None:
        """`checked` is False for plain bytes: their digest is their check, and they are hashed elsewhere."""
        self._submit = submit
        self._clock = clock
        self._held = bytearray()
        self._records = 0
        self._hasher = blake3() if checked else None
        self.body: int | None = None
        self.stored = 0

    def write(self, data: bytes | memoryview) -> None:
        """Raises StoreFull, StoreBusy."""
        if self._hasher is not None:
            self._hasher.update(data)
        self._held += data
        self.stored += len(data)
        while len(self._held) >= FLUSH_RECORDS * RECORD_BYTES:
            self._flush(FLUSH_RECORDS)

    def end(self) -> None:
        """Write what is left."""
        if self._held or self.body is None:
            self._flush(-(-len(self._held) // RECORD_BYTES))

    def entry(self, raw: bytes, encoding: int, size: int) -> Entry:
        """The index entry of a body that has ended."""
        if self.body is None:
            raise ValueError("a body has an entry only once it has ended")
        if encoding == PLAIN:
            check = raw[:CHECK_BYTES]
        elif self._hasher is not None:
            check = self._hasher.digest(length=CHECK_BYTES)
        else:
            raise ValueError("an encoded body needs a check of its own")
        return Entry(encoding, size, self.stored, self.body, NOT_PACKED, check, None, 0, self.stored)

    def abandon(self) -> None:
        """Delete what was written. Without effect once the body is indexed."""
        if self.body is not None:
            body = self.body
            self._submit(lambda batch: discard(batch, body), 0)

    def _flush(self, records: int) -> None:
        end = min(records * RECORD_BYTES, len(self._held))
        data = memoryview(bytes(memoryview(self._held)[:end]))
        first = self._records
        known = self.body
        given: list[int] = []

        def change(batch: Batch) -> None:
            body = batch.new_body() if known is None else known
            _note_pending(batch, body, self._clock() + PENDING_TTL_S)
            for index, start in enumerate(range(0, len(data), RECORD_BYTES)):
                key = record_key(body, first + index)
                batch.txn.put(key, data[start : start + RECORD_BYTES], db=batch.env.records)
            given[:] = [body]

        self._submit(change, len(data))
        self.body = given[0]
        self._records += records
        del self._held[:end]


def settle(batch: Batch, body: int) -> None:
    """The body is indexed now."""
    batch.txn.delete(_BODY.pack(body), db=batch.env.pending)


def is_pending(batch: Batch, body: int) -> bool:
    return batch.txn.get(_BODY.pack(body), db=batch.env.pending) is not None


def discard(batch: Batch, body: int) -> None:
    """Throw a body away that is not indexed."""
    if is_pending(batch, body):
        delete_records(batch.env, batch.txn, body)
        settle(batch, body)


def expired(env: Environment, txn: lmdb.Transaction[memoryview], now_unix: float) -> list[int]:
    """Bodies whose streams have shown no life for too long. A damaged note is passed over: it may name another body."""
    found = []
    for key, sealed in txn.cursor(env.pending):
        try:
            expiry = _EXPIRY.unpack(unseal(bytes(key), sealed))[0]
        except (BadEntry, struct.error):
            continue
        if expiry <= now_unix:
            found.append(_BODY.unpack(key)[0])
    return found


def _note_pending(batch: Batch, body: int, expires_unix: float) -> None:
    key = _BODY.pack(body)
    batch.txn.put(key, seal(key, _EXPIRY.pack(expires_unix)), db=batch.env.pending)
