"""The last stage of the kernel's codecs: its streams, compressed.

The streams come in two parts. *Numbers* (gaps, steps, wrong predictions) are small and skewed: LZMA's adaptive models
take 5 % less than zstd for them. *Text* (inserted code and data, written in the base's numbering) often resembles the
base, so zstd with the base as prefix takes 10 to 15 % less than LZMA, which cannot see it. Each part is packed with
whichever is smaller.

    bytes  field
    1      how the numbers are packed: 0 zstd with the base as prefix, 1 raw LZMA, 2 zstd alone
    1      how the text is packed
    4      size of the numbers, little-endian
    4      size of the text
    4      size of the packed numbers
    ...    the packed numbers, then the packed text to the end
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

from delta import zstd
from delta.errors import DeltaError
from delta.zstd import Effort

_HEAD = struct.Struct("<BBIII")

STRONG_LEVEL, QUICK_LEVEL = 19, 12
STRONG_LEVEL_BYTES = 48 << 20
PART_WEIGHT = 8
"""zstd's strong level is used while base + PART_WEIGHT * part stays within STRONG_LEVEL_BYTES: some ten seconds."""

LZMA_MOST_BYTES = 8 << 20
"""A larger part takes LZMA longer than it is worth, except at effort `best`."""

LZMA_DICTIONARY_BYTES = 16 << 20
"""The reader's. The writer uses no more than the part fills: the same bytes, without clearing tables for 16 MiB."""
LZMA_LEAST_DICTIONARY_BYTES = 4 << 10
LZMA_SHAPE = {"lc": 3, "lp": 0, "pb": 0, "dict_size": LZMA_DICTIONARY_BYTES}


class Packing(enum.IntEnum):
    """The numbers are part of the format."""

    ZSTD_PREFIX = 0
    LZMA = 1
    ZSTD = 2


def pack(base: bytes, streams: bytes, text_at: int, *, effort: Effort, text_level: int) -> bytes:
    """A payload from the kernel's streams, of which those from offset `text_at` on are text. `text_level`: of zstd."""
    numbers_how, numbers = _smallest(b"", streams[:text_at], effort, text_level)
    text_how, text = _smallest(base, streams[text_at:], effort, text_level)
    return _HEAD.pack(numbers_how, text_how, text_at, len(streams) - text_at, len(numbers)) + numbers + text


def unpack(base: bytes, payload: bytes | memoryview, *, max_size: int) -> bytes:
    """The kernel's streams. Raises DeltaError, also where they would have more than `max_size` bytes."""
    if len(payload) < _HEAD.size:
        raise DeltaError("the patch's payload is too short")
    numbers_how, text_how, numbers_bytes, text_bytes, packed_bytes = _HEAD.unpack_from(payload)
    if numbers_bytes + text_bytes > max_size:
        raise DeltaError(
            f"the patch claims {numbers_bytes + text_bytes} bytes of streams; at most {max_size} make sense"
        )
    packed = payload[_HEAD.size :]
    if packed_bytes > len(packed):
        raise DeltaError("the patch's payload is cut off")
    numbers = _unpacked(base, packed[:packed_bytes], numbers_how, numbers_bytes)
    return numbers + _unpacked(base, packed[packed_bytes:], text_how, text_bytes)


def _smallest(base: bytes, part: bytes, effort: Effort, text_level: int) -> tuple[Packing, bytes]:
    return min(_packings(base, part, effort, text_level), key=lambda candidate: len(candidate[1]))


def _packings(base: bytes, part: bytes, effort: Effort, text_level: int) -> Iterator[tuple[Packing, bytes]]:
    yield Packing.ZSTD, zstd.compress_plain(part, effort=effort)
    if part and (effort == "best" or (effort == "normal" and len(part) <= LZMA_MOST_BYTES)):
        yield Packing.LZMA, _lzma(part)
    if part and base:
        level = text_level if effort == "best" else min(text_level, _affordable_level(len(base), len(part)))
        yield Packing.ZSTD_PREFIX, zstd.compress_with_prefix(base, part, effort=effort, level=level)


def _affordable_level(base_bytes: int, part_bytes: int) -> int:
    """The strongest level reads a base at 5 MB/s and a part far more slowly."""
    return STRONG_LEVEL if base_bytes + PART_WEIGHT * part_bytes <= STRONG_LEVEL_BYTES else QUICK_LEVEL


def _unpacked(base: bytes, packed: bytes | memoryview, how: int, size: int) -> bytes:
    if how == Packing.ZSTD_PREFIX:
        return zstd.decompress(base, packed, size=size)
    if how == Packing.ZSTD:
        return zstd.decompress(b"", packed, size=size)
    if how == Packing.LZMA:
        return _unlzma(packed, size)
    raise DeltaError(f"patch with unknown packing {how}", hint="upgrade lowcloud here, or send the blob whole")


def _lzma(part: bytes) -> bytes:
    import lzma

    dictionary_bytes = min(max(len(part), LZMA_LEAST_DICTIONARY_BYTES), LZMA_DICTIONARY_BYTES)
    shape = LZMA_SHAPE | {"dict_size": dictionary_bytes}
    strongest = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, **shape}
    return lzma.compress(part, format=lzma.FORMAT_RAW, filters=[strongest])


def _unlzma(packed: bytes | memoryview, size: int) -> bytes:
    import lzma

    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, **LZMA_SHAPE}])
    try:
        part = decompressor.decompress(packed, max_length=size + 1)
    except lzma.LZMAError as error:
        raise DeltaError(f"the patch's LZMA stream is damaged: {error}") from error
    if len(part) != size or not decompressor.eof or decompressor.unused_data:
        raise DeltaError(f"the patch's LZMA stream does not hold the {size} bytes that are announced")
    return part
