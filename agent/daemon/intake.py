"""What a sender of blobs has sent is taken in at once, and handed over in large parts.

A handler that reads, works and reads again leaves to the HTTP server what comes meanwhile, and the server throws that
away where the connection breaks. Here all of it is taken into a bounded buffer as it comes; what had come before a
break is handed over first and the break told after it, so that it need not be sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Final, Self

PART_BYTES: Final = 1 << 20
"""What is handed over has so many bytes at least, the last of a stream excepted: a part costs a change of threads."""
HELD_BYTES: Final = 2 << 20
"""So much is taken in before it is handed over, and one piece more."""
HELD_PIECES: Final = 4096


class Intake:
    """One stream's buffer. Use as an asynchronous context manager, from one event loop."""

    def __init__(self, read: Callable[[], Awaitable[bytes]], *, part_bytes: int = PART_BYTES) -> None:
        """`read` gives the next piece as soon as it is there, and nothing at the end. `part_bytes`: 1 where each piece
        is wanted at once."""
        self._read = read
        self._part_bytes = part_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._ready = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        self._reading = asyncio.create_task(self._read_on())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def part(self) -> list[bytes]:
        """What has come since, in pieces; nothing at the end. Raises what `read` has raised, after the last part."""
        await self._ready.wait()
        part, self._held, self._held_bytes = self._held, [], 0
        self._taken.set()
        if not self._ended:
            self._ready.clear()
        elif not part and self._error is not None:
            raise self._error
        return part

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The same, one by one."""
        while part := await self.part():
            for piece in part:
                yield piece

    async def _read_on(self) -> None:
        try:
            while piece := await self._read():
                self._held.append(piece)
                self._held_bytes += len(piece)
                if self._held_bytes >= self._part_bytes or len(self._held) >= HELD_PIECES:
                    self._ready.set()
                if self._held_bytes >= HELD_BYTES or len(self._held) >= HELD_PIECES:
                    self._taken.clear()
                    await self._taken.wait()
        except Exception as error:
            self._error = error
        self._ended = True
        self._ready.set()
