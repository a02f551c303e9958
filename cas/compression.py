"""Plain zstd, with bounds. Frames are checked before memory is taken: a frame says how large its content is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import IO, cast

import zstandard

from cas.entries import PLAIN, ZSTD

SMALL_LEVEL = 3
WHOLE_LEVEL = 12
STREAM_LEVEL = 3
QUICK_LEVEL = 1
STREAM_WINDOW_BYTES = 8 << 20
"""A streamed frame may not ask a reader for a larger window."""
WORTHWHILE = 0.95
"""A blob is kept plain unless zstd brings it below this part of its size."""
_SMALL_BYTES = 64 << 10
_OUTPUT_BYTES = 256 << 10

_local = threading.local()


class BadFrame(Exception):
    """Bytes that are not a zstd frame of the size they should have."""


def smallest(data: bytes, *, level: int = WHOLE_LEVEL) -> tuple[int, bytes]:
    """(ZSTD, frame) or, where that saves too little, (PLAIN, data)."""
    compressor = _small_compressor() if len(data) <= _SMALL_BYTES else zstandard.ZstdCompressor(level=level)
    frame = compressor.compress(data)
    return (ZSTD, frame) if len(frame) < WORTHWHILE * len(data) else (PLAIN, data)


def decompress_any(frame: bytes | memoryview, size: int) -> bytes:
    """The content of a frame, of which exactly `size` bytes are expected. Raises BadFrame."""
    try:
        claimed = zstandard.frame_content_size(frame)
        if claimed == size:
            return _decompressor().decompress(frame, max_output_size=size)
        if claimed >= 0:
            raise BadFrame("a zstd frame of another size than the index says")
        return _read_exactly(bytes(frame), size)
    except zstandard.ZstdError as error:
        raise BadFrame(f"not a zstd frame: {error}") from error


def decompressed(chunks: Iterator[bytes], piece_bytes: int) -> Iterator[bytes]:
    """Decompress a frame that arrives in chunks, in bounded memory. Raises BadFrame."""
    with _stream_decompressor().stream_reader(cast("IO[bytes]", _ChunkSource(chunks))) as reader:
        try:
            while piece := reader.read(piece_bytes):
                yield piece
        except zstandard.ZstdError as error:
            raise BadFrame(f"not a zstd frame: {error}") from error


class Inflater:
    """Decompresses a frame that is pushed in, and hands the content to `sink` in pieces of bounded size."""

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._writer = _stream_decompressor().stream_writer(cast("IO[bytes]", _Sink(sink)), write_size=_OUTPUT_BYTES)

    def feed(self, chunk: bytes | memoryview) -> None:
        """Raises BadFrame, and what the sink raises."""
        try:
            self._writer.write(chunk)
        except zstandard.ZstdError as error:
            raise BadFrame(f"not a zstd frame: {error}") from error


class _Sink:
    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink

    def write(self, data: bytes) -> int:
        self._sink(data)
        return len(data)


class _ChunkSource:
    """Chunks of any size as a file that is read in chunks of the size asked for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


def _read_exactly(frame: bytes, size: int) -> bytes:
    with _stream_decompressor().stream_reader(frame) as reader:
        data = _read_up_to(reader, size + 1)
    if len(data) != size:
        raise BadFrame("a zstd frame of another size than the index says")
    return data


def _read_up_to(reader: zstandard.ZstdDecompressionReader, limit: int) -> bytes:
    pieces = []
    while limit > 0 and (piece := reader.read(min(limit, _OUTPUT_BYTES))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def _stream_decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=STREAM_WINDOW_BYTES)


class Deflater:
    """Compresses a blob that arrives in pieces into one frame, in bounded memory."""

    def __init__(self) -> None:
        self._chunker = zstandard.ZstdCompressor(level=STREAM_LEVEL).chunker(chunk_size=_OUTPUT_BYTES)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        return iter(self._chunker.compress(chunk))

    def end(self) -> Iterator[bytes]:
        return cast("Callable[[], Iterator[bytes]]", self._chunker.finish)()


def _small_compressor() -> zstandard.ZstdCompressor:
    """Contexts are not safe to share between threads, and making one costs more than a small blob does."""
    held: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if held is None:
        held = _local.compressor = zstandard.ZstdCompressor(level=SMALL_LEVEL)
    return held


def _decompressor() -> zstandard.ZstdDecompressor:
    held: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if held is None:
        held = _local.decompressor = zstandard.ZstdDecompressor()
    return held
