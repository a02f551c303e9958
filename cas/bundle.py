"""An exchange stream in a file: what brings a store from one release to another where no network leads.

The head says which release the file brings, which blobs are in it and how many bytes each takes, which blobs the other
side must have already, and the hash of every piece of the stream. So a reader knows before it stores anything whether
it can use the file and has room for it, a wrong byte is named by its place, and a file that is read again stores only
what is still missing. What the blobs are is the caller's business: here a release is a digest like any other.

    bytes  field
    4      magic "lcbu"
    2      version, 1
    32     digest of the release, raw
    32     digest of the release that is built on, raw; zeros where the file needs none
    4      number of blobs in the file, B
    4      number of blobs that it needs, N
    4      length of the manifest, M
    40 B   for each blob its digest, raw, and how many bytes its frame's payload has (8)
    32 N   digests, raw
    M      manifest of the stream (`cas.manifest`)
    32     BLAKE3-256 of all bytes so far
    ...    the stream (`cas.wire`), to the end of the file

Integers are little-endian; both lists are sorted by digest. Specified in docs/formats.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Final, NamedTuple

from blake3 import blake3

from cas import manifest as manifests
from cas import wire
from cas.digest import RAW_BYTES, Digest, from_raw, to_raw
from cas.errors import CasError, ExchangeError
from cas.exchange import Received, Receiver, frame, steps
from cas.interface import ExchangeStore
from cas.manifest import MAX_MANIFEST_BYTES, PIECE_BYTES, Manifest

MAX_BLOBS: Final = 1 << 20
LEASE_OWNER: Final = "unbundle"
LEASE_S: Final = 7 * 86400.0
"""What was unbundled is protected from collection for so long: until it is deployed nothing refers to it."""

_MAGIC = b"lcbu"
_VERSION = 1
_START = struct.Struct("<4sH32s32sIII")
_ENTRY = struct.Struct("<32sQ")
_NOTHING = bytes(RAW_BYTES)

Tell = Callable[[int, int | None], None]
"""How many bytes of the stream are done, of how many (None where that is not known yet)."""


class BundleInvalid(CasError):
    """The file is no bundle, or one that no lowcloud would write."""

    hint = "`lowcloud bundle` makes one"


class BundleDamaged(CasError):
    """The file is not as it was written, at a place that the message names."""

    hint = "copy the file again and unbundle it again: what came before the damage is kept"


class BundleBaseMissing(CasError):
    """The file holds only what has changed since a release that this store does not have."""

    def __init__(self, since: Digest | None, missing: list[Digest]) -> None:
        what = f"builds on release {since}" if since else "is not whole by itself"
        super().__init__(
            f"the bundle {what}, of which {len(missing)} blobs are not in this store, such as {missing[0]}",
            hint="unbundle the bundle of that release first, or make this one without --since",
        )
        self.missing = tuple(missing)


class Head(NamedTuple):
    """What a bundle says of itself."""

    release: Digest
    since: Digest | None
    blobs: dict[Digest, int]
    """Each blob in it, with the bytes of its frame's payload."""
    needs: tuple[Digest, ...]
    """What a store must have to use it."""
    stream: Manifest


# --- writing --------------------------------------------------------------------------------------------------------


class Contents(NamedTuple):
    """What is to be in a bundle."""

    release: Digest
    since: Digest | None
    blobs: tuple[Digest, ...]
    """In the order in which they are to arrive."""
    held: tuple[Digest, ...] = ()
    """Blobs that the other side is sure to have: deltas may build on them."""
    needs: tuple[Digest, ...] = ()
    """Those without which the release would not be whole there."""
    made: Mapping[Digest, bytes] = {}
    """Deltas made for this bundle, each of a blob that is `held`."""


def pack(store: ExchangeStore, contents: Contents, spool: IO[bytes], *, tell: Tell | None = None) -> Head:
    """Write the stream of a bundle into an empty file that can be read again, and return the head that goes before it
    (`write`). Raises BlobMissing, BlobDamaged, BundleInvalid where it would hold too much."""
    entries: dict[Digest, int] = {}
    needs = set(contents.needs)
    done = 0

    def counted(chunks: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal done
        for chunk in chunks:
            spool.write(chunk)
            done += len(chunk)
            if tell is not None:
                tell(done, None)
            yield chunk

    stream = manifests.manifest_of(counted(_stream(store, contents, entries, needs)))
    head = Head(contents.release, contents.since, entries, tuple(sorted(needs)), stream)
    if max(len(entries), len(needs)) > MAX_BLOBS or len(manifests.encode(stream)) > MAX_MANIFEST_BYTES:
        raise BundleInvalid(f"{len(entries)} blobs of {done} bytes are too much for one bundle", hint="use --since")
    return head


def _stream(
    store: ExchangeStore, contents: Contents, entries: dict[Digest, int], needs: set[Digest]
) -> Iterator[bytes]:
    """Also notes what is sent, with the length of its payload, and which blobs that the other side has are built on."""
    yield wire.preamble()
    for digest, patch in contents.made.items():
        import delta

        needs.add(from_raw(delta.inspect(patch).base))
        entries[digest] = len(patch)
        yield wire.header(wire.DELTA, to_raw(digest), store.stat(digest).size, len(patch)) + patch
    rest = (digest for digest in contents.blobs if digest not in contents.made)
    for step in steps(store, rest, {*contents.held, *contents.made}):
        if step.base is not None and step.base not in entries:
            needs.add(step.base)
        chunks = frame(store, step)
        first = next(chunks)
        entries[step.stat.digest] = wire.parse_header(first[: wire.HEADER_BYTES]).payload
        yield first
        yield from chunks
    yield wire.end(len(entries))


def write(head: Head, spool: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a bundle: its head, then the stream that `pack` wrote into `spool`."""
    yield encode(head)
    spool.seek(0)
    while piece := spool.read(PIECE_BYTES):
        yield piece


def encode(head: Head) -> bytes:
    manifest = manifests.encode(head.stream)
    since = _NOTHING if head.since is None else to_raw(head.since)
    start = _START.pack(_MAGIC, _VERSION, to_raw(head.release), since, len(head.blobs), len(head.needs), len(manifest))
    entries = b"".join(_ENTRY.pack(to_raw(digest), size) for digest, size in sorted(head.blobs.items()))
    data = start + entries + b"".join(map(to_raw, sorted(head.needs))) + manifest
    return data + blake3(data).digest()


# --- reading --------------------------------------------------------------------------------------------------------


def read_head(file: IO[bytes]) -> Head:
    """The head of a bundle; the file then stands where the stream begins. Raises BundleInvalid, BundleDamaged."""
    start = _exactly(file, _START.size)
    if len(start) < _START.size or not start.startswith(_MAGIC):
        raise BundleInvalid("this is no bundle")
    _, version, release, since, blobs, needs, length = _START.unpack(start)
    if version != _VERSION:
        raise BundleInvalid(
            f"a bundle of version {version}; this lowcloud reads {_VERSION}",
            hint="use the same version of lowcloud on both sides",
        )
    if max(blobs, needs) > MAX_BLOBS or length > MAX_MANIFEST_BYTES:
        raise BundleInvalid(f"a bundle cannot list {blobs} blobs and {needs} needs with a manifest of {length} bytes")
    rest = blobs * _ENTRY.size + needs * RAW_BYTES + length
    body, check = _exactly(file, rest), _exactly(file, RAW_BYTES)
    if len(body) < rest or blake3(start + body).digest() != check:
        raise BundleDamaged(f"the head of the bundle, its first {_START.size + rest + RAW_BYTES} bytes, is damaged")
    sizes = {from_raw(raw): size for raw, size in _ENTRY.iter_unpack(body[: blobs * _ENTRY.size])}
    at = blobs * _ENTRY.size
    listed = tuple(from_raw(body[n : n + RAW_BYTES]) for n in range(at, at + needs * RAW_BYTES, RAW_BYTES))
    try:
        stream = manifests.decode(body[at + needs * RAW_BYTES :])
    except ExchangeError as error:
        raise BundleInvalid(f"the bundle's manifest cannot be used: {error}") from error
    if list(sizes) != sorted(sizes) or len(sizes) != blobs or list(listed) != sorted(set(listed)):
        raise BundleInvalid("the bundle does not list each blob once, in order")
    return Head(from_raw(release), None if since == _NOTHING else from_raw(since), sizes, listed, stream)


def pieces(head: Head, file: IO[bytes]) -> Iterator[bytes]:
    """The stream of a bundle whose head was read, each piece verified before it is given out. Raises BundleDamaged."""
    begins = len(encode(head))
    for index in range(len(head.stream.pieces)):
        length = head.stream.length(index)
        piece = _exactly(file, length)
        first = begins + index * PIECE_BYTES
        if len(piece) < length:
            raise BundleDamaged(
                f"the bundle was cut off: it has {first + len(piece)} bytes of {begins + head.stream.size}"
            )
        if not head.stream.fits(index, piece):
            raise BundleDamaged(f"the bundle is damaged somewhere in its bytes {first} to {first + length - 1}")
        yield piece
    if file.read(1):
        raise BundleDamaged(f"there is something behind the {begins + head.stream.size} bytes of the bundle")


def unpack(store: ExchangeStore, head: Head, file: IO[bytes], *, tell: Tell | None = None) -> Received:
    """Store what a bundle holds and the store lacks; all of it is durable when this returns, and leased for `LEASE_S`.
    After an error what was complete stays, and the same call goes on from there. Raises BundleBaseMissing and StoreFull
    before anything is stored; BundleDamaged, ExchangeError, StoreBusy."""
    store.lease([*head.blobs, *head.needs], owner=LEASE_OWNER, ttl_s=LEASE_S)
    lacking = store.missing(head.needs)
    if lacking:
        raise BundleBaseMissing(head.since, lacking)
    absent = set(store.missing(head.blobs))
    store.ensure_room(sum(head.blobs[digest] for digest in absent))
    done = 0
    with Receiver(store, owner=LEASE_OWNER, lease_s=LEASE_S) as receiver:
        stream = _Absent(head, absent)
        for piece in pieces(head, file):
            for part in stream.parts(piece):
                receiver.feed(part)
            done += len(piece)
            if tell is not None:
                tell(done, head.stream.size)
        return receiver.finish()


class _Absent:
    """A stream without the blobs that the store has already, and with nothing in it that the head does not list."""

    def __init__(self, head: Head, absent: set[Digest]) -> None:
        self._listed = dict(head.blobs)
        self._absent = absent
        self._held = bytearray()
        self._started = False
        self._ended = False
        self._left = 0
        self._passes = True
        self._passed = 0

    def parts(self, piece: bytes) -> Iterator[bytes]:
        view = memoryview(piece)
        while view:
            if self._left:
                part, view = view[: self._left], view[self._left :]
                self._left -= len(part)
                if self._passes:
                    yield bytes(part)
                continue
            if self._ended:
                raise ExchangeError("bytes behind the end of the bundle's stream of blobs")
            wanted = (wire.HEADER_BYTES if self._started else wire.PREAMBLE_BYTES) - len(self._held)
            self._held += view[:wanted]
            view = view[wanted:]
            yield from self._header()

    def _header(self) -> Iterator[bytes]:
        """What goes on of a preamble or a header, once it is complete."""
        if len(self._held) < (wire.HEADER_BYTES if self._started else wire.PREAMBLE_BYTES):
            return
        part = bytes(self._held)
        self._held.clear()
        if not self._started:
            self._started = True
            yield part
            return
        header = wire.parse_header(part)
        if header.kind == wire.END:
            if self._listed:
                raise ExchangeError(f"the bundle lists {len(self._listed)} blobs that are not in it")
            self._ended = True
            yield wire.end(self._passed)
            return
        digest = from_raw(header.raw)
        if self._listed.pop(digest, None) != header.payload:
            raise ExchangeError(f"the bundle holds {digest} otherwise than its head says")
        self._left = header.payload
        self._passes = digest in self._absent
        self._passed += self._passes
        if self._passes:
            yield part


def _exactly(file: IO[bytes], size: int) -> bytes:
    """So many bytes, fewer where the file ends before; a pipe gives them in parts."""
    data = bytearray()
    while len(data) < size and (part := file.read(min(size - len(data), PIECE_BYTES))):
        data += part
    return bytes(data)
