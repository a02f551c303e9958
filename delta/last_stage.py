"""The last stage of the kernel's codecs: its streams, compressed.

The streams come in two parts. *Numbers* (gaps, steps, wrong predictions) are small and skewed: LZMA's adaptive models
take 5 % less than zstd for them. *Text* (inserted code and data, written in the base's numbering) often resembles the
base: the kernel's own coder (delta/kernel/text.h), whose copies reach into the base, takes 6 to 13 % less than zstd's
level 19 with the base as prefix, in a third of its time or less on most. It runs in a sandbox; here its result
is only put into its place.

    bytes  field
    1      how the numbers are packed: 0 zstd with the base as prefix, 1 raw LZMA, 2 zstd alone
    1      how the text is packed: as the numbers, or 3 by the kernel's coder of text
    4      size of the numbers, little-endian
    4      size of the text
    4      size of the packed numbers
    ...    the packed numbers, then the packed text to the end
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from delta import zstd
from delta.errors import DeltaError
from delta.zstd import Effort

_HEAD = struct.Struct("<BBIII")

LZMA_MOST_BYTES = 8 << 20
"""A larger part takes LZMA longer than it is worth, except at effort `best`."""

ZSTD_MOST_BYTES = 1 << 10
"""A smaller part may still be smaller by zstd."""

LZMA_DICTIONARY_BYTES = 16 << 20
"""The reader's. The writer uses no more than the part fills: the same bytes, without clearing tables for 16 MiB."""
LZMA_LEAST_DICTIONARY_BYTES = 4 << 10
LZMA_SHAPE = {"lc": 3, "lp": 0, "pb": 0, "dict_size": LZMA_DICTIONARY_BYTES}


class Packing(enum.IntEnum):
    """The numbers are part of the format."""

    ZSTD_PREFIX = 0
    LZMA = 1
    ZSTD = 2
    TEXT_CODER = 3


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The two parts of the streams; where `coded` is not None, the text is still the kernel's to unpack."""

    numbers: bytes
    text: bytes
    coded: memoryview | None
    text_bytes: int


def pack(
    base: bytes, streams: bytes, text_at: int, *, effort: Effort, text_level: int, coded_text: bytes | None = None
) -> bytes:
    """A payload from the kernel's streams, of which those from offset `text_at` on are text. `coded_text`: from the
    kernel's coder; without it zstd packs the text, at `text_level`."""
    numbers_how, numbers = _smallest(_packings(streams[:text_at], effort))
    text_bytes = len(streams) - text_at
    if coded_text is None:
        text_how, text = _smallest(_text_packings(base, streams[text_at:], effort, text_level))
    else:
        text_how, text = Packing.TEXT_CODER, coded_text
    return _HEAD.pack(numbers_how, text_how, text_at, text_bytes, len(numbers)) + numbers + text


def unpack(base: bytes, payload: bytes | memoryview, *, max_size: int) -> Unpacked:
    """The kernel's streams. Raises DeltaError, also where they would have more than `max_size` bytes."""
    if len(payload) < _HEAD.size:
        raise DeltaError("the patch's payload is too short")
    numbers_how, text_how, numbers_bytes, text_bytes, packed_bytes = _HEAD.unpack_from(payload)
    if numbers_bytes + text_bytes > max_size:
        raise DeltaError(
            f"the patch claims {numbers_bytes + text_bytes} bytes of streams; at most {max_size} make sense"
        )
    packed = memoryview(payload)[_HEAD.size :]
    if packed_bytes > len(packed):
        raise DeltaError("the patch's payload is cut off")
    numbers, text = _unpacked(base, packed[:packed_bytes], numbers_how, numbers_bytes), packed[packed_bytes:]
    if text_how == Packing.TEXT_CODER:
        return Unpacked(numbers, b"", text, text_bytes)
    return Unpacked(numbers, _unpacked(base, text, text_how, text_bytes), None, text_bytes)


def _smallest(packings: Iterator[tuple[Packing, bytes]]) -> tuple[Packing, bytes]:
    return min(packings, key=lambda candidate: len(candidate[1]))


def _packings(part: bytes, effort: Effort) -> Iterator[tuple[Packing, bytes]]:
    with_lzma = effort == "best" or (effort == "normal" and len(part) <= LZMA_MOST_BYTES)
    if part and with_lzma:
        yield Packing.LZMA, _lzma(part)
    if not with_lzma or len(part) <= ZSTD_MOST_BYTES:
        yield Packing.ZSTD, zstd.compress_plain(part, effort=effort)


def _text_packings(base: bytes, part: bytes, effort: Effort, level: int) -> Iterator[tuple[Packing, bytes]]:
    yield from _packings(part, effort)
    if part and base:
        yield Packing.ZSTD_PREFIX, zstd.compress_with_prefix(base, part, effort=effort, level=level)


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
