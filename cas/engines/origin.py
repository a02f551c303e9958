"""The shared origin: the blobs of a cloud in an S3 store, each as one object that keeps the encoding of a local store.

    blobs/<64 hex>    header and encoded bytes; a delta's base is an object too
    held/<64 hex>     its time says when somebody last relied on an old blob
    collecting        there while a collection deletes

Objects appear whole, are named by what they hold and are never changed, except by another encoding of the same bytes;
so two machines that upload the same blob do each other no harm.

**Uploading and collecting at once.** A collection (`origin_collect`) deletes only what nothing refers to and what is
older than `HOLD_S`, by the time of its object or of its hold. Who relies on a blob that is there already and is older
than half of that writes its hold first. And whoever has uploaded or held anything looks afterwards whether a collection
is deleting: if so it waits for its end, and looks again. A collection lists the holds after it has announced itself;
so either it sees the hold, or the one who holds sees it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from cas.digest import PREFIX, Digest, is_digest
from cas.engines.object_format import HEADER_BYTES, BadObject, Header, pack, unpack
from cas.engines.objects import Meta, Objects, side_by_side
from cas.errors import BlobDamaged, BlobMissing, CasError, StoreBusy
from cas.interface import BlobStat, ExchangeStore

BLOBS: Final = "blobs"
HELD: Final = "held"
COLLECTING: Final = "collecting"

HOLD_S: Final = 7 * 86400.0
"""What was uploaded or held so lately is not collected, whatever refers to it."""
COLLECTION_S: Final = 900.0
"""A collection that has not renewed its announcement for so long has died."""
WAIT_S: Final = 120.0
"""How long an upload waits for a collection to end."""
_PAUSE_S: Final = 0.5
WHOLE_BYTES: Final = 8 << 20
"""A larger object is uploaded in parts."""
PARTS: Final = 9_000
LIST_INSTEAD: Final = 500
"""From so many digests on, listing every object is cheaper than asking for each."""
MAX_CHAIN: Final = 64


def path_of(digest: Digest) -> str:
    return f"{BLOBS}/{digest.removeprefix(PREFIX)}"


def digest_at(path: str) -> Digest | None:
    digest = PREFIX + path.rsplit("/", 1)[-1]
    return digest if is_digest(digest) else None


class Origin:
    """Any thread may call anything. Everything raises EngineUnreachable and EngineRefused."""

    def __init__(
        self,
        objects: Objects,
        *,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
        hold_s: float = HOLD_S,
    ) -> None:
        self.objects = objects
        self.clock = clock
        self.hold_s = hold_s
        self._pause = pause

    # --- what is there ---

    def contains(self, digest: Digest) -> bool:
        return self.objects.head(path_of(digest)) is not None

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those that are not there, each once, in the order given."""
        wanted = list(dict.fromkeys(digests))
        if len(wanted) >= LIST_INSTEAD:
            there = set(self.digests())
            return [digest for digest in wanted if digest not in there]
        found = side_by_side(self.contains, wanted)
        return [digest for digest, there in zip(wanted, found, strict=True) if not there]

    def digests(self, *, after: str = "") -> Iterator[Digest]:
        """Every blob, in the order of the digests, from behind `after` (hex digits)."""
        found = (digest_at(meta.path) for meta in self.objects.list(BLOBS, after=after))
        return (digest for digest in found if digest is not None)

    def beginning_with(self, hex_digits: str, limit: int) -> list[Digest]:
        """The first blobs whose digests begin so."""
        some = self.digests(after=hex_digits[: min(len(hex_digits), 63) - 1])
        near = itertools.takewhile(lambda digest: digest[len(PREFIX) :] <= hex_digits.ljust(64, "f"), some)
        matching = (digest for digest in near if digest.startswith(PREFIX + hex_digits))
        return list(itertools.islice(matching, limit))

    def header(self, digest: Digest) -> Header:
        """Raises BlobMissing, BadObject."""
        found = self.objects.start(path_of(digest), HEADER_BYTES)
        if found is None:
            raise BlobMissing(digest)
        meta, data = found
        return unpack(data, digest, meta.size)

    def open(self, digest: Digest) -> tuple[Header, Iterator[bytes]]:
        """A blob's header and its encoded bytes, of which nothing is verified yet. Raises BlobMissing, BadObject."""
        found = self.objects.get(path_of(digest))
        if found is None:
            raise BlobMissing(digest)
        meta, pieces = found
        held = b""
        while len(held) < HEADER_BYTES and (piece := next(pieces, b"")):
            held += piece
        return unpack(held, digest, meta.size), itertools.chain([held[HEADER_BYTES:]], pieces)

    # --- uploading ---

    def ensure(self, local: ExchangeStore, digests: Iterable[Digest]) -> int:
        """See to it that these blobs of a local store, and what their encodings are built on, are at the origin and
        stay there for a while. Returns how many were new there. Raises BlobMissing for one that is in neither place,
        BlobDamaged, StoreBusy where a collection does not end."""
        wanted = list(dict.fromkeys(digests))
        new = 0
        ends = self.clock() + WAIT_S
        while True:
            absent = self._hold(wanted)
            try:
                for level in _levels(local, absent):
                    new += sum(side_by_side(lambda stat: self._upload(local, stat), self._not_there(level, absent)))
            except _EncodedAnew:
                if self.clock() < ends:
                    continue
                raise
            if not wanted or not self._being_collected():
                return new
            if self.clock() >= ends:
                raise StoreBusy(
                    f"a collection at {self.objects.name} has been deleting for {WAIT_S:g} s",
                    hint="wait until `lowcloud gc` has ended there, then try again",
                )
            self._pause(_PAUSE_S)

    def hold(self, digests: Iterable[Digest]) -> list[Digest]:
        """Keep those of these blobs that are at the origin for a while, and give the others. Raises StoreBusy."""
        wanted = list(dict.fromkeys(digests))
        ends = self.clock() + WAIT_S
        while True:
            absent = self._hold(wanted)
            if not wanted or len(absent) == len(wanted) or not self._being_collected():
                return absent
            if self.clock() >= ends:
                raise StoreBusy(f"a collection at {self.objects.name} has been deleting for {WAIT_S:g} s")
            self._pause(_PAUSE_S)

    def _hold(self, digests: Sequence[Digest]) -> list[Digest]:
        """Write a hold for each that is there and old; the others are given."""
        found = side_by_side(self.objects.head, [path_of(digest) for digest in digests])
        old = [meta for meta in found if meta is not None and self._is_old(meta)]
        side_by_side(self._write_hold, old)
        return [digest for digest, meta in zip(digests, found, strict=True) if meta is None]

    def _is_old(self, meta: Meta) -> bool:
        return self.clock() - meta.modified_unix_s > self.hold_s / 2

    def _write_hold(self, meta: Meta) -> None:
        self.objects.put(f"{HELD}/{meta.path.rsplit('/', 1)[-1]}", b"")

    def _being_collected(self) -> bool:
        found = self.objects.head(COLLECTING)
        return found is not None and self.clock() - found.modified_unix_s < COLLECTION_S

    def _not_there(self, level: list[BlobStat], absent: list[Digest]) -> list[BlobStat]:
        """Bases may be there although what is built on them is not; they are held then."""
        wanted = set(absent)
        bases = [stat.digest for stat in level if stat.digest not in wanted]
        still_absent = wanted | set(self._hold(bases))
        return [stat for stat in level if stat.digest in still_absent]

    def _upload(self, local: ExchangeStore, stat: BlobStat, *, over_another: bool = False) -> bool:
        now, pieces = local.encoded(stat.digest)
        if now.base != stat.base:  # Perhaps on a base that is not at the origin.
            raise _EncodedAnew(f"the blob {stat.digest} is encoded anew again and again", hint="try again")
        if now.base is not None and not self._can_carry(now.base, now.digest):
            now, pieces = _whole(local, now)
        head = pack(Header(now.digest, now.encoding, now.size, now.base))
        if now.stored_bytes <= WHOLE_BYTES and not over_another:
            return self.objects.create(path_of(now.digest), head + b"".join(pieces))
        guarded = _Guarded(itertools.chain([head], pieces))
        part_bytes = max(WHOLE_BYTES, -(-now.stored_bytes // PARTS))
        try:
            self.objects.put(path_of(now.digest), guarded, part_bytes=part_bytes)
        except CasError:
            if guarded.failure is not None:
                raise guarded.failure from None
            raise
        return True

    def _can_carry(self, base: Digest, digest: Digest) -> bool:
        """Whether a blob at the origin can be a base of this one: it is whole there, and not itself built on it. A
        store that has turned its deltas round since it uploaded them could otherwise close a circle."""
        for _ in range(MAX_CHAIN):
            try:
                below = self.header(base).base
            except (BlobMissing, BadObject):
                return False
            if below is None or below == digest:
                return below is None
            base = below
        return False

    def replace(self, local: ExchangeStore, digest: Digest) -> None:
        """Put a sound copy where a damaged one is; readers find one or the other. Raises as `ensure`."""
        stat = local.stat(digest)
        if stat.base is not None:
            self.ensure(local, [stat.base])
        self._upload(local, stat, over_another=True)

    # --- fetching ---

    def fetch(self, digest: Digest, local: ExchangeStore) -> None:
        """Bring a blob, and what its encoding is built on, into a local store that verifies it. Raises BlobMissing,
        BadObject, BlobDamaged where the bytes are not what their name says."""
        waiting = [digest]
        while waiting:
            if len(waiting) > MAX_CHAIN:
                raise BlobDamaged(digest, f"at {self.objects.name} it is a chain of more than {MAX_CHAIN} deltas")
            header, pieces = self.open(waiting[-1])
            if header.base is not None and not local.contains(header.base):
                waiting.append(header.base)
                continue
            self._take(header, pieces, local)
            waiting.pop()

    def _take(self, header: Header, pieces: Iterator[bytes], local: ExchangeStore) -> None:
        import delta
        from cas.errors import DigestMismatch, ExchangeError

        try:
            if header.encoding == "delta":
                local.put_patch(header.digest, b"".join(pieces), max_size=header.size)
                return
            incoming = local.receive(header.digest, encoding=header.encoding, size=header.size)
            try:
                for piece in pieces:
                    incoming.write(piece)
                incoming.commit()
            except BaseException:
                incoming.abort()
                raise
        except (DigestMismatch, ExchangeError, delta.DeltaError) as error:
            raise BlobDamaged(header.digest, f"the copy at {self.objects.name} is not what its name says") from error


class _EncodedAnew(StoreBusy):
    """The local store has changed a blob's encoding since it was asked for it."""


class _Guarded:
    """Pieces for an upload, which remembers what went wrong here rather than there."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.failure: CasError | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        except CasError as error:
            self.failure = error
            raise


def _whole(local: ExchangeStore, stat: BlobStat) -> tuple[BlobStat, Iterator[bytes]]:
    """A blob that is stored as a delta, and so fits into memory, encoded without its base."""
    from cas import compression, entries

    kind, payload = compression.smallest(local.read(stat.digest))
    encoding = entries.ENCODING_NAMES[kind]
    return BlobStat(stat.digest, stat.size, encoding, len(payload)), iter([payload])


def _levels(local: ExchangeStore, digests: Iterable[Digest]) -> list[list[BlobStat]]:
    """These blobs and what they are built on, each after its base. Raises BlobMissing."""
    found: dict[Digest, BlobStat] = {}
    for digest in digests:
        waiting: Digest | None = digest
        while waiting is not None and waiting not in found:
            found[waiting] = local.stat(waiting)
            waiting = found[waiting].base
    by_depth: dict[int, list[BlobStat]] = {}
    for stat in found.values():
        by_depth.setdefault(stat.depth, []).append(stat)
    return [by_depth[depth] for depth in sorted(by_depth)]
