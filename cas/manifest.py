"""The hashes of a blob's pieces, so that a wrong byte is caught within one piece of where it came from.

A blob's own digest proves it only once the last byte has come. With a manifest each piece of 256 KiB is checked as it
arrives, may come from another peer, and may be handed on before the rest is here. A manifest is itself bytes with a
digest: who knows that digest from a source that it trusts (a release) cannot be given a false one. Bytes of at most one
piece need no manifest, their digest is enough.

    bytes  field
    4      magic "lcmf"
    2      version, 1
    8      size of the bytes
    32     digest of the bytes, raw
    32 ... for each piece its BLAKE3-256

Integers are little-endian. Specified in docs/formats.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from blake3 import blake3

from cas.digest import RAW_BYTES, Digest, from_raw, to_raw
from cas.errors import ExchangeError

PIECE_BYTES: Final = 256 << 10
MAX_MANIFEST_BYTES: Final = 16 << 20
"""Of a blob of 128 GiB."""

_MAGIC = b"lcmf"
_VERSION = 1
_HEAD = struct.Struct("<4sHQ32s")


class Manifest(NamedTuple):
    """Of some bytes: how many they are, their digest, and the raw hash of each piece."""

    size: int
    digest: Digest
    pieces: tuple[bytes, ...]

    def length(self, index: int) -> int:
        """How many bytes the piece of this index has."""
        return min(PIECE_BYTES, self.size - index * PIECE_BYTES)

    def fits(self, index: int, piece: bytes | memoryview) -> bool:
        """Whether these are the bytes of that piece."""
        return len(piece) == self.length(index) and blake3(piece).digest() == self.pieces[index]


def pieces_in(size: int) -> int:
    return -(-size // PIECE_BYTES)


def manifest_of(chunks: Iterable[bytes]) -> Manifest:
    """The manifest of bytes that come in chunks of any size; in memory is one piece and the hashes."""
    whole, size, hashes = blake3(), 0, []
    for piece in in_pieces(chunks):
        whole.update(piece)
        size += len(piece)
        hashes.append(blake3(piece).digest())
    return Manifest(size, from_raw(whole.digest()), tuple(hashes))


def of_one_piece(digest: Digest, size: int) -> Manifest:
    """Of bytes whose own digest is the hash of their only piece. Raises ValueError for more than a piece."""
    if size > PIECE_BYTES:
        raise ValueError(f"{size} bytes are more than one piece")
    return Manifest(size, digest, (to_raw(digest),) if size else ())


def in_pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut into pieces."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)


def encode(manifest: Manifest) -> bytes:
    return _HEAD.pack(_MAGIC, _VERSION, manifest.size, to_raw(manifest.digest)) + b"".join(manifest.pieces)


def decode(data: bytes) -> Manifest:
    """Raises ExchangeError for what is no manifest."""
    if not _HEAD.size <= len(data) <= MAX_MANIFEST_BYTES:
        raise ExchangeError(f"a manifest has no {len(data)} bytes")
    magic, version, size, digest = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise ExchangeError(f"this is not a manifest: it starts with {magic!r}")
    if version != _VERSION:
        raise ExchangeError(
            f"a manifest of version {version}; this lowcloud reads {_VERSION}",
            hint="use the same version of lowcloud on all hosts",
        )
    if len(data) != _HEAD.size + pieces_in(size) * RAW_BYTES:
        raise ExchangeError(f"a manifest of {size} bytes has another length than {len(data)}")
    hashes = (data[at : at + RAW_BYTES] for at in range(_HEAD.size, len(data), RAW_BYTES))
    return Manifest(size, from_raw(digest), tuple(hashes))
