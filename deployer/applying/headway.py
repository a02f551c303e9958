"""Whether a host that fetches blobs makes headway, by what it says: no more of that is believed than can be true.

What a host lacks is finite, and so is what it can receive of it: some of it twice, where a neighbour lied or was slow.
Whatever is beyond that, or comes so slowly that nobody's line is like it, keeps nobody waiting. A host that makes no
headway is sent the rest, so that costs a sound one no more than what it has begun.
"""

from __future__ import annotations

from typing import Final

STUCK_S: Final = 20.0
"""Without headway for so long, a host is sent the rest."""
LEAST_BYTES: Final = 16 << 10
"""Less than that in all this time is no headway, a blob that has become whole excepted."""
TIMES: Final = 2
"""So many times what it lacks may be received."""


class Line:
    """Of one host, over whose line all comes that it fetches: where some of that takes what the line has, the rest is
    not stuck. Mutable."""

    def __init__(self) -> None:
        self._headways: list[Headway] = []

    def begin(self, blobs: int, size_bytes: int, now_s: float) -> Headway:
        """It is told to fetch so many blobs that have so many bytes as they are sent."""
        self._headways.append(Headway(blobs, size_bytes, now_s))
        return self._headways[-1]

    def is_stuck(self, now_s: float) -> bool:
        return all(headway.is_stuck(now_s) for headway in self._headways)


class Headway:
    """Of one host, which lacks so many blobs that have so many bytes as they are sent. Mutable."""

    def __init__(self, blobs: int, size_bytes: int, now_s: float) -> None:
        self._blobs = _Believed(blobs)
        self._bytes = _Believed(TIMES * size_bytes)
        self._brought_bytes = 0
        self._counted = (0, 0)
        self._moved_s = now_s

    def told(self, blobs: int, received_bytes: int, brought_bytes: int, now_s: float) -> bool:
        """How far the host says that it is, in its present try; `brought_bytes` is what its region was sent by now, by
        our own count. Whether it has made headway itself, which can be true only so often."""
        self._blobs.told(blobs)
        self._bytes.told(received_bytes)
        counted_blobs, counted_bytes = self._counted
        came = self._blobs.total > counted_blobs or self._bytes.total - counted_bytes >= LEAST_BYTES
        if came or brought_bytes > self._brought_bytes:
            self._moved_s = now_s
            self._counted = (self._blobs.total, self._bytes.total)
        self._brought_bytes = max(self._brought_bytes, brought_bytes)
        return came

    def is_stuck(self, now_s: float) -> bool:
        return now_s - self._moved_s > STUCK_S


class _Believed:
    """A count that only grows, and begins anew with each try of the host that tells it: its sum over all tries."""

    def __init__(self, most: int) -> None:
        self.total = 0
        self._most = most
        self._last = 0

    def told(self, count: int) -> None:
        count = max(count, 0)
        self.total = min(self._most, self.total + (count - self._last if count >= self._last else count))
        self._last = count
