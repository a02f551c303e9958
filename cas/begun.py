"""What has come of a large blob whose stream broke off, so that it need not be sent again.

The whole records of its body stay, and the `begun` table says under the blob's digest which body that is. Whoever goes
on with it takes the note away in the same transaction, so no two streams write to one body. A body that nobody goes on
with is thrown away like any that is pending, and so is one more than `MAX_BEGUN`.

The bytes are not verified yet, and need not be: the sender says what they must hash to (`cas.wire`), and the blob is
verified as a whole at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import lmdb

from cas.batch import Batch
from cas.bodies import RECORD_BYTES
from cas.digest import Digest, from_raw, to_raw
from cas.entries import ENCODING_NAMES, BadEntry, seal, unseal
from cas.environment import Environment
from cas.interface import Begun

MAX_BEGUN = 16

_NOTE = struct.Struct("<BQI")


class Note(NamedTuple):
    encoding: int
    body: int
    records: int


def note(batch: Batch, raw: bytes, found: Note) -> bool:
    """Remember it, of a blob of which nothing is remembered; False where there are too many."""
    table = batch.env.begun
    if batch.txn.stat(table)["entries"] >= MAX_BEGUN:
        return False
    batch.txn.put(raw, seal(raw, _NOTE.pack(*found)), db=table)
    return True


def take(batch: Batch, raw: bytes) -> Note | None:
    """Take the note away, for one who goes on with it."""
    sealed = batch.txn.pop(raw, db=batch.env.begun)
    return None if sealed is None else _read(raw, sealed)


def known(env: Environment, digests: Iterable[Digest]) -> tuple[Begun, ...]:
    """What is here of these."""
    with env.reading() as txn:
        if not txn.stat(env.begun)["entries"]:
            return ()
        notes = [(digest, _look(env, txn, to_raw(digest))) for digest in digests]
    return tuple(
        Begun(digest, ENCODING_NAMES[found.encoding], found.records * RECORD_BYTES)
        for digest, found in notes
        if found is not None
    )


def stale(env: Environment, txn: lmdb.Transaction[memoryview], gone: Iterable[int]) -> list[Digest]:
    """The blobs that were begun in bodies that are gone, or whose notes are damaged."""
    bodies = set(gone)
    found = []
    for key, sealed in txn.cursor(env.begun):
        read = _read(bytes(key), bytes(sealed))
        if read is None or read.body in bodies:
            found.append(from_raw(bytes(key)))
    return found


def _look(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes) -> Note | None:
    sealed = txn.get(raw, db=env.begun)
    return None if sealed is None else _read(raw, bytes(sealed))


def _read(raw: bytes, sealed: bytes) -> Note | None:
    try:
        return Note(*_NOTE.unpack(unseal(raw, sealed)))
    except (BadEntry, struct.error):
        return None
