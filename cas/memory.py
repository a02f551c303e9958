"""A store in memory: the same promises without a disk, for simulations and tests.

It keeps raw bytes and, where a blob came as a patch, the patch. Thread-safe by one lock; nothing survives the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from cas.digest import Digest, abbreviation, digest_of, to_raw
from cas.errors import (
    AmbiguousDigest,
    BlobDamaged,
    BlobMissing,
    BlobTooLarge,
    DigestMismatch,
    ExchangeError,
    NotADigest,
    RefMoved,
)
from cas.interface import (
    Begun,
    BlobSource,
    BlobStat,
    Checked,
    Collected,
    Damage,
    IncomingBlob,
    KeptPatch,
    Repacked,
    Stored,
    Usage,
)

PIECE_BYTES = 256 << 10


class MemoryStore:
    """Implements `ExchangeStore` and `RefStore` of `cas.interface`."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self.blobs: dict[Digest, bytes] = {}
        """Raw bytes. A test may change them, to see damage found."""
        self._patches: dict[Digest, tuple[Digest, bytes]] = {}
        self._made: dict[Digest, dict[Digest, bytes]] = {}
        """Patches that were made for receivers, by blob and base."""
        self._names: dict[str, list[Digest]] = {}
        self._leases: dict[tuple[str, Digest], float] = {}
        self._pins: set[tuple[str, Digest]] = set()
        self._refs: dict[str, Digest] = {}

    # --- reading ---

    def contains(self, digest: Digest) -> bool:
        to_raw(digest)
        return digest in self.blobs

    def read(self, digest: Digest) -> bytes:
        to_raw(digest)
        data = self.blobs.get(digest)
        if data is None:
            raise BlobMissing(digest)
        if digest_of(data) != digest:
            raise BlobDamaged(digest, "its bytes have changed in memory")
        return data

    def stream(self, digest: Digest) -> Iterator[bytes]:
        data = self.read(digest)
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]

    def stat(self, digest: Digest) -> BlobStat:
        with self._lock:
            if not self.contains(digest):
                raise BlobMissing(digest)
            size = len(self.blobs[digest])
            made = self._made.get(digest, {})
            kept = tuple(KeptPatch(base, len(patch)) for base, patch in made.items() if base in self.blobs)
            if digest not in self._patches:
                return BlobStat(digest, size, "plain", size, patches=kept)
            base, patch = self._patches[digest]
            return BlobStat(digest, size, "delta", len(patch), base, self.stat(base).depth + 1, kept)

    def stats(self, digests: Iterable[Digest]) -> dict[Digest, BlobStat]:
        return {digest: self.stat(digest) for digest in digests if self.contains(digest)}

    def read_many(self, digests: Iterable[Digest]) -> Iterator[tuple[Digest, bytes]]:
        return ((digest, self.read(digest)) for digest in digests)

    def begun(self, digests: Iterable[Digest]) -> tuple[Begun, ...]:  # noqa: ARG002 (the interface's name)
        return ()

    def resume(self, begun: Begun, *, size: int, check: bytes) -> IncomingBlob:  # noqa: ARG002 (the interface's names)
        raise ExchangeError(f"nothing is here of {begun.digest}")

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        return [digest for digest in dict.fromkeys(digests) if not self.contains(digest)]

    def digests(self) -> Iterator[Digest]:
        with self._lock:
            return iter(sorted(self.blobs))

    def find(self, abbreviated: str) -> Digest:
        hex_digits = abbreviation(abbreviated)
        if hex_digits is None:
            raise NotADigest(abbreviated)
        with self._lock:
            matches = [digest for digest in self.blobs if digest.startswith("b3:" + hex_digits)]
        if not matches:
            raise BlobMissing(abbreviated)
        if len(matches) > 1:
            raise AmbiguousDigest(abbreviated, len(matches))
        return matches[0]

    def history(self, name: str) -> list[Digest]:
        with self._lock:
            newest_first = dict.fromkeys(reversed(self._names.get(name, [])))
            return [digest for digest in newest_first if digest in self.blobs]

    def patch(self, digest: Digest, bases: Iterable[Digest]) -> tuple[Digest, bytes] | None:
        self.stat(digest)
        wanted = set(bases)
        found = self._patches.get(digest)
        if found is not None and found[0] in wanted:
            return found
        fitting = [(base, patch) for base, patch in self._made.get(digest, {}).items() if base in wanted]
        return min(fitting, key=lambda one: len(one[1]), default=None)

    def relatives(self, digest: Digest, most: int) -> list[Digest]:
        """Those of the same names."""
        with self._lock:
            named = [digests for digests in self._names.values() if digest in digests]
        others = dict.fromkeys(other for digests in named for other in reversed(digests))
        return [other for other in others if other != digest and other in self.blobs][:most]

    def encoded(self, digest: Digest) -> tuple[BlobStat, Iterator[bytes]]:
        stat = self.stat(digest)
        if stat.encoding == "delta":
            return stat, iter([self._patches[digest][1]])
        return stat, self.stream(digest)

    def usage(self) -> Usage:
        with self._lock:
            raw = sum(map(len, self.blobs.values()))
            stored = sum(self.stat(digest).stored_bytes for digest in self.blobs)
        return Usage(len(self.blobs), raw, stored, stored)

    # --- writing ---

    def put(self, data: bytes, *, name: str | None = None, expect: Digest | None = None) -> Stored:
        digest = digest_of(data)
        if expect is not None and expect != digest:
            raise DigestMismatch(expect, digest)
        with self._lock:
            new = digest not in self.blobs or self.blobs[digest] != data
            self.blobs[digest] = bytes(data)
            if new:
                self._patches.pop(digest, None)
            if name is not None:
                self._names.setdefault(name, []).append(digest)
        return Stored(digest, len(data), new, len(data) if new else 0)

    def put_many(self, blobs: Iterable[bytes], *, lease_owner: str | None = None, ttl_s: float = 0.0) -> list[Stored]:
        with self._lock:
            stored = [self.put(data) for data in blobs]
            if lease_owner is not None:
                self.lease([one.digest for one in stored], owner=lease_owner, ttl_s=ttl_s)
        return stored

    def put_stream(self, chunks: Iterable[bytes], *, name: str | None = None, expect: Digest | None = None) -> Stored:
        return self.put(b"".join(chunks), name=name, expect=expect)

    def put_patch(self, digest: Digest, patch: bytes, *, name: str | None = None, max_size: int) -> Stored:
        import delta

        info = delta.inspect(patch)
        if info.target_size > max_size:
            raise BlobTooLarge(f"the blob {digest}", info.target_size, max_size)
        base = "b3:" + info.base.hex()
        data = delta.decode(self.read(base), patch, max_size=max_size)
        with self._lock:
            stored = self.put(data, name=name, expect=digest)
            if stored.new:
                self._patches[digest] = (base, patch)
        return Stored(digest, len(data), stored.new, len(patch) if stored.new else 0)

    def make_patch(self, digest: Digest, base: Digest) -> int | None:
        import delta

        data = self.read(digest)
        patch = delta.encode(self.read(base), data)
        if digest == base or len(patch) >= len(data):
            return None
        with self._lock:
            self._made.setdefault(digest, {})[base] = patch
        return len(patch)

    def ensure_room(self, size_bytes: int) -> None:
        """There is always room."""

    def receive(self, digest: Digest, *, encoding: str, size: int) -> IncomingBlob:
        return _Incoming(self, digest, encoding, size)

    # --- protection and collection ---

    def lease(self, digests: Iterable[Digest], *, owner: str, ttl_s: float) -> None:
        expires = self._clock() + ttl_s
        with self._lock:
            for digest in digests:
                key = (owner, digest)
                self._leases[key] = max(expires, self._leases.get(key, expires))

    def release(self, owner: str) -> None:
        with self._lock:
            self._leases = {key: expires for key, expires in self._leases.items() if key[0] != owner}

    def pin(self, digest: Digest, *, owner: str) -> None:
        with self._lock:
            self._pins.add((owner, digest))

    def unpin(self, digest: Digest, *, owner: str) -> None:
        with self._lock:
            self._pins.discard((owner, digest))

    def collect(self, roots: Iterable[Digest], *, dry_run: bool = False, ignoring: str | None = None) -> Collected:
        with self._lock:
            now = self._clock()
            self._leases = {key: expires for key, expires in self._leases.items() if expires > now}
            protected = [digest for owner, digest in [*self._leases, *self._pins] if owner != ignoring]
            waiting = [*roots, *self._refs.values(), *protected]
            keep: set[Digest] = set()
            while waiting:
                digest = waiting.pop()
                keep.add(digest)
                if digest in self._patches and (base := self._patches[digest][0]) not in keep:
                    waiting.append(base)
            doomed = [digest for digest in self.blobs if digest not in keep]
            size = sum(self.stat(digest).stored_bytes for digest in doomed)
            for digest in [] if dry_run else doomed:
                del self.blobs[digest]
                self._patches.pop(digest, None)
                self._made.pop(digest, None)
            return Collected(len(doomed), size, len(self.blobs) - (len(doomed) if dry_run else 0))

    def repack(
        self,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Repacked:
        """Everything is whole already."""
        if should_stop is not None and should_stop():
            return Repacked(0, 0, False)
        if progress is not None:
            progress(len(self._names), len(self._names))
        return Repacked(0, 0, True)

    def check(self, *, source: BlobSource | None = None, progress: Callable[[int, int], None] | None = None) -> Checked:
        damaged = []
        every = list(self.digests())
        for digest in every:
            try:
                self.read(digest)
            except BlobDamaged as error:
                repaired = source is not None and source.contains(digest)
                if repaired and source is not None:
                    self.put(source.read(digest), expect=digest)
                damaged.append(Damage(digest, error.reason, repaired))
        if progress is not None:
            progress(len(every), len(every))
        return Checked(len(every), sum(map(len, self.blobs.values())), tuple(damaged))

    # --- refs ---

    def read_ref(self, name: str) -> Digest | None:
        from cas.refs import key_of

        key_of(name)
        return self._refs.get(name)

    def move_ref(self, name: str, expected: Digest | None, to: Digest | None) -> None:
        with self._lock:
            actual = self._refs.get(name)
            if actual != expected:
                raise RefMoved(name, expected, actual)
            if to is None:
                self._refs.pop(name, None)
            else:
                self._refs[name] = to

    def refs(self) -> dict[str, Digest]:
        with self._lock:
            return dict(self._refs)


class _Incoming:
    """Implements `IncomingBlob`."""

    def __init__(self, store: MemoryStore, digest: Digest, encoding: str, size: int) -> None:
        self._store = store
        self._digest = digest
        self._encoding = encoding
        self._size = size
        self._held = bytearray()

    def write(self, chunk: bytes | memoryview) -> None:
        self._held += chunk
        if self._encoding == "plain" and len(self._held) > self._size:
            raise ExchangeError(f"more bytes than the {self._size} announced for {self._digest}")

    def commit(self) -> Stored:
        data = bytes(self._held)
        if self._encoding == "zstd":
            from cas import compression

            try:
                data = compression.decompress_any(data, self._size)
            except compression.BadFrame as error:
                raise ExchangeError(f"the bytes of {self._digest} cannot be decompressed: {error}") from error
        return self._store.put(data, expect=self._digest)

    def abort(self) -> None:
        self._held.clear()

    def suspend(self) -> None:
        self.abort()
