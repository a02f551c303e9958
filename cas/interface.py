"""What a store promises, as small interfaces that grow by capability.

Every implementation passes the same suite, `tests/conformance/`. The promises, which callers rely on:

- A blob that `put` has returned for is durable: it survives `kill -9` and power loss. Nothing is acknowledged earlier.
- `read` and `stream` end in a check of the digest: a damaged blob raises `BlobDamaged`, it is never returned.
- A blob under a lease or a pin, and every base its encoding needs, is never collected; a lease may name blobs that are
  not here yet, so that a blob which is being fetched is protected before its first byte is asked for.
- `put` of bytes that are already here is cheap and changes nothing, except that it heals a damaged copy.
- How a blob is encoded is private: it may change at any time and never changes a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import msgspec

from cas.digest import Digest


class KeptPatch(msgspec.Struct, frozen=True):
    """A delta that a store keeps beside a blob, for receivers that have its base."""

    base: Digest
    stored_bytes: int


class BlobStat(msgspec.Struct, frozen=True):
    """What a store knows of one blob without reading it."""

    digest: Digest
    size: int
    encoding: str
    """`plain`, `zstd` or `delta`."""
    stored_bytes: int
    base: Digest | None = None
    depth: int = 0
    """How many deltas must be applied to read it."""
    patches: tuple[KeptPatch, ...] = ()
    """Further deltas that `patch` gives out."""


class Begun(msgspec.Struct, frozen=True):
    """What a store has of a blob whose stream broke off: the first bytes of this encoding of it, unverified."""

    digest: Digest
    encoding: str
    """`plain` or `zstd`."""
    bytes: int


class Stored(msgspec.Struct, frozen=True, gc=False):
    """What a `put` did."""

    digest: Digest
    size: int
    new: bool
    stored_bytes: int
    """Bytes that this put added to the store; 0 where the blob was here already."""


class Damage(msgspec.Struct, frozen=True):
    digest: Digest
    reason: str
    repaired: bool = False


class Checked(msgspec.Struct, frozen=True):
    blobs: int
    bytes: int
    damaged: tuple[Damage, ...]


class Collected(msgspec.Struct, frozen=True):
    blobs: int
    """How many blobs were removed (or would be, in a dry run)."""
    bytes: int
    kept: int
    failed: tuple[Damage, ...] = ()


class Repacked(msgspec.Struct, frozen=True):
    """What a repack did."""

    blobs: int
    """How many blobs are encoded in another way now."""
    saved_bytes: int
    """How many bytes fewer the store holds for it; negative where it holds more."""
    complete: bool
    """False where it was stopped before it had looked at everything."""
    failed: tuple[Damage, ...] = ()


class Usage(msgspec.Struct, frozen=True):
    blobs: int
    raw_bytes: int
    stored_bytes: int
    file_bytes: int


class BlobSource(Protocol):
    """Something blobs can be read from: a store, a peer, a bundle."""

    def contains(self, digest: Digest) -> bool: ...

    def read(self, digest: Digest) -> bytes:
        """The whole blob, verified. Raises BlobMissing, BlobDamaged."""
        ...


class BlobStore(BlobSource, Protocol):
    """A place that keeps blobs durably."""

    def stat(self, digest: Digest) -> BlobStat:
        """Raises BlobMissing."""
        ...

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of `digests` that are not here, each once, in the order given."""
        ...

    def digests(self) -> Iterator[Digest]: ...

    def stream(self, digest: Digest) -> Iterator[bytes]:
        """The blob in pieces of bounded size; the last piece is only given out once the digest has been verified."""
        ...

    def put(self, data: bytes, *, name: str | None = None, expect: Digest | None = None) -> Stored:
        """Store bytes. `name` (such as a path) makes the previous blob of that name a candidate base and adds this one
        to the name's history. Raises DigestMismatch where `expect` is given and differs, StoreFull, StoreBusy."""
        ...

    def put_stream(self, chunks: Iterable[bytes], *, name: str | None = None, expect: Digest | None = None) -> Stored:
        """As `put`, in bounded memory."""
        ...

    def patch(self, digest: Digest, bases: Iterable[Digest]) -> tuple[Digest, bytes] | None:
        """A delta of this blob that is stored, where there is one whose base is among `bases`."""
        ...

    def put_patch(self, digest: Digest, patch: bytes, *, name: str | None = None, max_size: int) -> Stored:
        """Store a blob that arrives as a delta. The result is verified before it is kept, and the delta itself is what
        is kept. Raises BlobMissing for its base, DigestMismatch, BlobTooLarge, delta.DeltaError."""
        ...

    def history(self, name: str) -> list[Digest]:
        """The blobs put under a name, newest first."""
        ...

    def find(self, abbreviated: str) -> Digest:
        """The one blob whose digest starts so. Raises NotADigest, AmbiguousDigest, BlobMissing."""
        ...

    def lease(self, digests: Iterable[Digest], *, owner: str, ttl_s: float) -> None:
        """Protect blobs, present or not, until the lease runs out. Leasing again extends."""
        ...

    def release(self, owner: str) -> None:
        """End an owner's leases."""
        ...

    def pin(self, digest: Digest, *, owner: str) -> None: ...

    def unpin(self, digest: Digest, *, owner: str) -> None: ...

    def collect(self, roots: Iterable[Digest], *, dry_run: bool = False, ignoring: str | None = None) -> Collected:
        """Remove every blob that is not a root, leased, pinned, or the base of one that stays. Goes on past a bad item
        and reports it. Leases and pins of the owner `ignoring` protect nothing, this time."""
        ...

    def repack(
        self,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Repacked:
        """Encode blobs anew so that the newest version of every name is read fast and the older ones take little room.
        Changes no name, and nothing that can be read; may be killed or stopped at any instant. `should_stop` is asked
        before each blob; `progress` is called with (names done, names in all). Raises StoreBusy where another repack
        is running."""
        ...

    def check(self, *, source: BlobSource | None = None, progress: Callable[[int, int], None] | None = None) -> Checked:
        """Read and verify every blob; replace damaged ones from `source` where it has them. `progress` is called with
        (blobs done, blobs in all)."""
        ...

    def usage(self) -> Usage: ...


class RefStore(Protocol):
    """Named pointers to blobs: the only mutable thing in the system."""

    def read_ref(self, name: str) -> Digest | None: ...

    def move_ref(self, name: str, expected: Digest | None, to: Digest | None) -> None:
        """Compare and swap, durable when it returns; `to` None removes the ref. Raises RefMoved."""
        ...

    def refs(self) -> dict[str, Digest]: ...


class IncomingBlob(Protocol):
    """A blob that arrives encoded and in pieces, into bounded memory."""

    def write(self, chunk: bytes | memoryview) -> None:
        """Keeps parts of `chunk` as they are, which must not change. Raises ExchangeError as soon as it is clear that
        this is not what was announced; StoreFull and StoreBusy also for what was written before."""
        ...

    def commit(self) -> Stored:
        """Keep it, verified and durable. Raises DigestMismatch, ExchangeError."""
        ...

    def abort(self) -> None:
        """Throw it away. Without effect after `commit`."""
        ...

    def suspend(self) -> None:
        """The stream has broken off: keep what has come, for one that goes on from there, or throw it away. Without
        effect after `commit`."""
        ...


class ExchangeStore(BlobStore, Protocol):
    """A store whose blobs travel as they are stored, without being encoded again (`cas.exchange`)."""

    def encoded(self, digest: Digest) -> tuple[BlobStat, Iterator[bytes]]:
        """How a blob is stored, and its encoded bytes in pieces: raw bytes, one zstd frame, or a patch of `delta`. The
        last piece is only given out once they have been verified. Raises BlobMissing, BlobDamaged."""
        ...

    def relatives(self, digest: Digest, most: int) -> list[Digest]:
        """Blobs of this store that resemble this one, the most alike first; empty where none is known to."""
        ...

    def make_patch(self, digest: Digest, base: Digest) -> int | None:
        """Make a delta of a blob from this base, and keep it beside the blob, so that `patch` gives it from now on;
        returns its bytes. None where that would save too little. Raises BlobMissing, BlobDamaged, StoreFull."""
        ...

    def stats(self, digests: Iterable[Digest]) -> dict[Digest, BlobStat]:
        """As `stat`, in one look at the index; without those that are not here, or damaged."""
        ...

    def read_many(self, digests: Iterable[Digest]) -> Iterator[tuple[Digest, bytes]]:
        """Many small blobs, verified, in the order given: much cheaper than one `read` for each. Raises as `read`."""
        ...

    def ensure_room(self, size_bytes: int) -> None:
        """Asked before a transfer: raises StoreFull where so many more bytes would break the quota or fill the disk."""
        ...

    def receive(self, digest: Digest, *, encoding: str, size: int) -> IncomingBlob:
        """Begin to take in a blob of `size` raw bytes that comes `plain` or as one `zstd` frame."""
        ...

    def begun(self, digests: Iterable[Digest]) -> tuple[Begun, ...]:
        """What is here of those of these blobs whose streams broke off; it may be gone when it is asked for."""
        ...

    def resume(self, begun: Begun, *, size: int, check: bytes) -> IncomingBlob:
        """Go on with a blob of `size` raw bytes. `check`: the BLAKE3-256 of the bytes that were begun, as the sender
        has them. Raises ExchangeError where they are other bytes, or gone."""
        ...

    def put_many(self, blobs: Iterable[bytes], *, lease_owner: str | None = None, ttl_s: float = 0.0) -> list[Stored]:
        """Store many blobs whole, in few transactions; with `lease_owner`, each is leased in the transaction that
        stores it. After an error a part of the blobs may be here."""
        ...
