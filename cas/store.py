"""The store: an LMDB environment that keeps blobs, names' histories, leases, pins and refs.

This module only composes; each part has a module of its own: `environment` (opening, sharing), `writer` (one thread,
group commit), `batch` and `bodies` (what a transaction writes, records, packs), `entries` (the index), `encoding` and
`putting` (how a blob is stored), `reading`, `incoming` (streams), `names`, `protection`, `refs`, `collect`, `check`,
`repack`.

Any thread may call anything at any time; calls block, so asyncio programs use `asyncio.to_thread`. Several processes
may have a store open. A store must be opened after forking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from cas import names, protection, reading, refs
from cas.access import RESERVE_BYTES, Access
from cas.batch import Totals
from cas.digest import Digest, abbreviation, from_raw, to_raw
from cas.entries import ENCODING_NAMES
from cas.environment import Environment, acquire, relinquish
from cas.errors import AmbiguousDigest, BlobMissing, NotADigest, StoreUnreadable
from cas.interface import (
    Begun,
    BlobSource,
    BlobStat,
    Checked,
    Collected,
    IncomingBlob,
    Repacked,
    Stored,
    Usage,
)
from cas.lockfile import WAIT_TIMEOUT_S

_FULL_HEX = 64
_LIST_BLOBS = 4096


class Store:
    """Implements `ExchangeStore` (so `BlobStore`) and `RefStore` of `cas.interface`."""

    def __init__(self, access: Access) -> None:
        self._held: Access | None = access

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        create: bool = True,
        clock: Callable[[], float] = time.time,
        write_timeout_s: float = WAIT_TIMEOUT_S,
        quota_bytes: int | None = None,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> Store:
        """Open a store, or make one. `quota_bytes` bounds the used pages of its file, `reserve_bytes` is what it leaves
        free on the disk. Raises StoreUnreadable."""
        env = acquire(Path(path), create=create)
        return cls(
            Access(
                env,
                clock=clock,
                write_timeout_s=write_timeout_s,
                quota_bytes=quota_bytes,
                reserve_bytes=reserve_bytes,
            )
        )

    def close(self) -> None:
        """Finish what is being written. Idempotent."""
        if self._held is not None:
            held, self._held = self._held, None
            relinquish(held.env)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._env.path

    @property
    def access(self) -> Access:
        """For the other modules of `cas`."""
        if self._held is None:
            raise StoreUnreadable("the store is closed", hint="open it again")
        return self._held

    @property
    def _env(self) -> Environment:
        return self.access.env

    # --- reading ---

    def contains(self, digest: Digest) -> bool:
        raw = to_raw(digest)
        with self._env.reading() as txn:
            return txn.get(raw, db=self._env.blobs) is not None

    def read(self, digest: Digest) -> bytes:
        return reading.read(self._env, to_raw(digest))

    def read_many(self, digests: Iterable[Digest]) -> Iterator[tuple[Digest, bytes]]:
        from cas.reading_many import read_many

        return read_many(self._env, digests)

    def stream(self, digest: Digest) -> Iterator[bytes]:
        return reading.stream(self._env, to_raw(digest))

    def stat(self, digest: Digest) -> BlobStat:
        raw = to_raw(digest)
        with self._env.reading() as txn:
            entry = reading.get_entry(self._env, txn, raw)
            return reading.stat_of(self._env, txn, digest, raw, entry)

    def stats(self, digests: Iterable[Digest]) -> dict[Digest, BlobStat]:
        from cas.reading_many import stats

        return stats(self._env, list(digests))

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        raws = {to_raw(digest): digest for digest in digests}
        blobs = self._env.blobs
        with self._env.reading() as txn:
            absent = {raw for raw in sorted(raws) if txn.get(raw, db=blobs) is None}
        return [digest for raw, digest in raws.items() if raw in absent]

    def digests(self) -> Iterator[Digest]:
        """Every blob, in the order of the digests. Blobs stored or collected meanwhile may or may not be among them."""
        after = b""
        while True:
            found: list[bytes] = []
            with self._env.reading() as txn, txn.cursor(self._env.blobs) as cursor:
                more = cursor.set_range(after) if after else cursor.first()
                while more and len(found) < _LIST_BLOBS:
                    found.append(bytes(cursor.key()))
                    more = cursor.next()
            yield from map(from_raw, found)
            if not more:
                return
            after = found[-1] + b"\0"

    def find(self, abbreviated: str) -> Digest:
        hex_digits = abbreviation(abbreviated)
        if hex_digits is None:
            raise NotADigest(abbreviated)
        first = bytes.fromhex(hex_digits.ljust(_FULL_HEX, "0"))
        matches: list[str] = []
        with self._env.reading() as txn, txn.cursor(self._env.blobs) as cursor:
            more = cursor.set_range(first)
            while more and len(matches) < 2 and bytes(cursor.key()).hex().startswith(hex_digits):
                matches.append(from_raw(bytes(cursor.key())))
                more = cursor.next()
        if not matches:
            raise BlobMissing(abbreviated)
        if len(matches) > 1:
            raise AmbiguousDigest(abbreviated, len(matches))
        return matches[0]

    def history(self, name: str) -> list[Digest]:
        with self._env.reading() as txn:
            blobs = self._env.blobs
            raws = list(names.newest_first(self._env, txn, name))
            return [from_raw(raw) for raw in raws if txn.get(raw, db=blobs) is not None]

    def newest_of_names(self) -> list[Digest]:
        """The blob that was last put under each name, each blob once."""
        with self._env.reading() as txn:
            blobs = self._env.blobs
            raws = set(names.newest_of_all(self._env, txn))
            return sorted(from_raw(raw) for raw in raws if txn.get(raw, db=blobs) is not None)

    def patch(self, digest: Digest, bases: Iterable[Digest]) -> tuple[Digest, bytes] | None:
        wanted = {to_raw(base) for base in bases}
        return reading.patch(self._env, to_raw(digest), wanted)

    def relatives(self, digest: Digest, most: int) -> list[Digest]:
        from cas import fresh

        return fresh.relatives(self.access, to_raw(digest), most)

    def usage(self) -> Usage:
        with self._env.reading() as txn:
            blobs = int(txn.stat(self._env.blobs)["entries"])
            totals = Totals.read(self._env, txn)
        return Usage(blobs, totals.raw_bytes, totals.stored_bytes, self._env.file_bytes())

    # --- writing ---

    def put(self, data: bytes, *, name: str | None = None, expect: Digest | None = None) -> Stored:
        from cas import putting

        return putting.put(self.access, data, name=name, expect=expect)

    def put_many(self, blobs: Iterable[bytes], *, lease_owner: str | None = None, ttl_s: float = 0.0) -> list[Stored]:
        from cas import putting_many

        lease = None if lease_owner is None else (lease_owner, self.access.clock() + ttl_s)
        return putting_many.put_many(self.access, blobs, lease)

    def put_stream(self, chunks: Iterable[bytes], *, name: str | None = None, expect: Digest | None = None) -> Stored:
        from cas import putting

        return putting.put_stream(self.access, chunks, name=name, expect=expect)

    def put_patch(self, digest: Digest, patch: bytes, *, name: str | None = None, max_size: int) -> Stored:
        from cas import putting

        return putting.put_patch(self.access, digest, patch, name=name, max_size=max_size)

    def make_patch(self, digest: Digest, base: Digest) -> int | None:
        from cas import fresh

        return fresh.make_patch(self.access, to_raw(digest), to_raw(base))

    def encoded(self, digest: Digest) -> tuple[BlobStat, Iterator[bytes]]:
        return self.stat(digest), reading.encoded(self._env, to_raw(digest))

    def receive(self, digest: Digest, *, encoding: str, size: int) -> IncomingBlob:
        from cas.receiving import ReceivedBlob

        return ReceivedBlob(self.access, to_raw(digest), ENCODING_NAMES.index(encoding), size)

    def begun(self, digests: Iterable[Digest]) -> tuple[Begun, ...]:
        from cas import begun

        return begun.known(self._env, digests)

    def resume(self, begun: Begun, *, size: int, check: bytes) -> IncomingBlob:
        from cas.receiving import resume

        return resume(self.access, begun, size, check)

    def ensure_room(self, size_bytes: int) -> None:
        """Before a transfer: raises StoreFull where so many bytes would break the quota or fill the disk."""
        self.access.ensure_room(size_bytes)

    # --- protection and collection ---

    def lease(self, digests: Iterable[Digest], *, owner: str, ttl_s: float) -> None:
        raws = [to_raw(digest) for digest in digests]
        expires = self.access.clock() + ttl_s
        self.access.write(lambda batch: protection.lease(batch, raws, owner, expires))

    def release(self, owner: str) -> None:
        self.access.write(lambda batch: protection.release(batch, owner))

    def pin(self, digest: Digest, *, owner: str) -> None:
        raw = to_raw(digest)
        self.access.write(lambda batch: protection.pin(batch, raw, owner))

    def unpin(self, digest: Digest, *, owner: str) -> None:
        raw = to_raw(digest)
        self.access.write(lambda batch: protection.unpin(batch, raw, owner))

    def collect(self, roots: Iterable[Digest], *, dry_run: bool = False, ignoring: str | None = None) -> Collected:
        """Refs protect what they point at without being named as roots. Raises StoreBusy where another collection is
        running."""
        from cas.collect import collect

        return collect(self.access, roots, dry_run=dry_run, ignoring=ignoring)

    def repack(
        self,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Repacked:
        from cas.repack import repack

        return repack(self.access, should_stop=should_stop, progress=progress)

    def check(self, *, source: BlobSource | None = None, progress: Callable[[int, int], None] | None = None) -> Checked:
        from cas.check import check

        return check(self.access, source=source, progress=progress)

    # --- refs ---

    def read_ref(self, name: str) -> Digest | None:
        with self._env.reading() as txn:
            return refs.read(self._env, txn, name)

    def move_ref(self, name: str, expected: Digest | None, to: Digest | None) -> None:
        raw = None if to is None else to_raw(to)
        self.access.write(lambda batch: refs.move(batch, name, expected, raw))

    def refs(self) -> dict[str, Digest]:
        with self._env.reading() as txn:
            return dict(refs.every(self._env, txn))
