"""A blob as an object at the shared origin: a header, then the encoded bytes as a store keeps them.

The format is in docs/formats.md.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cas.digest import Digest, from_raw, to_raw
from cas.errors import CasError

MAGIC: Final = b"lcob"
VERSION: Final = 1
ENCODINGS: Final = ("plain", "zstd", "delta")
MAX_BLOB_BYTES: Final = 64 << 30
MAX_DELTA_BYTES: Final = 256 << 20
"""Of the base, the target and the patch: `delta`'s own bound."""

_HEADER = struct.Struct("<4sHBxQ32s32s")
HEADER_BYTES: Final = _HEADER.size
_NO_BASE = bytes(32)


class BadObject(CasError):
    """An object at the origin that is not what its name says."""

    hint = "`lowcloud check` on a machine that has the blob replaces it"


class Header(NamedTuple):
    digest: Digest
    encoding: str
    size: int
    """Raw bytes of the blob."""
    base: Digest | None


def pack(header: Header) -> bytes:
    base = to_raw(header.base) if header.base else _NO_BASE
    encoding = ENCODINGS.index(header.encoding)
    return _HEADER.pack(MAGIC, VERSION, encoding, header.size, to_raw(header.digest), base)


def unpack(data: bytes, digest: Digest, object_bytes: int) -> Header:
    """The header in the first bytes of an object of `object_bytes` that should hold `digest`. Raises BadObject before
    anybody has believed a size in it."""
    if len(data) < HEADER_BYTES:
        raise BadObject(f"the object of {digest} is shorter than its header")
    magic, version, encoding, size, raw, base = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BadObject(f"the object of {digest} is none of lowcloud's")
    if version != VERSION:
        raise BadObject(f"the object of {digest} has format version {version}; this lowcloud reads {VERSION}")
    if from_raw(raw) != digest:
        raise BadObject(f"the object of {digest} says that it is {from_raw(raw)}")
    if encoding >= len(ENCODINGS):
        raise BadObject(f"the object of {digest} has an encoding that is not known")
    header = Header(digest, ENCODINGS[encoding], size, from_raw(base) if base != _NO_BASE else None)
    payload = object_bytes - HEADER_BYTES
    limit = MAX_DELTA_BYTES if header.encoding == "delta" else MAX_BLOB_BYTES
    too_long = payload != size if header.encoding == "plain" else payload > min(size, limit) + 1024
    if size > limit or too_long or (header.encoding == "delta") != (header.base is not None):
        raise BadObject(f"the object of {digest} has a header that makes no sense")
    return header
