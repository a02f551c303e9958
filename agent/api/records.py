"""The records that outlive a question, because they are blobs or are signed: as bytes, a line that names the record and
its version, then msgpack. Who reads them may be of another version, and refuses what it does not know.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from agent.api.base import Struct
from agent.api.neighbours import Neighbours
from agent.api.words import Wishes, Word

RECORD_KINDS: Final[dict[type[Struct], str]] = {Neighbours: "neighbours", Wishes: "wishes", Word: "word"}
R = TypeVar("R", bound=Struct)


def encode_record(record: Neighbours | Wishes | Word) -> bytes:
    """A record between hosts as bytes: a line that says what it is, and msgpack, written in one way only."""
    return _record_line(type(record)) + msgspec.msgpack.encode(record, order="deterministic")


def decode_record(data: bytes, kind: type[R]) -> R:
    """Raises ValueError for anything else, and for another version of it."""
    line = _record_line(kind)
    if not data.startswith(line):
        raise ValueError(f"these bytes are no {RECORD_KINDS[kind]} that this lowcloud can read")
    try:
        return msgspec.msgpack.decode(memoryview(data)[len(line) :], type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"these bytes are no {RECORD_KINDS[kind]}: {error}") from error


def _record_line(kind: type[Struct]) -> bytes:
    return f"lowcloud {RECORD_KINDS[kind]} 1\n".encode()
