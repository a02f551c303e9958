"""Storing blobs: find out whether they are here, choose an encoding, and hand the writer one job.

All that costs time (hashing, encoding, reading bases) happens in the caller's thread, before the job. The job itself
looks at the index again, because the world may have moved: the blob may have come by another way, and its base may have
been collected, in which case the blob is encoded anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain as joined
from itertools import islice

from blake3 import blake3

from cas import bases, encoding, names, reading, similarity
from cas.access import Access
from cas.batch import Batch, collection_running
from cas.digest import Digest, from_raw, to_raw
from cas.encoding import Encoded
from cas.entries import ZSTD, BadEntry, Entry
from cas.errors import BlobDamaged, BlobMissing, BlobTooLarge, CasError, DigestMismatch, StoreBusy
from cas.incoming import IncomingBody, is_pending, settle
from cas.interface import Stored
from cas.similarity import Sketch

BUFFERED_BYTES = 16 << 20
NAMED_BUFFERED_BYTES = 64 << 20
"""A stream up to this size is stored like any other blob, so that, having a name, it can become a delta; a longer one
goes straight into records."""
NAMELESS_BYTES = 256 << 10
"""A smaller blob without a name is stored whole: it is a definition or a plan, and a command that reads one should not
have to load a decoder."""
SAMPLES = 16
SAMPLE_BYTES = 64 << 10
"""How much of a long stream's beginning decides whether it is compressed."""
_ATTEMPTS = 3


def put(access: Access, data: bytes, *, name: str | None, expect: Digest | None) -> Stored:
    raw = blake3(data).digest()
    _demand(expect, raw)
    if name is not None:
        names.key_of(name)
    if is_whole(access, raw):
        acknowledge(access, raw, name)
        return Stored(from_raw(raw), len(data), new=False, stored_bytes=0)
    access.ensure_room(1)
    heals = is_indexed(access, raw)
    sketch = similarity.sketch_of(data)
    for attempt in range(_ATTEMPTS):
        # A damaged blob may itself be a base, so it must not get a chain under it: it comes back whole.
        plain = heals or attempt == _ATTEMPTS - 1
        encoded = encoding.whole(raw, data) if plain else _encode(access, raw, data, name, sketch)
        stored = store_encoded(access, raw, len(data), encoded, name, sketch)
        if stored is not None:
            return stored
    raise BlobMissing(from_raw(raw))


def put_stream(access: Access, chunks: Iterable[bytes], *, name: str | None, expect: Digest | None) -> Stored:
    if name is not None:
        names.key_of(name)
    pieces = iter(chunks)
    buffered_bytes = BUFFERED_BYTES if name is None else NAMED_BUFFERED_BYTES
    head: deque[bytes] = deque()
    size = 0
    for piece in pieces:
        head.append(piece)
        size += len(piece)
        if size > buffered_bytes:
            return _put_long_stream(access, joined(_draining(head), pieces), _sample(head), name, expect)
    data = b"".join(head)
    head.clear()
    return put(access, data, name=name, expect=expect)


def put_patch(access: Access, digest: Digest, patch: bytes, *, name: str | None, max_size: int) -> Stored:
    import delta

    raw = to_raw(digest)
    info = delta.inspect(patch)
    if info.target_size > max_size:
        raise BlobTooLarge(f"the blob {digest}", info.target_size, max_size)
    if info.target != raw:
        raise DigestMismatch(digest, from_raw(info.target))
    if is_whole(access, raw):
        acknowledge(access, raw, name)
        return Stored(digest, info.target_size, new=False, stored_bytes=0)
    access.ensure_room(len(patch))
    data = delta.decode(reading.read(access.env, info.base), patch, max_size=max_size)
    if blake3(data).digest() != raw:
        raise DigestMismatch(digest, from_raw(blake3(data).digest()))
    with access.env.reading() as txn:
        chain = bases.chain_of(access.env, txn, info.base)
    if chain and not is_indexed(access, raw):
        candidate = chain[0]
        if encoding.suitable(candidate, len(data)) and encoding.chain_allows(candidate, len(patch), len(data)):
            stored = store_encoded(access, raw, len(data), encoding.as_delta(candidate, patch), name)
            if stored is not None:
                return stored
    stored = store_encoded(access, raw, len(data), encoding.whole(raw, data), name)
    if stored is None:
        raise BlobMissing(digest)
    return stored


# --- what is here already -------------------------------------------------------------------------------------------


def is_indexed(access: Access, raw: bytes) -> bool:
    with access.env.reading() as txn:
        return txn.get(raw, db=access.env.blobs) is not None


def is_whole(access: Access, raw: bytes) -> bool:
    """Whether the blob is here and its encoded bytes, and those of its bases, are what they were."""
    if not is_indexed(access, raw):
        return False
    try:
        return reading.damage_of(access.env, raw) is None
    except BlobMissing:
        return False


def acknowledge(access: Access, raw: bytes, name: str | None) -> None:
    """Say that a blob is wanted which is here already: to a collection under way, and to the history of its name."""
    with access.env.reading() as txn:
        known = name is None or next(names.newest_first(access.env, txn, name), None) == raw
        if known and not collection_running(access.env, txn):
            return

    def change(batch: Batch) -> None:
        batch.protect(raw)
        if name is not None:
            names.remember(batch, name, raw)

    access.write(change)


def clear_damaged(batch: Batch, raw: bytes, damaged_body: int | None) -> bool:
    """Make way for a blob: True where the index does not have it (any more). `damaged_body` is the body that was seen
    to be damaged; any other is a copy that came meanwhile."""
    try:
        entry = batch.entry(raw)
    except BadEntry:
        batch.forget_damaged(raw)
        return True
    if entry is None:
        return True
    if entry.body != damaged_body:
        return False
    batch.remove(raw, entry)
    return True


def body_in_index(access: Access, raw: bytes) -> int | None:
    """The body that a damaged blob has now."""
    try:
        with access.env.reading() as txn:
            entry = reading.find_entry(access.env, txn, raw)
    except BlobDamaged:
        return None
    return entry.body if entry else None


def store_encoded(
    access: Access, raw: bytes, size: int, encoded: Encoded, name: str | None, sketch: Sketch = ()
) -> Stored | None:
    """One job for one blob that is not here, or damaged. None where its base is gone."""
    damaged_body = body_in_index(access, raw)

    def change(batch: Batch) -> Stored | None:
        stored_bytes = 0
        new = clear_damaged(batch, raw, damaged_body)
        if new:
            if not _base_stands(batch, encoded):
                return None
            stored_bytes = add_encoded(batch, raw, size, encoded)
        else:
            batch.protect(raw)
        similarity.remember(batch, raw, sketch)
        if name is not None:
            names.remember(batch, name, raw)
        return Stored(from_raw(raw), size, new, stored_bytes)

    return access.write(change, len(encoded.stored))


def add_encoded(batch: Batch, raw: bytes, size: int, encoded: Encoded) -> int:
    entry = batch.add(
        raw,
        encoded.encoding,
        size,
        encoded.stored,
        encoded.check,
        base=encoded.base,
        depth=encoded.depth,
        chain_bytes=encoded.chain_bytes,
    )
    return entry.stored


def _base_stands(batch: Batch, encoded: Encoded) -> bool:
    """A base that was encoded anew meanwhile may have become part of a chain; then depth and bytes no longer hold."""
    if encoded.base is None:
        return True
    links = bases.links_of(batch, encoded.base)
    return links is not None and len(links) == encoded.depth


# --- one blob -------------------------------------------------------------------------------------------------------


def _demand(expect: Digest | None, raw: bytes) -> None:
    if expect is not None and to_raw(expect) != raw:
        raise DigestMismatch(expect, from_raw(raw))


def _encode(access: Access, raw: bytes, data: bytes, name: str | None, sketch: Sketch) -> Encoded:
    def read_base(base: bytes) -> bytes | None:
        try:
            return reading.read(access.env, base)
        except CasError:
            return None

    found = bases.candidates(access, name, sketch) if name is not None or len(data) >= NAMELESS_BYTES else []
    return encoding.choose(raw, data, found, read_base=read_base, encode_delta=encode_delta)


def encode_delta(base: bytes, target: bytes) -> bytes | None:
    import delta

    try:
        return delta.encode(base, target, effort="normal")
    except delta.DeltaError:
        return None


# --- long streams ---------------------------------------------------------------------------------------------------


def _draining(pieces: deque[bytes]) -> Iterator[bytes]:
    """Each piece once, and none of them held for longer than needed."""
    while pieces:
        yield pieces.popleft()


def _sample(pieces: deque[bytes]) -> bytes:
    """Something of every part of a stream's beginning, to see whether it compresses."""
    step = max(1, len(pieces) // SAMPLES)
    return b"".join(bytes(piece[:SAMPLE_BYTES]) for piece in islice(pieces, 0, None, step))


def _put_long_stream(
    access: Access, chunks: Iterable[bytes], sample: bytes, name: str | None, expect: Digest | None
) -> Stored:
    from cas import compression

    kind = compression.smallest(sample, level=compression.STREAM_LEVEL)[0]
    body = IncomingBody(access)
    hasher = blake3()
    size = 0
    deflater = compression.Deflater() if kind == ZSTD else None
    try:
        for chunk in chunks:
            hasher.update(chunk)
            size += len(chunk)
            for piece in [chunk] if deflater is None else deflater.feed(chunk):
                body.write(piece)
        for piece in () if deflater is None else deflater.end():
            body.write(piece)
        _demand(expect, hasher.digest())
    except BaseException:
        _abandon(body)
        raise
    return index_body(access, body, hasher.digest(), kind, size, name=name)


def index_body(
    access: Access, body: IncomingBody, raw: bytes, kind: int, size: int, *, name: str | None = None
) -> Stored:
    """Give a complete body its name; drop it where the blob is here already and whole."""
    if is_whole(access, raw):
        body.abandon()
        acknowledge(access, raw, name)
        return Stored(from_raw(raw), size, new=False, stored_bytes=0)
    damaged_body = body_in_index(access, raw)
    try:
        return body.index(raw, kind, size, lambda batch, entry: _index(batch, raw, entry, damaged_body, name))
    except BaseException:
        _abandon(body)
        raise


def _index(batch: Batch, raw: bytes, entry: Entry, damaged_body: int | None, name: str | None) -> Stored:
    if not is_pending(batch, entry.body):
        raise StoreBusy(
            f"the stream of {from_raw(raw)} paused for so long that its first part was thrown away",
            hint="send it again",
        )
    new = clear_damaged(batch, raw, damaged_body)
    settle(batch, entry.body)
    if new:
        batch.index(raw, entry)
    else:
        batch.protect(raw)
        batch.drop_records(entry.body)
    if name is not None:
        names.remember(batch, name, raw)
    return Stored(from_raw(raw), entry.size, new, entry.stored if new else 0)


def _abandon(body: IncomingBody) -> None:
    """Clean up after a failure, which is what the caller shall see, not a second one."""
    try:
        body.abandon()
    except CasError:
        return
