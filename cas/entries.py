"""The index: what the store knows of each blob, as a few bytes beside its digest.

Two layouts, told apart by their first byte: a short one for blobs that lie whole in a pack (there may be millions of
them), and a long one for everything else. All integers are little-endian. Every value ends in the CRC-32 of its key and
itself, so that a flipped bit in the index is seen as what it is, and not as a missing or a wrong blob.
"""

from __future__ import annotations

import struct
from zlib import crc32

import msgspec

from cas.digest import RAW_BYTES

PLAIN = 0
ZSTD = 1
DELTA = 2
ENCODING_NAMES = ("plain", "zstd", "delta")

NOT_PACKED = 0xFFFFFFFF
CHECK_BYTES = 8

_SHORT_PLAIN = 0x01
_SHORT_ZSTD = 0x02
_LONG = 0x10

_SHORT = struct.Struct("<BHHQH")
_SHORT_PACK = _SHORT.pack
_SHORT_SEALED = struct.Struct("<BHHQHI")
_NOT_SHORT = bytes(_SHORT_SEALED.size)
_LONG_HEAD = struct.Struct("<BBBQQQIQ8s")
_CRC = struct.Struct("<I")
_SHORT_LIMIT = 0xFFFF


class BadEntry(Exception):
    """Bytes that are not a sealed value of this format."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """Where a blob lies and how it is encoded."""

    encoding: int
    size: int
    """Raw bytes."""
    stored: int
    """Encoded bytes."""
    body: int
    """Which body (a run of records) holds them."""
    offset: int
    """Where in a pack, or NOT_PACKED."""
    check: bytes
    """The first bytes of the BLAKE3-256 of the encoded bytes; for a plain blob, of its digest."""
    base: bytes | None = None
    depth: int = 0
    chain_bytes: int = 0
    """Encoded bytes that must be read to get this blob: its own and those of its bases."""

    @property
    def packed(self) -> bool:
        return self.offset != NOT_PACKED


def seal(key: bytes, value: bytes) -> bytes:
    """The value with its check behind it."""
    return value + _CRC.pack(crc32(value, crc32(key)))


def unseal(key: bytes, sealed: bytes | memoryview) -> bytes:
    """Raises BadEntry where key or value are not what was sealed."""
    value = bytes(sealed[: -_CRC.size])
    if len(sealed) < _CRC.size or crc32(value, crc32(key)) != _CRC.unpack(sealed[-_CRC.size :])[0]:
        raise BadEntry("a damaged index entry")
    return value


def encode(raw: bytes, entry: Entry) -> bytes:
    if entry.packed and entry.encoding != DELTA and entry.size <= _SHORT_LIMIT:
        tag = _SHORT_PLAIN if entry.encoding == PLAIN else _SHORT_ZSTD
        value = _SHORT.pack(tag, entry.size, entry.stored, entry.body, entry.offset)
        if tag == _SHORT_ZSTD:
            value += entry.check
        return seal(raw, value)
    value = _LONG_HEAD.pack(
        _LONG,
        entry.encoding,
        entry.depth,
        entry.size,
        entry.stored,
        entry.body,
        entry.offset,
        entry.chain_bytes,
        entry.check,
    )
    return seal(raw, value + (entry.base or b""))


def decode(raw: bytes, sealed: bytes | memoryview) -> Entry:
    """Raises BadEntry."""
    value = unseal(raw, sealed)
    try:
        if value[0] == _LONG:
            return _decode_long(value)
        tag, size, stored, body, offset = _SHORT.unpack_from(value)
        if tag == _SHORT_PLAIN:
            return Entry(PLAIN, size, stored, body, offset, raw[:CHECK_BYTES], None, 0, stored)
        if tag == _SHORT_ZSTD:
            return Entry(ZSTD, size, stored, body, offset, value[_SHORT.size :], None, 0, stored)
    except (struct.error, IndexError) as error:
        raise BadEntry("an index entry of the wrong length") from error
    raise BadEntry(f"an index entry of the unknown kind {tag}")


def _decode_long(value: bytes) -> Entry:
    _, encoding, depth, size, stored, body, offset, chain_bytes, check = _LONG_HEAD.unpack_from(value)
    base = value[_LONG_HEAD.size :]
    if encoding >= len(ENCODING_NAMES) or len(base) != (RAW_BYTES if encoding == DELTA else 0):
        raise BadEntry("an index entry that contradicts itself")
    return Entry(encoding, size, stored, body, offset, check, base or None, depth, chain_bytes)


# The short way for small plain blobs, of which there may be millions in one call.


def encode_packed_plain(raw: bytes, size: int, body: int, offset: int) -> bytes:
    """As `encode`."""
    value = _SHORT_PACK(_SHORT_PLAIN, size, size, body, offset)
    return value + crc32(raw + value).to_bytes(4, "little")


def locate_packed_plain(sealed: list[bytes | None]) -> list[tuple[int, int, int] | None]:
    """Body, offset and size of each blob that lies plain in a pack, None for any other. The seals are not looked at:
    the caller compares what it finds with the blob's digest."""
    short = [value if value is not None and len(value) == _SHORT_SEALED.size else _NOT_SHORT for value in sealed]
    return [
        (body, offset, size) if tag == _SHORT_PLAIN else None
        for tag, size, _, body, offset, _ in _SHORT_SEALED.iter_unpack(b"".join(short))
    ]
