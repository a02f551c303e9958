"""What one write transaction changes, gathered so that LMDB sees it in the order it likes.

Small blobs of all the jobs that share a transaction go into common packs; their index entries wait in memory and are
written sorted by key when the batch is finished, which is twice as fast and fills pages better. The batch also keeps
the store's totals, and tells a collection that is under way what it must not remove (`touch`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import lmdb

from cas import entries
from cas.bodies import PACK_BYTES, SMALL_BYTES, delete_records, record_key, write_records
from cas.entries import NOT_PACKED, BadEntry, Entry, seal, unseal
from cas.environment import Environment
from cas.errors import StoreUnreadable

_COUNTERS_KEY = b"counters"
_COUNTERS = struct.Struct("<QQQ")
_MARK_KEY = b"collecting"
_MARK = struct.Struct("<Q")
_PACK = struct.Struct("<II")
_BODY = struct.Struct(">Q")


class Totals:
    """Counters that are kept up to date because counting would mean reading the whole index."""

    __slots__ = ("next_body", "raw_bytes", "stored_bytes")

    def __init__(self, next_body: int = 1, raw_bytes: int = 0, stored_bytes: int = 0) -> None:
        self.next_body = next_body
        self.raw_bytes = raw_bytes
        self.stored_bytes = stored_bytes

    @classmethod
    def read(cls, env: Environment, txn: lmdb.Transaction[bytes] | lmdb.Transaction[memoryview]) -> Totals:
        sealed = txn.get(_COUNTERS_KEY, db=env.meta)
        if sealed is None:
            return cls()
        try:
            return cls(*_COUNTERS.unpack(unseal(_COUNTERS_KEY, sealed)))
        except (BadEntry, struct.error) as error:
            raise StoreUnreadable(
                f"the counters of the store {env.path} are damaged",
                hint="move the directory away, make a new store and pull its blobs from a host that has them",
            ) from error

    def write(self, env: Environment, txn: lmdb.Transaction[bytes]) -> None:
        value = _COUNTERS.pack(self.next_body, self.raw_bytes, self.stored_bytes)
        txn.put(_COUNTERS_KEY, seal(_COUNTERS_KEY, value), db=env.meta)


class Batch:
    """The changes of one write transaction. Lives in the writer's thread."""

    def __init__(self, env: Environment, txn: lmdb.Transaction[bytes]) -> None:
        self.env = env
        self.txn = txn
        self.totals = Totals.read(env, txn)
        self._totals_before = (self.totals.next_body, self.totals.raw_bytes, self.totals.stored_bytes)
        self._staged: dict[bytes, bytes] = {}
        self._pack: list[bytes] = []
        self._pack_body = 0
        self._pack_bytes = 0
        mark = txn.get(_MARK_KEY, db=env.meta)
        self.collecting = mark is not None

    # --- index ---

    def entry(self, raw: bytes) -> Entry | None:
        """What the index says now, with this batch's changes. Raises BadEntry."""
        sealed = self._staged.get(raw) or self.txn.get(raw, db=self.env.blobs)
        return None if sealed is None else entries.decode(raw, sealed)

    def present(self, raws: Iterable[bytes]) -> list[bytes]:
        """Those that the index has. They are protected: somebody wants them."""
        get, blobs, staged = self.txn.get, self.env.blobs, self._staged
        found = [raw for raw in sorted(raws) if get(raw, None, blobs) is not None or raw in staged]
        if self.collecting:
            for raw in found:
                self.touch(raw)
        return found

    def add(
        self,
        raw: bytes,
        encoding: int,
        size: int,
        stored: bytes,
        check: bytes,
        *,
        base: bytes | None = None,
        depth: int = 0,
        chain_bytes: int = 0,
    ) -> Entry:
        """Store encoded bytes under a digest that the index does not have."""
        if len(stored) <= SMALL_BYTES:
            body, offset = self._into_pack(stored)
        else:
            body, offset = self.new_body(), NOT_PACKED
            write_records(self.env, self.txn, body, stored)
        entry = Entry(encoding, size, len(stored), body, offset, check, base, depth, chain_bytes or len(stored))
        self.index(raw, entry)
        return entry

    def add_small_plain(self, blobs: Iterable[tuple[bytes, bytes]]) -> None:
        """As `add`, for many plain blobs of at most SMALL_BYTES: (digest, bytes) of blobs that the index lacks."""
        encode, staged = entries.encode_packed_plain, self._staged
        pack, body, used, total = self._pack, self._pack_body, self._pack_bytes, 0
        for raw, data in blobs:
            size = len(data)
            if not body or used + size > PACK_BYTES:
                self._pack_bytes = used
                pack, body, used = self._next_pack(), self._pack_body, 0
            staged[raw] = encode(raw, size, body, used)
            pack.append(data)
            used += size
            total += size
            if self.collecting:
                self.touch(raw)
        self._pack_bytes = used
        self.totals.raw_bytes += total
        self.totals.stored_bytes += total

    def index(self, raw: bytes, entry: Entry) -> None:
        """Point a digest at a body that is there already."""
        self._staged[raw] = entries.encode(raw, entry)
        self.totals.raw_bytes += entry.size
        self.totals.stored_bytes += entry.stored
        if self.collecting:
            self.touch(raw)

    def remove(self, raw: bytes, entry: Entry) -> None:
        """Remove a blob and the records that only it needs."""
        self._staged.pop(raw, None)
        if entry.body == self._pack_body:
            self._close_pack()
        self.txn.delete(raw, db=self.env.blobs)
        self._drop(entry)
        self.totals.raw_bytes -= entry.size
        self.totals.stored_bytes -= entry.stored

    def forget_damaged(self, raw: bytes) -> None:
        """Remove an index entry that cannot be read; its records cannot be found through it."""
        self.txn.delete(raw, db=self.env.blobs)

    def touch(self, raw: bytes) -> None:
        """Tell the collection under way that this blob, and what it is built on, is wanted again."""
        wanted: bytes | None = raw
        while wanted is not None and self.txn.put(wanted, b"", overwrite=False, db=self.env.touched):
            entry = self.entry(wanted)
            wanted = entry.base if entry else None

    def touched(self, raw: bytes) -> bool:
        return self.txn.get(raw, db=self.env.touched) is not None

    def protect(self, raw: bytes) -> None:
        """A lease, pin or ref now names this blob."""
        if self.collecting:
            self.touch(raw)

    # --- bodies ---

    def new_body(self) -> int:
        body = self.totals.next_body
        self.totals.next_body += 1
        return body

    def drop_records(self, body: int) -> None:
        """Delete a body that no entry names."""
        delete_records(self.env, self.txn, body)

    def finish(self) -> None:
        """Write what waits in memory. The caller commits."""
        self._close_pack()
        self._write_index()
        if (self.totals.next_body, self.totals.raw_bytes, self.totals.stored_bytes) != self._totals_before:
            self.totals.write(self.env, self.txn)

    def _write_index(self) -> None:
        staged = self._staged
        with self.txn.cursor(self.env.blobs) as cursor:
            raws = sorted(staged)
            cursor.putmulti(zip(raws, map(staged.__getitem__, raws), strict=True))
        staged.clear()

    def _into_pack(self, stored: bytes) -> tuple[int, int]:
        if not self._pack_body or self._pack_bytes + len(stored) > PACK_BYTES:
            self._next_pack()
        offset = self._pack_bytes
        self._pack.append(stored)
        self._pack_bytes += len(stored)
        return self._pack_body, offset

    def _next_pack(self) -> list[bytes]:
        self._close_pack()
        self._pack_body = self.new_body()
        return self._pack

    def _close_pack(self) -> None:
        if self._pack_body:
            write_records(self.env, self.txn, self._pack_body, b"".join(self._pack) or b"\0")
            self._set_pack(self._pack_body, len(self._pack), self._pack_bytes)
            self._pack, self._pack_body, self._pack_bytes = [], 0, 0

    def _drop(self, entry: Entry) -> None:
        if not entry.packed:
            delete_records(self.env, self.txn, entry.body)
            return
        key = _BODY.pack(entry.body)
        contents = _contents(key, self.txn.get(key, db=self.env.packs))
        if contents is None:
            return  # A damaged count. The pack stays: wasted space is better than a neighbour lost.
        blobs, live_bytes = contents
        if blobs <= 1:
            delete_records(self.env, self.txn, entry.body)
            self.txn.delete(key, db=self.env.packs)
        else:
            self._set_pack(entry.body, blobs - 1, live_bytes - entry.stored)

    def _set_pack(self, body: int, blobs: int, live_bytes: int) -> None:
        key = _BODY.pack(body)
        self.txn.put(key, seal(key, _PACK.pack(blobs, live_bytes)), db=self.env.packs)


def _contents(key: bytes, sealed: bytes | memoryview | None) -> tuple[int, int] | None:
    """How many blobs of a pack are still indexed, and their bytes; None where that is not known."""
    try:
        blobs, live_bytes = _PACK.unpack(unseal(key, sealed or b""))
    except (BadEntry, struct.error):
        return None
    return blobs, live_bytes


def sparse_packs(env: Environment, txn: lmdb.Transaction[memoryview]) -> set[int]:
    """Packs of which less than half is still used."""
    found = set()
    with txn.cursor(env.packs) as cursor:
        for key, value in cursor:
            body = _BODY.unpack(key)[0]
            record = txn.get(record_key(body, 0), db=env.records)
            contents = _contents(bytes(key), value)
            if record is not None and contents is not None and 2 * contents[1] < len(record):
                found.add(body)
    return found


def set_mark(batch: Batch) -> int:
    """A collection begins: from now on changes are noted. Returns the number of the next body; every blob in one from
    there on is newer than the collection."""
    batch.txn.drop(batch.env.touched, delete=False)
    batch.txn.put(_MARK_KEY, _MARK.pack(batch.totals.next_body), db=batch.env.meta)
    batch.collecting = True
    return batch.totals.next_body


def clear_mark(batch: Batch) -> None:
    batch.txn.drop(batch.env.touched, delete=False)
    batch.txn.delete(_MARK_KEY, db=batch.env.meta)
    batch.collecting = False


def collection_running(env: Environment, txn: lmdb.Transaction[memoryview]) -> bool:
    return txn.get(_MARK_KEY, db=env.meta) is not None
