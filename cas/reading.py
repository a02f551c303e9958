"""From stored bytes back to the blob, verified at every step.

Encoded bytes are compared with the check in the index before they are decoded, so that it is known *which* blob of a
chain of deltas is damaged; the result is compared with its name. Everything is copied out of LMDB inside one short
transaction, and decoded outside of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import lmdb
from blake3 import blake3

from cas import entries
from cas.bodies import RecordMissing, read_record, read_stored, record_sizes
from cas.digest import Digest, from_raw
from cas.entries import CHECK_BYTES, DELTA, ENCODING_NAMES, PLAIN, ZSTD, BadEntry, Entry
from cas.environment import Environment
from cas.errors import BlobDamaged, BlobMissing, CasError
from cas.interface import BlobStat, KeptPatch

MAX_DEPTH = 6
"""At most so many deltas are applied to read a blob."""
_DEPTH_LIMIT = 64
"""A chain this long is not one that this store has written."""
WHOLE_BYTES = 8 << 20
"""Blobs up to this size, and all deltas, are decoded whole even where they are streamed."""
PIECE_BYTES = 256 << 10
_RESTARTS = 3

Link = tuple[bytes, Entry, bytes]
"""A blob of a chain: digest, entry, encoded bytes."""


def find_entry(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes) -> Entry | None:
    """Raises BlobDamaged where the index entry is."""
    sealed = txn.get(raw, db=env.blobs)
    if sealed is None:
        return None
    try:
        return entries.decode(raw, sealed)
    except BadEntry as error:
        raise BlobDamaged(from_raw(raw), str(error)) from error


def get_entry(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes) -> Entry:
    """Raises BlobMissing, BlobDamaged."""
    entry = find_entry(env, txn, raw)
    if entry is None:
        raise BlobMissing(from_raw(raw))
    return entry


def stat_of(env: Environment, txn: lmdb.Transaction[memoryview], digest: Digest, raw: bytes, entry: Entry) -> BlobStat:
    """What is known of a blob that has this entry."""
    from cas import patches

    kept = tuple([KeptPatch(from_raw(base), size) for base, size in patches.sizes(env, txn, raw)])
    base = from_raw(entry.base) if entry.base is not None else None
    return BlobStat(digest, entry.size, ENCODING_NAMES[entry.encoding], entry.stored, base, entry.depth, kept)


def read(env: Environment, raw: bytes) -> bytes:
    """The whole blob. Raises BlobMissing, BlobDamaged."""
    with env.reading() as txn:
        entry = get_entry(env, txn, raw)
        if entry.encoding != DELTA:
            stored = _stored(env, txn, raw, entry)
        else:
            chain = load_chain(env, txn, raw)
    if entry.encoding == DELTA:
        return rebuild(chain)
    return _undo(raw, raw, entry, stored, None)


def load_chain(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes) -> list[Link]:
    """A blob and its bases, the blob first. Raises BlobMissing for the blob, BlobDamaged for anything else."""
    entry = get_entry(env, txn, raw)
    chain = [(raw, entry, _stored(env, txn, raw, entry))]
    while entry.base is not None:
        if len(chain) > _DEPTH_LIMIT:
            raise BlobDamaged(from_raw(raw), "its chain of deltas does not end")
        base = entry.base
        try:
            entry = get_entry(env, txn, base)
            chain.append((base, entry, _stored(env, txn, base, entry)))
        except CasError as error:
            raise BlobDamaged(from_raw(raw), f"what it is built on cannot be read: {error}") from error
    return chain


def rebuild(chain: list[Link]) -> bytes:
    """Decode a chain, root first. Raises BlobDamaged with the name of the blob that was asked for."""
    asked = chain[0][0]
    data: bytes | None = None
    for raw, entry, stored in reversed(chain):
        data = _undo(asked, raw, entry, stored, data)
    if data is None:
        raise BlobDamaged(from_raw(asked), "its chain of deltas is empty")
    return data


def _undo(asked: bytes, raw: bytes, entry: Entry, stored: bytes, base: bytes | None) -> bytes:
    """One blob's encoded bytes to its raw bytes, verified."""
    if entry.encoding == PLAIN:
        if len(stored) != entry.size or blake3(stored).digest() != raw:
            raise _damaged(asked, raw, "its bytes have changed on disk")
        return stored
    if blake3(stored).digest(length=CHECK_BYTES) != entry.check:
        raise _damaged(asked, raw, "its bytes have changed on disk")
    data = _decompress(asked, raw, entry, stored) if entry.encoding == ZSTD else _apply(asked, raw, entry, stored, base)
    if blake3(data).digest() != raw:
        raise _damaged(asked, raw, "it decodes to other bytes than its name says")
    return data


def _decompress(asked: bytes, raw: bytes, entry: Entry, stored: bytes) -> bytes:
    from cas import compression  # Plain blobs, such as releases, are read without loading zstd.

    try:
        return compression.decompress_any(stored, entry.size)
    except compression.BadFrame as error:
        raise _damaged(asked, raw, str(error)) from error


def _apply(asked: bytes, raw: bytes, entry: Entry, patch: bytes, base: bytes | None) -> bytes:
    import delta

    if base is None:
        raise _damaged(asked, raw, "its delta has no base")
    try:
        return delta.decode(base, patch, max_size=entry.size)
    except delta.DeltaError as error:
        raise _damaged(asked, raw, f"its delta cannot be applied: {error}") from error


def _damaged(asked: bytes, raw: bytes, reason: str) -> BlobDamaged:
    if asked != raw:
        reason = f"what it is built on, {from_raw(raw)}, is damaged: {reason}"
    return BlobDamaged(from_raw(asked), reason)


def _stored(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes, entry: Entry) -> bytes:
    try:
        return read_stored(env, txn, entry)
    except RecordMissing as error:
        raise BlobDamaged(from_raw(raw), str(error)) from error
    except lmdb.Error as error:
        raise BlobDamaged(from_raw(raw), f"its records cannot be read: {error}") from error


# --- without decoding -----------------------------------------------------------------------------------------------


def damage_of(env: Environment, raw: bytes) -> str | None:
    """Compare a blob's encoded bytes, and those of its bases, with the index, record by record, without decoding them.
    Returns what is wrong, or None. Raises BlobMissing."""
    asked = raw
    wanted: bytes | None = raw
    for _ in range(_DEPTH_LIMIT):
        if wanted is None:
            return None
        try:
            with env.reading() as txn:
                entry = get_entry(env, txn, wanted)
            hasher = blake3()
            for record in stored_records(env, entry):
                hasher.update(record)
        except BlobMissing:
            if wanted == asked:
                raise
            return f"what it is built on, {from_raw(wanted)}, is missing"
        except (BlobDamaged, RecordMissing) as error:
            return str(error)
        expected = wanted if entry.encoding == PLAIN else entry.check
        if hasher.digest(length=len(expected)) != expected:
            return "its bytes have changed on disk"
        wanted = entry.base
    return "its chain of deltas does not end"


def stored_records(env: Environment, entry: Entry) -> Iterator[bytes]:
    """The encoded bytes of a blob, a record at a time, each copied in a transaction of its own. Raises RecordMissing
    where the blob was collected or encoded anew meanwhile, or is damaged."""
    if entry.packed or entry.stored <= RECORD_WHOLE_BYTES:
        with env.reading() as txn:
            stored = read_stored(env, txn, entry)
        yield stored
        return
    for index, size in enumerate(record_sizes(entry.stored)):
        with env.reading() as txn:
            record = bytes(read_record(env, txn, entry.body, index, size))
        yield record


RECORD_WHOLE_BYTES = 1 << 20


# --- streaming ------------------------------------------------------------------------------------------------------


def stream(env: Environment, raw: bytes) -> Iterator[bytes]:
    """The blob in pieces; the last one only once the digest has been verified. Raises BlobMissing, BlobDamaged."""
    with env.reading() as txn:
        entry = get_entry(env, txn, raw)
    if entry.encoding == DELTA or entry.size <= WHOLE_BYTES:
        data = memoryview(read(env, raw))
        for start in range(0, len(data), PIECE_BYTES):
            yield bytes(data[start : start + PIECE_BYTES])
        return
    hasher = blake3()
    held: bytes | None = None
    for piece in _pieces(env, raw, entry):
        hasher.update(piece)
        if held is not None:
            yield held
        held = piece
    if hasher.digest() != raw:
        raise BlobDamaged(from_raw(raw), "its bytes have changed on disk")
    if held is not None:
        yield held


def _pieces(env: Environment, raw: bytes, entry: Entry) -> Iterator[bytes]:
    """Unverified pieces. A blob that gets a new body while it is read (healed, encoded anew) is taken up again where
    the old one was left."""
    given = 0
    for _ in range(_RESTARTS):
        try:
            for piece in _skipping(_decoded(env, raw, entry), given):
                given += len(piece)
                yield piece
            return
        except RecordMissing as error:
            with env.reading() as txn:
                now = get_entry(env, txn, raw)
            if now.body == entry.body:
                raise BlobDamaged(from_raw(raw), str(error)) from error
            entry = now
    raise BlobDamaged(from_raw(raw), "it changed its place too often while it was read")


def _decoded(env: Environment, raw: bytes, entry: Entry) -> Iterator[bytes]:
    if entry.encoding == DELTA:
        yield read(env, raw)
        return
    records = stored_records(env, entry)
    if entry.encoding == PLAIN:
        yield from records
        return
    from cas import compression

    try:
        yield from compression.decompressed(records, PIECE_BYTES)
    except compression.BadFrame as error:
        raise BlobDamaged(from_raw(raw), str(error)) from error


def _skipping(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
        else:
            yield piece[skip:]
            skip = 0


# --- deltas as they are ---------------------------------------------------------------------------------------------


def patch(env: Environment, raw: bytes, bases: set[bytes]) -> tuple[Digest, bytes] | None:
    """The stored delta, or one kept beside the blob, where there is one against one of these bases. Raises BlobMissing,
    BlobDamaged."""
    with env.reading() as txn:
        entry = get_entry(env, txn, raw)
        if entry.base is None or entry.base not in bases:
            from cas import patches

            return patches.smallest(env, txn, raw, bases)
        stored = _stored(env, txn, raw, entry)
    if blake3(stored).digest(length=CHECK_BYTES) != entry.check:
        raise _damaged(raw, raw, "its bytes have changed on disk")
    return from_raw(entry.base), stored


def encoded(env: Environment, raw: bytes) -> Iterator[bytes]:
    """The encoded bytes in pieces, the last one only once they have been verified. Raises BlobMissing, BlobDamaged."""
    with env.reading() as txn:
        entry = get_entry(env, txn, raw)
    hasher = blake3()
    held: bytes | None = None
    try:
        for piece in stored_records(env, entry):
            hasher.update(piece)
            if held is not None:
                yield held
            held = piece
    except RecordMissing as error:
        with env.reading() as txn:
            get_entry(env, txn, raw)  # Was it collected meanwhile?
        raise BlobDamaged(from_raw(raw), str(error)) from error
    expected = raw if entry.encoding == PLAIN else entry.check
    if hasher.digest(length=len(expected)) != expected:
        raise _damaged(raw, raw, "its bytes have changed on disk")
    if held is not None:
        yield held
