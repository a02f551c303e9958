"""Bodies: runs of records that hold encoded bytes.

A record is an LMDB value of at most 256 KiB - 16 bytes, which with LMDB's page header fills 64 pages exactly; whole
values of any size would fragment the file. A body holds one blob, or, as a *pack*, many small ones. Bodies are numbered
in the order they are made and a number is never used again, so records are always appended.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import lmdb

from cas.entries import Entry
from cas.environment import Environment

RECORD_BYTES = (256 << 10) - 16
PACK_BYTES = (64 << 10) - 16
SMALL_BYTES = 16 << 10
"""Encoded blobs of at most this size are packed."""

_KEY = struct.Struct(">QI")


class RecordMissing(Exception):
    """The index points at a record that is not there."""


def record_key(body: int, index: int) -> bytes:
    return _KEY.pack(body, index)


def body_of_key(key: bytes | memoryview) -> int:
    return int(_KEY.unpack(key)[0])


def record_count(stored: int) -> int:
    return -(-stored // RECORD_BYTES)


def record_sizes(stored: int) -> Iterator[int]:
    """The sizes of the records of a body of so many bytes."""
    for start in range(0, stored, RECORD_BYTES):
        yield min(RECORD_BYTES, stored - start)


def write_records(env: Environment, txn: lmdb.Transaction[bytes], body: int, data: bytes | memoryview) -> None:
    """Write a body whole."""
    view = memoryview(data)
    for index, start in enumerate(range(0, len(view), RECORD_BYTES)):
        txn.put(record_key(body, index), view[start : start + RECORD_BYTES], db=env.records)


def delete_records(env: Environment, txn: lmdb.Transaction[bytes], body: int) -> None:
    """Delete every record of a body, however many there are."""
    with txn.cursor(env.records) as cursor:
        found = cursor.set_range(record_key(body, 0))
        while found and body_of_key(cursor.key()) == body:
            cursor.delete()
            found = bool(cursor.key())


def read_record(env: Environment, txn: lmdb.Transaction[memoryview], body: int, index: int, size: int) -> memoryview:
    """One record, valid inside the transaction. Raises RecordMissing."""
    view = txn.get(record_key(body, index), db=env.records)
    if view is None or len(view) != size:
        raise RecordMissing(f"record {index} of body {body} is {'missing' if view is None else 'cut short'}")
    return view


def read_stored(env: Environment, txn: lmdb.Transaction[memoryview], entry: Entry) -> bytes:
    """A blob's encoded bytes, copied. Raises RecordMissing."""
    if entry.packed:
        view = txn.get(record_key(entry.body, 0), db=env.records)
        if view is None or len(view) < entry.offset + entry.stored:
            raise RecordMissing(f"pack {entry.body} is {'missing' if view is None else 'cut short'}")
        return bytes(view[entry.offset : entry.offset + entry.stored])
    sizes = enumerate(record_sizes(entry.stored))
    return b"".join([read_record(env, txn, entry.body, index, size) for index, size in sizes])
