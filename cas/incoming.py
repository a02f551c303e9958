"""A large blob on its way in: written into records as it arrives, in bounded memory, and indexed only when complete.

While some records are being written the next ones arrive: a stream waits for the disk only once `AHEAD_FLUSHES` are
under way, and at its end. Until then its body is noted in the `pending` table with a time after which it may be thrown
away, so that a process that dies in the middle leaves nothing for ever. A flush is a job like any other, so what is
written is durable.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import lmdb
from blake3 import blake3

from cas import begun
from cas.access import Access
from cas.batch import Batch
from cas.begun import Note
from cas.bodies import RECORD_BYTES, RecordMissing, delete_records, read_record, record_key
from cas.digest import from_raw
from cas.entries import CHECK_BYTES, NOT_PACKED, PLAIN, BadEntry, Entry, seal, unseal
from cas.environment import Environment
from cas.errors import CasError, ExchangeError, StoreBusy
from cas.writer import Job

FLUSH_RECORDS = 16
"""4 MiB: what one flush writes."""
AHEAD_FLUSHES = 2
"""How many flushes may be under way while the next one gathers: a stream holds 12 MiB, and LMDB a copy of 8."""
PENDING_TTL_S = 3600.0

_BODY = struct.Struct(">Q")
_EXPIRY = struct.Struct("<d")

Result = TypeVar("Result")


class IncomingBody:
    """Encoded bytes that become a body. Not thread-safe; one per stream."""

    def __init__(self, access: Access, *, checked: bool = True) -> None:
        """`checked` is False for plain bytes: their digest is their check, and they are hashed elsewhere."""
        self._access = access
        self._held = bytearray()
        self._full: list[bytearray | memoryview] = []
        self._written = 0
        self._under_way: deque[Job[int]] = deque()
        self._first: Job[int] | None = None
        self._last: Job[int] | None = None
        self._hasher = blake3() if checked else None
        self._body = 0
        """Known to the jobs, and to nobody else before the first of them is done."""
        self.stored = 0

    def write(self, data: bytes | memoryview) -> None:
        """Keeps parts of `data` as they are, which must not change. Raises StoreFull, StoreBusy; also for what was
        written before."""
        if self._hasher is not None:
            self._hasher.update(data)
        view = memoryview(data)
        self.stored += len(view)
        while view:
            if not self._held and len(view) >= RECORD_BYTES:
                self._full.append(view[:RECORD_BYTES])
                view = view[RECORD_BYTES:]
            else:
                part = view[: RECORD_BYTES - len(self._held)]
                view = view[len(part) :]
                self._held += part
                if len(self._held) == RECORD_BYTES:
                    self._full.append(self._held)
                    self._held = bytearray()
            if len(self._full) == FLUSH_RECORDS:
                self._flush()

    def index(self, raw: bytes, encoding: int, size: int, change: Callable[[Batch, Entry], Result]) -> Result:
        """Nothing more comes: write what is left, and run a job on the index entry. Everything is durable when this
        returns. Raises StoreFull, StoreBusy."""
        if self._held:
            self._full.append(self._held)
            self._held = bytearray()
        if self._full or self._first is None:
            self._flush()
        if encoding == PLAIN:
            check = raw[:CHECK_BYTES]
        elif self._hasher is not None:
            check = self._hasher.digest(length=CHECK_BYTES)
        else:
            raise ValueError("an encoded body needs a check of its own")

        def with_entry(batch: Batch) -> Result:
            entry = Entry(encoding, size, self.stored, self._body, NOT_PACKED, check, None, 0, self.stored)
            return change(batch, entry)

        return self._access.submit(with_entry, after=self._last).wait()

    def suspend(self, raw: bytes, encoding: int) -> None:
        """Keep the whole records that have come, for `resume`; of two beginnings of a blob, the longer one. Raises
        StoreFull, StoreBusy."""
        self._held = bytearray()
        if self._full:
            self._flush()
        if self._last is None:
            return
        records = self._written

        def change(batch: Batch) -> None:
            if not is_pending(batch, self._body):
                return
            own, before = Note(encoding, self._body, records), begun.take(batch, raw)
            longer = before if before is not None and before.records > records else own
            for one in (before, own):
                if one is not None and not (one is longer and begun.note(batch, raw, one)):
                    discard(batch, one.body)

        self._access.submit(change, after=self._last).wait()

    def resume(self, raw: bytes, encoding: int, size_bytes: int) -> Iterator[bytes]:
        """Go on with what was begun of a blob, `size_bytes` of it; gives it out. Raises ExchangeError where it is not
        here any more."""
        gone = ExchangeError(f"what was begun of {from_raw(raw)} is gone", hint="send it again")

        def change(batch: Batch) -> int:
            found = begun.take(batch, raw)
            if found is None or not is_pending(batch, found.body):
                raise gone
            self._body = found.body
            if found.encoding != encoding or found.records * RECORD_BYTES != size_bytes:
                discard(batch, found.body)
                return 0
            _note_pending(batch, found.body, self._access.clock() + PENDING_TTL_S)
            return found.body

        taken = self._access.submit(change)
        body = taken.wait()
        if not body:
            raise gone
        self._first = self._last = taken
        self._written, self.stored = size_bytes // RECORD_BYTES, size_bytes
        for index in range(self._written):
            try:
                with self._access.env.reading() as txn:
                    record = bytes(read_record(self._access.env, txn, body, index, RECORD_BYTES))
            except RecordMissing as error:
                raise gone from error
            if self._hasher is not None:
                self._hasher.update(record)
            yield record

    def abandon(self) -> None:
        """Delete what was written. Without effect once the body is indexed."""
        if self._first is None:
            return
        try:
            body = self._first.wait()
        except CasError:
            return  # Nothing was: the others have failed with it.
        self._access.write(lambda batch: discard(batch, body))

    def _flush(self) -> None:
        records, self._full = self._full, []
        first, self._written = self._written, self._written + len(records)

        def change(batch: Batch) -> int:
            if not first:
                self._body = batch.new_body()
            elif not is_pending(batch, self._body):
                raise StoreBusy("a stream paused for so long that its first part was thrown away", hint="send it again")
            _note_pending(batch, self._body, self._access.clock() + PENDING_TTL_S)
            for index, record in enumerate(records, first):
                batch.txn.put(record_key(self._body, index), record, db=batch.env.records)
            return self._body

        while self._under_way and (len(self._under_way) == AHEAD_FLUSHES or self._under_way[0].is_done):
            self._under_way.popleft().wait()
        size = sum(map(len, records))
        self._access.ensure_room(size + sum(job.size_bytes for job in self._under_way))
        self._last = self._access.submit(change, size, after=self._last)
        self._first = self._first or self._last
        self._under_way.append(self._last)


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
