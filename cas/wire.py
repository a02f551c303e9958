"""The exchange format: a stream of blobs, each whole, compressed, or as a delta of one the receiver has.

    stream:  magic "lcxs" (4), version u16 = 1, then frames, then an end frame
    frame:   kind u8, digest (32), raw size u64, payload size u64, payload
    kinds:   0 plain, 1 zstd, 2 delta (a patch of `delta`), 3 rest, 255 end
    rest:    kind u8 (0 or 1), offset u64, BLAKE3-256 of the encoded bytes before it (32), the encoded bytes behind it

Integers are little-endian. An end frame has a digest of zeros, the number of frames in the place of the raw size, and
no payload; a stream without one was cut off. All bounds are checked from the header, before any memory is taken.
Specified in docs/formats.md.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from cas.digest import RAW_BYTES
from cas.errors import ExchangeError

MAGIC = b"lcxs"
VERSION = 1
PLAIN = 0
ZSTD = 1
DELTA = 2
REST = 3
END = 255

MAX_BLOB_BYTES = 64 << 30
MAX_DELTA_BYTES = 256 << 20
"""Bound of a delta's target, and of its patch."""
ZSTD_MARGIN_BYTES = 1 << 10
"""A zstd frame may be so much larger than its content; a sender would have sent it plain."""

_PREAMBLE = struct.Struct("<4sH")
_HEADER = struct.Struct("<B32sQQ")
PREAMBLE_BYTES = _PREAMBLE.size
HEADER_BYTES = _HEADER.size
_REST = struct.Struct("<BQ32s")
REST_BYTES = _REST.size
_NOBODY = bytes(RAW_BYTES)


class Header(msgspec.Struct, frozen=True):
    kind: int
    raw: bytes
    """The digest's 32 bytes."""
    size: int
    payload: int


def preamble() -> bytes:
    return _PREAMBLE.pack(MAGIC, VERSION)


def check_preamble(data: bytes) -> None:
    """Raises ExchangeError."""
    magic, version = _PREAMBLE.unpack(data)
    if magic != MAGIC:
        raise ExchangeError(f"this is not a stream of blobs: it starts with {magic!r}")
    if version != VERSION:
        raise ExchangeError(
            f"a stream of blobs of version {version}; this lowcloud reads {VERSION}",
            hint="use the same version of lowcloud on both sides",
        )


def header(kind: int, raw: bytes, size: int, payload: int) -> bytes:
    return _HEADER.pack(kind, raw, size, payload)


def end(frames: int) -> bytes:
    return _HEADER.pack(END, _NOBODY, frames, 0)


def parse_header(data: bytes) -> Header:
    """Raises ExchangeError for a frame that no sender would make."""
    kind, raw, size, payload = _HEADER.unpack(data)
    if kind == END:
        fits = payload == 0 and raw == _NOBODY
    elif kind == PLAIN:
        fits = payload == size <= MAX_BLOB_BYTES
    elif kind == ZSTD:
        fits = size <= MAX_BLOB_BYTES and 0 < payload <= size + ZSTD_MARGIN_BYTES
    elif kind == DELTA:
        fits = size <= MAX_DELTA_BYTES and 0 < payload <= MAX_DELTA_BYTES
    elif kind == REST:
        fits = size <= MAX_BLOB_BYTES and REST_BYTES <= payload <= REST_BYTES + size + ZSTD_MARGIN_BYTES
    else:
        raise ExchangeError(f"a frame of the unknown kind {kind}")
    if not fits:
        raise ExchangeError(f"a frame of kind {kind} cannot have {size} bytes in a payload of {payload}")
    return Header(kind, raw, size, payload)


class Rest(NamedTuple):
    """What a frame of kind REST begins with."""

    kind: int
    offset: int
    check: bytes


def rest(kind: int, offset: int, check: bytes) -> bytes:
    return _REST.pack(kind, offset, check)


def parse_rest(data: bytes, header: Header) -> Rest:
    """Raises ExchangeError for what no sender would make."""
    found = Rest(*_REST.unpack(data))
    whole = found.offset + header.payload - REST_BYTES
    fits = whole == header.size if found.kind == PLAIN else whole <= header.size + ZSTD_MARGIN_BYTES
    if found.kind not in (PLAIN, ZSTD) or not fits:
        raise ExchangeError(f"the rest of a blob of {header.size} bytes, of kind {found.kind}, does not end at {whole}")
    return found
