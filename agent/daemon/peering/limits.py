"""How much hosts may take from each other at a time: bytes in a second, and answers at once, in all and for each link.

A bucket holds a quarter of a second's bytes, so that a stream is smooth, and lets whoever asks wait for its share. No
limit means that nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from agent.api.answers import Reason
from agent.daemon.refusal import Refused

BURST_S: Final = 0.25
ANSWERS: Final = 16
"""More would not make it faster, and each of them slower."""
ANSWERS_FOR_EACH: Final = 8
QUESTIONS: Final = 1024
QUESTIONS_FROM_EACH: Final = 16


class PeerLimits(NamedTuple):
    """Of one host. Bytes are of pieces, each way for itself."""

    host_bytes_s: int | None = None
    link_bytes_s: int | None = None
    answers: int = ANSWERS
    """Streams of pieces that are given out at once."""
    answers_for_each: int = ANSWERS_FOR_EACH


class Bucket:
    """Bytes that may pass in a second. `rate_bytes_s` None: any."""

    def __init__(self, rate_bytes_s: int | None, now_s: Callable[[], float]) -> None:
        self._rate = rate_bytes_s
        self._now_s = now_s
        self._free_at_s = now_s()

    def wait_s(self, count: int) -> float:
        """Take so many bytes; how long to wait until they may pass."""
        if self._rate is None:
            return 0.0
        now_s = self._now_s()
        self._free_at_s = max(self._free_at_s, now_s - BURST_S) + count / self._rate
        return max(0.0, self._free_at_s - now_s)


class Throttle:
    """One direction: a bucket for the host, and one for each link."""

    def __init__(self, limits: PeerLimits, now_s: Callable[[], float]) -> None:
        self._limits = limits
        self._now_s = now_s
        self._host = Bucket(limits.host_bytes_s, now_s)
        self._links: dict[str, Bucket] = {}

    async def take(self, peer: str, count: int) -> None:
        """Wait until so many bytes may pass on this link."""
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = Bucket(self._limits.link_bytes_s, self._now_s)
        if wait_s := max(self._host.wait_s(count), link.wait_s(count)):
            await asyncio.sleep(wait_s)


class Places:
    """A bounded number at once, in all and for each peer. Nobody waits: who finds none is told so."""

    def __init__(self, most: int, most_for_each: int) -> None:
        self._most = most
        self._most_for_each = most_for_each
        self._taken: dict[str, int] = {}

    @asynccontextmanager
    async def place(self, peer: str) -> AsyncIterator[None]:
        """Raises Refused(BUSY)."""
        taken = self._taken.get(peer, 0)
        if taken >= self._most_for_each or sum(self._taken.values()) >= self._most:
            raise Refused(Reason.BUSY, "this host gives out as much as it may", hint="ask again, or another host")
        self._taken[peer] = taken + 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]
