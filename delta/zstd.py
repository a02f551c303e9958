"""The generic codecs: one zstd frame, alone or with the base as a prefix that its matches may reach into.

What makes the prefix work is the choice of parameters. With those of a plain level the window is smaller than a large
base and the match tables are sized for the target alone, so most of the base is silently never found: on a pair of
11 MB, level 9 made 1735 KB with its defaults and 701 KB with a window over base and target. So the window always covers
both, and the tables hold an entry for (nearly) every position of both.
"""

from __future__ import annotations

from typing import Literal

from delta.errors import DeltaError

Effort = Literal["fast", "normal", "best"]

MIN_LOG = 10
MAX_WINDOW_LOG = 30
MAX_TABLE_LOG = 24
"""Tables of 2^24 entries (64 MiB each): beyond, the time spent on cache misses costs more than the matches save."""

SEARCH_LOG, SEARCH_LOG_LARGE, LARGE_BYTES = 5, 3, 8 << 20
"""At the strongest levels most of the time goes into entering the base into a search tree. `normal` bounds the steps
per position: 2^5 take a fifth less time for 0.1 % more bytes; 2^3, above 8 MiB, half the time for 2 to 3 % more."""

QUICK_LEVEL, QUICK_TABLE_SHIFT = 1, 2
"""`fast` with a base: level 1 enters every third byte of the base, so its tables need a quarter of the entries. On
11 MB that is three times as fast as level 3 for 6 % more bytes, and as small on most pairs."""

SMALL_BYTES = 512 << 10
"""Up to here the strongest level costs less than a second, so `normal` uses it."""


def _level(effort: Effort, total_bytes: int, has_base: bool) -> int:
    if effort == "fast":
        return QUICK_LEVEL if has_base else 3
    if effort == "best" or total_bytes <= SMALL_BYTES:
        return 19
    return 12


def _search_log(of_level: int, effort: Effort, total_bytes: int) -> int:
    if effort != "normal":
        return of_level
    return min(of_level, SEARCH_LOG_LARGE if total_bytes > LARGE_BYTES else SEARCH_LOG)


def _log2_over(size: int) -> int:
    return max(MIN_LOG, (size - 1).bit_length() if size > 1 else 0)


def compress_plain(data: bytes, *, effort: Effort) -> bytes:
    """One zstd frame of `data` alone."""
    return compress_with_prefix(b"", data, effort=effort)


def compress_with_prefix(base: bytes, data: bytes, *, effort: Effort, level: int | None = None) -> bytes:
    """One zstd frame of `data` whose matches may reach into `base`; `base` may be empty.

    `level` overrides what `effort` and the size would choose.
    """
    import zstandard

    total = len(base) + len(data)
    level = _level(effort, total, bool(base)) if level is None else level
    log = _log2_over(total)
    window_log = min(log, MAX_WINDOW_LOG)
    table_log = min(log - QUICK_TABLE_SHIFT if level == QUICK_LEVEL else log, MAX_TABLE_LOG)
    hinted = zstandard.ZstdCompressionParameters.from_level(level, source_size=total)
    params = zstandard.ZstdCompressionParameters.from_level(
        level,
        window_log=window_log,
        search_log=_search_log(hinted.search_log, effort, total),
        hash_log=max(table_log, hinted.hash_log) if base else hinted.hash_log,
        chain_log=max(table_log, hinted.chain_log) if base else hinted.chain_log,
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
    )
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if base else None
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=params).compress(data)


def decompress(base: bytes, payload: bytes | memoryview, *, size: int) -> bytes:
    """The `size` bytes that the one frame in `payload` holds; `base` may be empty. Raises DeltaError.

    The frame's own claim is compared with `size` first, so a lying frame takes no memory.
    """
    import zstandard

    try:
        claimed = zstandard.frame_content_size(payload)
        if claimed != size:
            raise DeltaError(f"the patch's zstd frame holds {claimed} bytes where its header says {size}")
        if size == 0:
            return _decompress_empty(payload)
        dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if base else None
        data = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << MAX_WINDOW_LOG).decompress(
            payload, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise DeltaError(f"the patch's zstd frame is damaged: {error}") from error
    if len(data) != size:
        raise DeltaError(f"the patch's zstd frame gave {len(data)} bytes where its header says {size}")
    return data


def _decompress_empty(payload: bytes | memoryview) -> bytes:
    """An empty frame is a header and one empty last block; anything after that is refused."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj()
    data = decompressor.decompress(bytes(payload))
    if data or not decompressor.eof or decompressor.unused_data:
        raise DeltaError("the patch's zstd frame claims to be empty and is not")
    return b""
