"""Who may send blobs now: a bounded number of streams at once, and none that holds its place without sending.

Each stream costs a thread's work and a buffer, so there are few places. A sender that stalls while nobody waits may
pause long; while others wait it loses its place after seconds. So however many senders have stalled, one that really
sends gets its turn, or is told BUSY within a known time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from agent.api.answers import Reason
from agent.daemon.refusal import Refused

PLACES: Final = 16
MANY: Final = 4
"""So many streams at once take memory that is worth giving back when they are over."""
MAX_WAITING: Final = 64
WAIT_S: Final = 30.0
"""For a place; MAX_WAITING stalled senders in front are gone by then."""
STALLED_S: Final = 5.0
"""A sender that pauses so long loses its place when others wait."""
IDLE_S: Final = 60.0
"""A sender may pause so long in any case."""


class Uploads:
    """The places of one host. Use from one event loop."""

    def __init__(
        self,
        *,
        places: int = PLACES,
        max_waiting: int = MAX_WAITING,
        wait_s: float = WAIT_S,
        stalled_s: float = STALLED_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._places = asyncio.Semaphore(places)
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._stalled_s = stalled_s
        self._idle_s = idle_s
        self._waiting = 0
        self._taken = 0
        self._most = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Have a place, after those who came before. Raises Refused(BUSY)."""
        if self._waiting >= self._max_waiting:
            raise _busy("too many senders of blobs wait for their turn already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire()
        except TimeoutError as error:
            raise _busy(f"others have sent blobs for {self._wait_s:.0f} s") from error
        finally:
            self._waiting -= 1
        self._taken += 1
        self._most = max(self._most, self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self._places.release()

    def were_many(self) -> bool:
        """Whether at least `MANY` had a place at once, and nobody has one any more; true once each time."""
        if self._taken:
            return False
        most, self._most = self._most, 0
        return most >= MANY

    async def next_piece(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """What `read` gives, for a sender that has a place. Raises Refused where it has paused for too long."""
        paused_s = 0.0
        while True:
            patience_s = min(self._stalled_s, self._idle_s - paused_s)
            try:
                async with asyncio.timeout(patience_s):
                    return await read()
            except TimeoutError as error:
                paused_s += patience_s
                if paused_s >= self._idle_s:
                    raise Refused(Reason.BAD_REQUEST, f"the stream paused for {paused_s:.0f} s") from error
                if self._waiting:
                    raise _busy(f"the stream paused for {paused_s:.0f} s while others wait to send") from error


def _busy(what: str) -> Refused:
    return Refused(Reason.BUSY, what, hint="ask again; what has arrived is kept")
