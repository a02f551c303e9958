"""Blobs from store to store in one stream, each in the form that costs the fewest bytes.

The sender (`frames`) reuses what is stored: a delta travels as the delta that is stored, where the receiver has its
base or gets it earlier in the stream, and a compressed blob as the frame that is stored. A blob several versions ahead
of what the receiver has is sent as the deltas in between, where these are smaller than the whole (`cas.routes`).

The receiver (`Receiver`) trusts nothing: it is fed chunks of any size, holds a bounded part of them, asks whether there
is room for a blob before it takes the first byte of it, leases it before it stores it, and keeps it only once its
digest is verified. What was complete before an error stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from types import TracebackType

import msgspec
from blake3 import blake3

from cas import wire
from cas.digest import Digest, digest_of, from_raw, to_raw
from cas.errors import BlobMissing, BlobTooLarge, DigestMismatch, ExchangeError
from cas.interface import Begun, BlobStat, ExchangeStore, IncomingBlob
from cas.routes import Stat, Step, cheapest, reach

WHOLE_LEVEL = 9
"""zstd level for a blob that is stored as a delta and must be sent whole."""
SMALL_BYTES = 64 << 10
"""Payloads up to this size, of blobs up to `SMALL_BLOB_BYTES`, are stored many in one transaction."""
SMALL_BLOB_BYTES = 1 << 20
PACKED_BYTES = 16 << 10
"""A sender reads blobs up to this size many at a time."""
LOOKED_UP_BLOBS = 1024
GATHER_BYTES = 4 << 20
GATHER_BLOBS = 16_384
LEASE_S = 3600.0

_KINDS = {"plain": wire.PLAIN, "zstd": wire.ZSTD}
_ENCODINGS = {wire.PLAIN: "plain", wire.ZSTD: "zstd"}


class Received(msgspec.Struct, frozen=True):
    """What a stream brought."""

    blobs: int
    wire_bytes: int
    raw_bytes: int


# --- sending --------------------------------------------------------------------------------------------------------


def bases_of(store: ExchangeStore, digests: Iterable[Digest]) -> tuple[Digest, ...]:
    """The blobs whose presence at the receiver would save bytes: all that deltas lead to these from, the nearest first.
    Raises BlobMissing."""
    found: dict[Digest, None] = {}
    for digest, stat in _looked_up(store, digests):
        for other in reach(stat, digest):
            if other != digest:
                found.setdefault(other)
    return tuple(found)


def frames(
    store: ExchangeStore, digests: Iterable[Digest], bases: Iterable[Digest] = (), begun: Iterable[Begun] = ()
) -> Iterator[bytes]:
    """A stream that brings `digests` to a receiver that holds `bases`, and of some blobs the first bytes. Raises
    BlobMissing, BlobDamaged; a stream that was cut short by an error is recognised as such by the receiver."""
    sent = 0
    there = {one.digest: one for one in begun}
    yield wire.preamble()
    for small, run in groupby(steps(store, digests, bases), key=_is_small_and_plain):
        if small:
            for digest, data in store.read_many(step.stat.digest for step in run):
                sent += 1
                yield wire.header(wire.PLAIN, to_raw(digest), len(data), len(data)) + data
        else:
            for step in run:
                sent += 1
                yield from frame(store, step, there.get(step.stat.digest))
    yield wire.end(sent)


def steps(store: ExchangeStore, digests: Iterable[Digest], bases: Iterable[Digest] = ()) -> Iterator[Step]:
    """What `frames` sends, in order: these blobs, and those that a way to them leads over. Raises BlobMissing."""
    held = set(bases)
    wanted = dict.fromkeys(digests)
    for digest, stat in _looked_up(store, wanted):
        for step in cheapest(stat, digest, held, wanted.keys()):
            held.add(step.stat.digest)
            yield step


def _looked_up(store: ExchangeStore, digests: Iterable[Digest]) -> Iterator[tuple[Digest, Stat]]:
    """Each of these blobs, and what knows it; many at a time, because most that are sent together are small."""
    wanted = iter(digests)
    while group := list(islice(wanted, LOOKED_UP_BLOBS)):
        stat = _knowing(store, store.stats(group))
        for digest in group:
            yield digest, stat


def _knowing(store: ExchangeStore, found: dict[Digest, BlobStat]) -> Stat:
    return lambda digest: found.get(digest) or store.stat(digest)


def _is_small_and_plain(step: Step) -> bool:
    return step.base is None and step.stat.encoding == "plain" and step.stat.size <= PACKED_BYTES


def cost(store: ExchangeStore, digests: Iterable[Digest], bases: Iterable[Digest] = ()) -> int:
    """About how many bytes `frames` would be, without reading a blob: exact but for a blob that is stored as a delta
    and must travel whole, which is counted as its oldest base is stored. Raises BlobMissing."""
    sent = sum(wire.HEADER_BYTES + step.bytes for step in steps(store, digests, bases))
    return wire.PREAMBLE_BYTES + sent + wire.HEADER_BYTES


def frame(store: ExchangeStore, step: Step, begun: Begun | None = None) -> Iterator[bytes]:
    """One blob of a stream, or what the receiver has not got of it; whole after all where it was encoded anew since the
    step was planned. Raises BlobMissing, BlobDamaged."""
    digest, size, raw = step.stat.digest, step.stat.size, to_raw(step.stat.digest)
    if step.base is not None and (found := store.patch(digest, [step.base])) is not None:
        yield wire.header(wire.DELTA, raw, size, len(found[1])) + found[1]
        return
    stat, pieces = store.encoded(digest)
    if stat.encoding == "delta":  # To be sent without its base, or encoded anew since the route was planned.
        kind, payload = _compressed(store.read(digest))
        yield wire.header(kind, raw, size, len(payload)) + payload
        return
    if begun is not None and begun.encoding == stat.encoding and 0 < begun.bytes <= stat.stored_bytes:
        yield from _rest(stat, begun.bytes, pieces)
        return
    first = next(pieces, b"")
    yield wire.header(_KINDS[stat.encoding], raw, size, stat.stored_bytes) + first
    yield from pieces


def _rest(stat: BlobStat, offset: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The encoded bytes of a blob from an offset on."""
    before = blake3()
    left = offset
    for piece in pieces:
        if left:
            before.update(piece[:left])
            rest = piece[left:]
            left -= len(piece) - len(rest)
            if left:
                continue
            payload = wire.REST_BYTES + stat.stored_bytes - offset
            yield wire.header(wire.REST, to_raw(stat.digest), stat.size, payload)
            yield wire.rest(_KINDS[stat.encoding], offset, before.digest()) + rest
        else:
            yield piece


def _compressed(data: bytes) -> tuple[int, bytes]:
    from cas import compression, entries

    kind, payload = compression.smallest(data, level=WHOLE_LEVEL)
    return (wire.ZSTD if kind == entries.ZSTD else wire.PLAIN), payload


# --- receiving ------------------------------------------------------------------------------------------------------


class Receiver:
    """Takes a stream in. Not thread-safe: one thread at a time feeds it.

    Used as a context manager, or ended with `finish` or `close`. Feeding raises ExchangeError for anything that is not
    a sound stream, and StoreFull or StoreBusy; after an error the receiver only repeats that it has failed.
    """

    def __init__(self, store: ExchangeStore, *, owner: str | None = None, lease_s: float = LEASE_S) -> None:
        self._store = store
        self._owner = owner or f"exchange:{secrets.token_hex(8)}"
        self._lease_s = lease_s
        self._held = bytearray()
        self._started = False
        self._header: wire.Header | None = None
        self._incoming: IncomingBlob | None = None
        self._left = 0
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._ended = False
        self._failed = False
        self.blobs = 0
        self.wire_bytes = 0
        self.raw_bytes = 0

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def feed(self, *chunks: bytes) -> None:
        if self._failed:
            raise ExchangeError("the stream has failed before this part of it")
        try:
            for chunk in chunks:
                self.wire_bytes += len(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[self._consume(view) :]
        except BaseException:
            self._failed = True
            self.close()
            raise

    def finish(self) -> Received:
        """The stream has ended. Everything it brought is durable when this returns. Raises ExchangeError where it was
        cut off."""
        try:
            if self._failed or not self._ended:
                raise ExchangeError("the stream of blobs was cut off before its end", hint="send it again")
        finally:
            self.close()
        return Received(self.blobs, self.wire_bytes, self.raw_bytes)

    def close(self) -> None:
        """Keep what is complete, and the beginning of a large blob where only the stream has failed. Idempotent."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None and self._failed:
            incoming.abort()
        elif incoming is not None:
            incoming.suspend()
        self._store_gathered()

    # Each step consumes a part of what has come, and returns how many bytes.

    def _consume(self, view: memoryview) -> int:
        if self._ended:
            raise ExchangeError("bytes behind the end of a stream of blobs")
        if self._header is not None:
            return self._payload(self._header, view)
        wanted = wire.HEADER_BYTES if self._started else wire.PREAMBLE_BYTES
        taken = min(len(view), wanted - len(self._held))
        self._held += view[:taken]
        if len(self._held) == wanted:
            part = bytes(self._held)
            self._held.clear()
            if self._started:
                self._begin(wire.parse_header(part))
            else:
                wire.check_preamble(part)
                self._started = True
        return taken

    def _begin(self, header: wire.Header) -> None:
        if header.kind == wire.END:
            if header.size != self.blobs:
                raise ExchangeError(f"the stream says it has {header.size} blobs, but it had {self.blobs}")
            self._ended = True
            return
        self._header = header
        self._left = header.payload
        if header.payload > SMALL_BYTES:
            self._store.ensure_room(header.payload)
        if header.kind in _ENCODINGS and (header.payload > SMALL_BYTES or header.size > SMALL_BLOB_BYTES):
            digest = from_raw(header.raw)
            self._lease(digest)
            self._incoming = self._store.receive(digest, encoding=_ENCODINGS[header.kind], size=header.size)
        if self._left == 0:
            self._complete(header)

    def _payload(self, header: wire.Header, view: memoryview) -> int:
        if header.kind == wire.REST and self._incoming is None:
            return self._take_up(header, view)
        part = view[: self._left]
        self._left -= len(part)
        if self._incoming is not None:
            self._incoming.write(part)
        else:
            self._held += part
        if self._left == 0:
            self._complete(header)
        return len(part)

    def _take_up(self, header: wire.Header, view: memoryview) -> int:
        """Go on with a blob whose stream broke off."""
        part = view[: wire.REST_BYTES - len(self._held)]
        self._held += part
        self._left -= len(part)
        if len(self._held) == wire.REST_BYTES:
            rest = wire.parse_rest(bytes(self._held), header)
            self._held.clear()
            digest = from_raw(header.raw)
            self._lease(digest)
            begun = Begun(digest, _ENCODINGS[rest.kind], rest.offset)
            self._incoming = self._store.resume(begun, size=header.size, check=rest.check)
            if self._left == 0:
                self._complete(header)
        return len(part)

    def _complete(self, header: wire.Header) -> None:
        digest = from_raw(header.raw)
        payload = bytes(self._held)
        self._held.clear()
        self._header = None
        try:
            if self._incoming is not None:
                self._incoming.commit()
                self._incoming = None
            elif header.kind == wire.DELTA:
                self._take_delta(digest, header, payload)
            else:
                self._gather(digest, header, payload)
        except DigestMismatch as error:
            raise ExchangeError(f"the bytes sent as {digest} are something else: {error}") from error
        self.blobs += 1
        self.raw_bytes += header.size

    def _take_delta(self, digest: Digest, header: wire.Header, patch: bytes) -> None:
        import delta

        self._store_gathered()
        self._lease(digest)
        try:
            if delta.inspect(patch).target_size != header.size:
                raise ExchangeError(f"the delta of {digest} makes another size than was announced")
            self._store.put_patch(digest, patch, max_size=header.size)
        except (delta.DeltaError, BlobMissing, BlobTooLarge) as error:
            raise ExchangeError(f"the delta of {digest} cannot be applied: {error}") from error

    def _gather(self, digest: Digest, header: wire.Header, payload: bytes) -> None:
        data = payload
        if header.kind == wire.ZSTD:
            from cas import compression

            try:
                data = compression.decompress_any(payload, header.size)
            except compression.BadFrame as error:
                raise ExchangeError(f"the bytes of {digest} cannot be decompressed: {error}") from error
        actual = digest_of(data)
        if actual != digest:
            raise DigestMismatch(digest, actual)
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHER_BYTES or len(self._gathered) >= GATHER_BLOBS:
            self._store_gathered()

    def _store_gathered(self) -> None:
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if gathered:
            self._store.put_many(gathered, lease_owner=self._owner, ttl_s=self._lease_s)

    def _lease(self, digest: Digest) -> None:
        self._store.lease([digest], owner=self._owner, ttl_s=self._lease_s)


def transfer(source: ExchangeStore, target: ExchangeStore, digests: Iterable[Digest]) -> Received:
    """Bring to `target` what it lacks of `digests`, on one machine."""
    wanted = target.missing(digests)
    bases = [base for base in bases_of(source, wanted) if target.contains(base)]
    with Receiver(target) as receiver:
        for chunk in frames(source, wanted, bases):
            receiver.feed(chunk)
        return receiver.finish()


__all__ = ["Received", "Receiver", "bases_of", "cost", "frame", "frames", "steps", "transfer"]
