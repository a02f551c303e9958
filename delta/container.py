"""The patch container: what every patch says about itself before a single byte is decoded.

    offset  bytes  field
    0       4      magic: "lcdp"
    4       1      version: 1
    5       1      codec
    6       32     BLAKE3-256 of the base
    38      32     BLAKE3-256 of the target
    70      4      target size in bytes, little-endian, at most 256 MiB
    74      ...    payload, in the codec's own format, to the end

The header has a fixed size, so all of it can be checked before any memory is taken. A reader refuses versions and
codecs that it does not know. Both digests travel with the patch: a wrong base is named as such instead of ending in
garbage, and the result is proven to be the target whatever the codec did. Specified in docs/formats.md.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from blake3 import blake3

from delta.errors import DeltaError

MAGIC = b"lcdp"
VERSION = 1
MAX_INPUT_BYTES = 256 << 20
"""Base and target are at most this large; a larger blob is stored plain, in records."""

_HEADER = struct.Struct("<4sBB32s32sI")
HEADER_BYTES = _HEADER.size


class Codec(enum.IntEnum):
    """How the payload rebuilds the target. The numbers are part of the format."""

    STORED = 0
    """The target itself."""
    ZSTD = 1
    """One zstd frame that does not use the base."""
    ZSTD_PREFIX = 2
    """One zstd frame whose matches may reach into the base."""
    WASM = 3
    """Structure-aware streams of a WASM module or component."""
    COVER = 4
    """Copies from the base with byte differences."""


@dataclass(frozen=True, slots=True)
class PatchInfo:
    """What a patch says about itself; nothing of it is verified before `decode`."""

    codec: str
    """`stored`, `zstd`, `zstd-prefix`, `wasm` or `cover`."""
    base: bytes
    """Raw BLAKE3-256 (32 bytes) of the base that the patch needs."""
    target: bytes
    """Raw BLAKE3-256 (32 bytes) of what it rebuilds."""
    target_size: int
    patch_size: int


@dataclass(frozen=True, slots=True)
class Patch:
    """A parsed container. The payload is a view into the patch, not a copy."""

    codec: Codec
    base: bytes
    target: bytes
    target_size: int
    payload: memoryview


def digest(data: bytes | memoryview) -> bytes:
    """The raw BLAKE3-256 (32 bytes) that names these bytes."""
    return blake3(data).digest()


def pack(codec: Codec, base_digest: bytes, target_digest: bytes, target_size: int, payload: bytes) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, codec, base_digest, target_digest, target_size) + payload


def unpack(patch: bytes) -> Patch:
    """Parse a container. Raises DeltaError for anything that is not one of this version."""
    if len(patch) < HEADER_BYTES:
        raise DeltaError(f"a patch of {len(patch)} bytes is too short: its header alone has {HEADER_BYTES}")
    magic, version, codec, base, target, target_size = _HEADER.unpack_from(patch)
    if magic != MAGIC:
        raise DeltaError(f"not a patch: it starts with {magic!r}, not with {MAGIC!r}")
    if version != VERSION:
        raise DeltaError(
            f"patch of format version {version}; this reader knows version {VERSION}",
            hint="upgrade lowcloud here, or send the blob whole",
        )
    try:
        known = Codec(codec)
    except ValueError:
        raise DeltaError(
            f"patch with unknown codec {codec}", hint="upgrade lowcloud here, or send the blob whole"
        ) from None
    if target_size > MAX_INPUT_BYTES:
        raise DeltaError(f"patch claims a target of {target_size} bytes; the format allows {MAX_INPUT_BYTES}")
    return Patch(known, base, target, target_size, memoryview(patch)[HEADER_BYTES:])


def inspect(patch: bytes) -> PatchInfo:
    """What a patch needs and what it makes, from its header alone. Raises DeltaError where it is not a patch."""
    parsed = unpack(patch)
    name = parsed.codec.name.lower().replace("_", "-")
    return PatchInfo(name, parsed.base, parsed.target, parsed.target_size, len(patch))
