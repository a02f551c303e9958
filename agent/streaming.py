"""Bytes that an ordinary iterator reads, as from a store, for those who must not be kept waiting by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from itertools import groupby
from typing import Final

WRITE_BYTES: Final = 256 << 10
LARGE_BYTES: Final = 64 << 10
BATCH_BYTES: Final = 1 << 20
"""What a sender of blobs makes ready at a time; it holds two of them."""


def _batches(chunks: Iterable[bytes]) -> Generator[list[bytes], None, None]:
    """The same chunks, `BATCH_BYTES` of them or a little more at a time: each batch costs a change of threads."""
    iterator = iter(chunks)
    batch: list[bytes] = []
    size = 0
    try:
        for chunk in iterator:
            batch.append(chunk)
            size += len(chunk)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _written(batch: list[bytes]) -> Iterator[memoryview]:
    """The bytes of a batch as they are written: small chunks joined, none copied that is large."""
    for large, run in groupby(batch, key=lambda chunk: len(chunk) >= LARGE_BYTES):
        for chunk in run if large else [b"".join(run)]:
            view = memoryview(chunk)
            for start in range(0, len(view), WRITE_BYTES):
                yield view[start : start + WRITE_BYTES]


async def in_thread(chunks: Iterable[bytes]) -> AsyncGenerator[memoryview, None]:
    """While one batch is sent, the next one is made."""
    iterator = _batches(chunks)

    def make() -> asyncio.Future[list[bytes] | None]:
        return asyncio.ensure_future(asyncio.to_thread(next, iterator, None))

    coming = make()
    try:
        while True:
            await asyncio.wait([coming])  # Not itself: a thread cannot be cancelled.
            batch = coming.result()
            if batch is None:
                return
            coming = make()
            for part in _written(batch):
                yield part
    finally:
        await asyncio.wait([coming])
        coming.exception()  # Where it is not the one that is being raised, nobody is left to hear of it.
        await asyncio.to_thread(iterator.close)
