"""Which blobs of a store resemble one another: a sketch of a few numbers for each, kept in a table of bounded size.

A file that is pushed under another name has no history, yet the store often has what it was made from. Its sketch finds
that without reading a single blob: the bytes are cut at every newline, and of the checksums of the pieces the smallest
few are kept. Two blobs share the part of these that they share of their pieces (min-wise hashing, Broder 1997). Where a
piece begins and ends is decided by the bytes alone, so what is inserted shifts nothing. The rule is the same for text
and for binary code, in which about one byte in 250 happens to be a newline: over 43 modules of 8 release series it
found a version of the right series for each (its neighbours share 14 % and more, another program at most 10 %). What
has hardly a newline (minified scripts, JSON on one line) is cut at commas instead.

A sketch only proposes. What it proposes is tried, and its measured gain decides; so damaged or stale rows cost time and
nothing else. Row formats: docs/formats.md, "Store".
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from heapq import nsmallest
from zlib import crc32

import lmdb

from cas.batch import Batch
from cas.digest import RAW_BYTES
from cas.environment import Environment

Sketch = tuple[int, ...]
"""Ascending; empty for a blob that has none."""

FEATURES = 32
LEAST_FEATURES = 4
"""Fewer say nothing."""
LEAST_BYTES = 16 << 10
"""A smaller blob has no sketch: a delta of it would save less than finding it costs."""
LEAST_PIECE_BYTES = 8
"""Shorter pieces are everywhere and say nothing."""
SLICE_BYTES = 4 << 20
"""How much is cut up at a time: bounds memory, and costs a piece at each end."""
KEPT_BLOBS = 8192
"""The table forgets the oldest sketches beyond this many: at most about 16 MiB."""
LOOKED_AT = 16
"""How many blobs that have a number in common are looked at, the newest first."""
LEAST_RESEMBLANCE = 0.12
"""Below, blobs are of another kind, or have the same toolchain and nothing else in common."""

_NEWLINE, _COMMA = b"\n", b","
_BLOB, _FEATURE, _SEQUENCE = b"b", b"f", b"s"
_NUMBER = struct.Struct(">I")
_PLACE = struct.Struct(">Q")
_LAST = (1 << 64) - 1


def sketch_of(data: bytes) -> Sketch:
    """At 400 MB/s; nothing for blobs of less than LEAST_BYTES."""
    if len(data) < LEAST_BYTES:
        return ()
    sketch = _smallest(data, _NEWLINE)
    if len(sketch) < FEATURES:
        sketch = _smallest(data, _COMMA)
    return sketch if len(sketch) >= LEAST_FEATURES else ()


def _smallest(data: bytes, separator: bytes) -> Sketch:
    smallest: list[int] = []
    for piece in _slices(data, separator):
        parts = piece.split(separator)
        found = {crc32(part) for part in parts if len(part) >= LEAST_PIECE_BYTES}
        found.update(smallest)
        smallest = nsmallest(FEATURES, found)
    return tuple(smallest)


def _slices(data: bytes, separator: bytes) -> Iterator[bytes]:
    """Slices that end behind a separator, where there is one."""
    start = 0
    while start < len(data):
        end = start + SLICE_BYTES
        if end < len(data):
            end = data.rfind(separator, start, end) + 1 or end
        yield data[start:end]
        start = end


def resemblance(one: Sketch, other: Sketch) -> float:
    """The share of their pieces that two blobs have in common, as far as their sketches tell: 0 to 1."""
    smallest = nsmallest(FEATURES, {*one, *other})
    return len({*smallest} & {*one} & {*other}) / len(smallest) if smallest else 0.0


def remember(batch: Batch, raw: bytes, sketch: Sketch) -> None:
    """Make a blob findable. Forgets the oldest where there are too many."""
    table = batch.env.sketches
    if not sketch or batch.txn.get(_BLOB + raw, db=table) is not None:
        return
    with batch.txn.cursor(table) as cursor:
        newest = _last_place(cursor)
    place = _PLACE.pack(0 if newest is None else newest + 1)
    batch.txn.put(_BLOB + raw, place + b"".join(map(_NUMBER.pack, sketch)), db=table)
    batch.txn.put(_SEQUENCE + place, raw, db=table)
    for number in sketch:
        batch.txn.put(_FEATURE + _NUMBER.pack(number) + place, b"", db=table)
    _forget_oldest(batch, _PLACE.unpack(place)[0])


def forget(batch: Batch, raw: bytes) -> None:
    """The blob is gone."""
    table = batch.env.sketches
    row = batch.txn.get(_BLOB + raw, db=table)
    found = None if row is None else _parsed(row)
    if found is None:
        return
    place, sketch = found
    batch.txn.delete(_BLOB + raw, db=table)
    batch.txn.delete(_SEQUENCE + _PLACE.pack(place), db=table)
    for number in sketch:
        batch.txn.delete(_FEATURE + _NUMBER.pack(number) + _PLACE.pack(place), db=table)


def known(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes) -> Sketch:
    """A blob's sketch; empty where it has none."""
    row = txn.get(_BLOB + raw, db=env.sketches)
    found = None if row is None else _parsed(row)
    return found[1] if found else ()


def similar(
    env: Environment, txn: lmdb.Transaction[memoryview], sketch: Sketch, most: int
) -> list[tuple[float, bytes]]:
    """Blobs that resemble one of this sketch, the most similar first: resemblance, raw digest. Any may be gone."""
    shared: Counter[int] = Counter()
    with txn.cursor(env.sketches) as cursor:
        for number in sketch:
            shared.update(_places(cursor, _FEATURE + _NUMBER.pack(number)))
    found = []
    for place, _ in shared.most_common(LOOKED_AT):
        raw = bytes(txn.get(_SEQUENCE + _PLACE.pack(place), db=env.sketches) or b"")
        if len(raw) == RAW_BYTES:
            found.append((resemblance(sketch, known(env, txn, raw)), raw))
    alike = [item for item in found if item[0] >= LEAST_RESEMBLANCE]
    return sorted(alike, key=lambda item: item[0], reverse=True)[:most]


def _places(cursor: lmdb.Cursor[memoryview], prefix: bytes) -> Iterator[int]:
    """The newest blobs that have a number."""
    found = cursor.set_range(prefix + _PLACE.pack(_LAST))
    found = cursor.prev() if found else cursor.last()
    for _ in range(LOOKED_AT):
        key = bytes(cursor.key()) if found else b""
        if not key.startswith(prefix) or len(key) != len(prefix) + _PLACE.size:
            return
        yield _PLACE.unpack(key[len(prefix) :])[0]
        found = cursor.prev()


def _last_place(cursor: lmdb.Cursor[bytes]) -> int | None:
    """The rows of _SEQUENCE are the last in the table."""
    if not cursor.last() or not cursor.key().startswith(_SEQUENCE):
        return None
    return int(_PLACE.unpack(cursor.key()[1:])[0])


def _forget_oldest(batch: Batch, newest: int) -> None:
    with batch.txn.cursor(batch.env.sketches) as cursor:
        if not cursor.set_range(_SEQUENCE) or newest - _PLACE.unpack(cursor.key()[1:])[0] < KEPT_BLOBS:
            return
        oldest = cursor.key(), cursor.value()
    forget(batch, oldest[1])
    batch.txn.delete(oldest[0], db=batch.env.sketches)


def _parsed(row: bytes | memoryview) -> tuple[int, Sketch] | None:
    if len(row) < _PLACE.size or (len(row) - _PLACE.size) % _NUMBER.size:
        return None
    numbers = tuple(number for (number,) in _NUMBER.iter_unpack(row[_PLACE.size :]))
    return _PLACE.unpack_from(row)[0], numbers
