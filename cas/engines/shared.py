"""One store made of three: blobs at a shared origin, a local store as their cache, refs in an engine.

**Reading** asks the local store first; a blob that is not there is fetched from the origin, verified, and stays here.
A damaged local blob is healed from there. When the origin does not answer, what is here can still be read.

**Writing** a blob is acknowledged when it is durable here and at the origin. When the origin does not answer, the blob
is here, the write fails, and writing it again completes it.

**Refs** are the engine's; who moves one to a blob first sees to it that everything behind it is at the origin
(`before_move`), so that whoever can read the ref can read what it leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from cas import watching
from cas.digest import Digest, abbreviation
from cas.engines.errors import EngineRefused, EngineUnreachable
from cas.engines.last_seen import RememberedRefs
from cas.engines.origin import Origin
from cas.errors import AmbiguousDigest, BlobDamaged, BlobMissing
from cas.interface import (
    Begun,
    BlobSource,
    BlobStat,
    Checked,
    Collected,
    IncomingBlob,
    RefStore,
    Repacked,
    Stored,
    Usage,
)
from cas.store import Store

FETCH_OWNER = "origin"
FETCH_LEASE_S = 3600.0
MAX_HEAL_BYTES = 256 << 20

T = TypeVar("T")


class SharedStore:
    """Implements `ExchangeStore` and `RefStore` of `cas.interface`. Any thread may call anything. What reads or writes
    may also raise EngineUnreachable and EngineRefused."""

    def __init__(
        self,
        local: Store,
        *,
        origin: Origin | None,
        refs: RememberedRefs | None,
        before_move: Callable[[SharedStore, Digest], None] | None = None,
    ) -> None:
        self.local = local
        self.origin = origin
        self._refs: RefStore = refs if refs is not None else local
        self._before_move = before_move

    def close(self) -> None:
        self.local.close()

    def __enter__(self) -> SharedStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- reading ---

    def contains(self, digest: Digest) -> bool:
        return self.local.contains(digest) or (self.origin is not None and self.origin.contains(digest))

    def read(self, digest: Digest) -> bytes:
        return self._with_blob(lambda: self.local.read(digest))

    def read_many(self, digests: Iterable[Digest]) -> Iterator[tuple[Digest, bytes]]:
        wanted = list(digests)
        for digest in self.local.missing(wanted):
            self._fetch(digest)
        return self.local.read_many(wanted)

    def stream(self, digest: Digest) -> Iterator[bytes]:
        if not self.local.contains(digest):
            self._fetch(digest)
        return self.local.stream(digest)

    def stat(self, digest: Digest) -> BlobStat:
        return self._with_blob(lambda: self.local.stat(digest))

    def stats(self, digests: Iterable[Digest]) -> dict[Digest, BlobStat]:
        """Of what is here."""
        return self.local.stats(digests)

    def encoded(self, digest: Digest) -> tuple[BlobStat, Iterator[bytes]]:
        return self._with_blob(lambda: self.local.encoded(digest))

    def patch(self, digest: Digest, bases: Iterable[Digest]) -> tuple[Digest, bytes] | None:
        return self._with_blob(lambda: self.local.patch(digest, bases))

    def relatives(self, digest: Digest, most: int) -> list[Digest]:
        """Among what is here: what resembles what is not known of the origin."""
        return self.local.relatives(digest, most)

    def make_patch(self, digest: Digest, base: Digest) -> int | None:
        """Kept here only: the origin keeps each blob as it was first uploaded."""
        return self._with_blob(lambda: self._with_blob(lambda: self.local.make_patch(digest, base)))

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        absent = self.local.missing(digests)
        return self.origin.missing(absent) if self.origin is not None and absent else absent

    def digests(self) -> Iterator[Digest]:
        if self.origin is None:
            return self.local.digests()
        return iter(sorted({*self.local.digests(), *self.origin.digests()}))

    def find(self, abbreviated: str) -> Digest:
        try:
            found = {self.local.find(abbreviated)}
        except BlobMissing:
            found = set()
        hex_digits = abbreviation(abbreviated)
        if self.origin is not None and hex_digits is not None and (not found or abbreviated not in found):
            try:
                found.update(self.origin.beginning_with(hex_digits, 2))
            except EngineUnreachable:
                if not found:
                    raise
        if len(found) > 1:
            raise AmbiguousDigest(abbreviated, len(found))
        if not found:
            raise BlobMissing(abbreviated)
        return found.pop()

    def history(self, name: str) -> list[Digest]:
        """What was put under a name by this machine; names are not shared."""
        return self.local.history(name)

    def newest_of_names(self) -> list[Digest]:
        return self.local.newest_of_names()

    def usage(self) -> Usage:
        """Of the local store."""
        return self.local.usage()

    def _with_blob(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except BlobMissing as error:
            self._fetch(error.digest)
        except BlobDamaged as error:
            if not self._heal(error.digest):
                raise
        return work()

    def _fetch(self, digest: Digest) -> None:
        """Bring a blob here; leased, so that no collection takes it away before it is used. Raises BlobMissing."""
        if self.origin is None:
            raise BlobMissing(digest)
        try:
            self.local.lease([digest], owner=FETCH_OWNER, ttl_s=FETCH_LEASE_S)
            self.origin.fetch(digest, self.local)
        except EngineUnreachable as error:
            raise EngineUnreachable(f"the blob {digest} is not here, and {error}") from error

    def _heal(self, digest: Digest) -> bool:
        """Replace a damaged local blob by the origin's, decoded apart from it."""
        if self.origin is None:
            return False
        from cas.engines.decoding import read_whole

        try:
            data = read_whole(self.origin, digest, MAX_HEAL_BYTES)
        except (BlobMissing, BlobDamaged, EngineUnreachable, EngineRefused):
            return False
        self.local.put(data, expect=digest)
        return True

    # --- writing: durable here and at the origin ---

    def put(self, data: bytes, *, name: str | None = None, expect: Digest | None = None) -> Stored:
        return self._share(self.local.put(data, name=name, expect=expect))

    def put_stream(self, chunks: Iterable[bytes], *, name: str | None = None, expect: Digest | None = None) -> Stored:
        return self._share(self.local.put_stream(chunks, name=name, expect=expect))

    def put_patch(self, digest: Digest, patch: bytes, *, name: str | None = None, max_size: int) -> Stored:
        return self._share(self.local.put_patch(digest, patch, name=name, max_size=max_size))

    def put_many(self, blobs: Iterable[bytes], *, lease_owner: str | None = None, ttl_s: float = 0.0) -> list[Stored]:
        stored = self.local.put_many(blobs, lease_owner=lease_owner, ttl_s=ttl_s)
        self.share([one.digest for one in stored])
        return stored

    def ensure_room(self, size_bytes: int) -> None:
        """In the local store."""
        self.local.ensure_room(size_bytes)

    def receive(self, digest: Digest, *, encoding: str, size: int) -> IncomingBlob:
        return _Incoming(self, self.local.receive(digest, encoding=encoding, size=size))

    def begun(self, digests: Iterable[Digest]) -> tuple[Begun, ...]:
        """In the local store."""
        return self.local.begun(digests)

    def resume(self, begun: Begun, *, size: int, check: bytes) -> IncomingBlob:
        return _Incoming(self, self.local.resume(begun, size=size, check=check))

    def share(self, digests: Iterable[Digest]) -> int:
        """See to it that these blobs are at the origin; returns how many were new there. Raises BlobMissing for one
        that is nowhere."""
        return 0 if self.origin is None else self.origin.ensure(self.local, digests)

    def _share(self, stored: Stored) -> Stored:
        self.share([stored.digest])
        return stored

    # --- protection and collection ---

    def lease(self, digests: Iterable[Digest], *, owner: str, ttl_s: float) -> None:
        """Here for `ttl_s`; at the origin for `cas.engines.origin.HOLD_S`, whatever `ttl_s` says."""
        wanted = list(digests)
        self.local.lease(wanted, owner=owner, ttl_s=ttl_s)
        if self.origin is not None:
            self.origin.hold(wanted)

    def release(self, owner: str) -> None:
        self.local.release(owner)

    def pin(self, digest: Digest, *, owner: str) -> None:
        """Here; and what is pinned here, a collection of the origin from here leaves alone."""
        self.local.pin(digest, owner=owner)

    def unpin(self, digest: Digest, *, owner: str) -> None:
        self.local.unpin(digest, owner=owner)

    def collect(self, roots: Iterable[Digest], *, dry_run: bool = False, ignoring: str | None = None) -> Collected:
        """Of the local store. What is removed here can be fetched again."""
        return self.local.collect(roots, dry_run=dry_run, ignoring=ignoring)

    def repack(
        self,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Repacked:
        """Of the local store; the origin keeps each blob as it was first uploaded."""
        return self.local.repack(should_stop=should_stop, progress=progress)

    def collect_origin(
        self, roots: Iterable[Digest], *, dry_run: bool = False, ignoring: str | None = None
    ) -> Collected:
        """Of the origin. `roots` must be all that any operator needs. Raises StoreBusy."""
        if self.origin is None:
            return Collected(0, 0, 0)
        from cas import protection
        from cas.digest import from_raw
        from cas.engines.origin_collect import collect

        access = self.local.access
        with access.env.reading() as txn:
            here = {from_raw(raw) for raw in protection.protected(access.env, txn, access.clock(), ignoring)}
        return collect(self.origin, {*roots, *self.fresh_refs().values(), *here}, dry_run=dry_run)

    def check(self, *, source: BlobSource | None = None, progress: Callable[[int, int], None] | None = None) -> Checked:
        """Of the local store, repaired from the origin, and then of the origin, repaired from here. A blob that is in
        both counts once."""
        if self.origin is None:
            return self.local.check(source=source, progress=progress)
        from cas.engines.decoding import OriginSource
        from cas.engines.origin_check import check

        here = self.local.check(source=source or OriginSource(self.origin), progress=progress)
        there = check(self.origin, self.local, self.read, progress=progress)
        return Checked(here.blobs + there.blobs, here.bytes + there.bytes, here.damaged + there.damaged)

    # --- refs ---

    def read_ref(self, name: str) -> Digest | None:
        return self._refs.read_ref(name)

    def move_ref(self, name: str, expected: Digest | None, to: Digest | None) -> None:
        if to is not None and self._before_move is not None:
            self._before_move(self, to)
        self._refs.move_ref(name, expected, to)

    def refs(self) -> dict[str, Digest]:
        return self._refs.refs()

    def fresh_refs(self) -> dict[str, Digest]:
        """As the engine has them now, never the local copy. Raises EngineUnreachable."""
        return (self._refs.engine if isinstance(self._refs, RememberedRefs) else self._refs).refs()

    def watch(self, name: str) -> Iterator[Digest | None]:
        """Where a ref is, and then again each time it has moved. Does not end. Raises EngineUnreachable where nobody
        answers: watching again is safe."""
        if isinstance(self._refs, RememberedRefs):
            return self._refs.watch(name)
        return watching.watch(self._refs, name)


class _Incoming:
    """Implements `IncomingBlob`: kept here, then at the origin."""

    def __init__(self, store: SharedStore, incoming: IncomingBlob) -> None:
        self._store = store
        self._incoming = incoming

    def write(self, chunk: bytes | memoryview) -> None:
        self._incoming.write(chunk)

    def commit(self) -> Stored:
        stored = self._incoming.commit()
        self._store.share([stored.digest])
        return stored

    def abort(self) -> None:
        self._incoming.abort()

    def suspend(self) -> None:
        self._incoming.suspend()
