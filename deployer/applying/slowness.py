"""Whether a host that is sent blobs for its region is too slow for that, so that the next one should be sent them.

A slow host cannot be told from a slow border by looking at it. So the next host of its region is tried, few times: what
was sent is not sent again, so where the border was the slow one that costs a piece each time, and questions. A host is
judged by what it has acknowledged, while that moves: long silence means that the border is cut, or the host frozen or
dead, which is found out in other ways (`agent.pulse`). A thin line loses most of what is sent too fast, so it is silent
for seconds between packets. Hosts of one region that are sent blobs at the same time share its border, so they are
compared with each other, and over all that time: now one of them has more of it, now another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

LOOK_S: Final = 0.1
"""Between two looks."""
WINDOW_S: Final = 1.0
"""What has arrived in any such time is what a host can take."""
JUDGED_AFTER_S: Final = 1.5
"""A connection begins slowly."""
JUDGED_BY_S: Final = 6.0
"""What has arrived in this time, or since it began, is what a host takes now, if it did not take more just now."""
LULL_S: Final = 1.0
"""Without a byte for so long nobody is judged."""
SILENCE_S: Final = 5.0
"""After such a time without a byte it begins slowly again."""
BEARABLE_S: Final = 6.0
"""Who has the rest within this time goes on."""
SLOWER: Final = 4.0
"""Nobody is replaced who is not so many times slower than another host that brings blobs into its region, if there is
one: it may be the deployer's own link."""
TELLING_BYTES: Final = 64 << 10
"""What took less tells nothing of its line."""
MOST_REPLACED: Final = 2
"""Hosts of a region."""


class Pace:
    """How fast one host takes what it is sent. Mutable."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()
        """When, and what had arrived: for `JUDGED_BY_S`, or since it began."""
        self._window: deque[tuple[float, int]] = deque()
        """The same, for `WINDOW_S`."""
        self._first_bytes = self._ended_bytes = 0
        self._moved_s = float("-inf")
        """When something arrived last."""
        self.bytes = 0
        """What has arrived since the first look."""
        self.best_bytes_s = 0.0
        """In any window."""

    def arrived(self, all_bytes: int, now_s: float) -> None:
        """So many have arrived by now, with what was sent before; over the connections that are open, so what came over
        one that has ended is not among them."""
        all_bytes += self._ended_bytes
        if self._looks and (ended_bytes := self._looks[-1][1] - all_bytes) > 0:
            self._ended_bytes += ended_bytes
            all_bytes += ended_bytes
        if not self._looks:
            self._first_bytes, self._moved_s = all_bytes, now_s
        elif all_bytes > self._looks[-1][1]:
            if now_s - self._moved_s > SILENCE_S:
                self._looks.clear()
            self._moved_s = now_s
        self.bytes = all_bytes - self._first_bytes
        for looks, for_s in ((self._looks, JUDGED_BY_S), (self._window, WINDOW_S)):
            looks.append((now_s, all_bytes))
            while len(looks) > 2 and looks[1][0] <= now_s - for_s:
                looks.popleft()
        self.best_bytes_s = max(self.best_bytes_s, _bytes_s(self._window))

    def is_behind(self, total_bytes: int, others_bytes_s: Collection[float], beside: Collection[Pace] = ()) -> bool:
        """Whether it should be replaced. `total_bytes`: what it is sent; `others_bytes_s`: what others took at best;
        `beside`: those that are sent blobs over the same border meanwhile."""
        if beside and self.bytes * SLOWER > max(other.bytes for other in beside):
            return False
        since_s, now_s = self._looks[0][0], self._looks[-1][0]
        rate = max(_bytes_s(self._looks), _bytes_s(self._window))
        if not rate or now_s - self._moved_s >= LULL_S or now_s - since_s < JUDGED_AFTER_S:
            return False
        if others_bytes_s and max(others_bytes_s) < SLOWER * rate:
            return False
        return total_bytes - self.bytes > rate * BEARABLE_S


def _bytes_s(looks: deque[tuple[float, int]]) -> float:
    (since_s, before), (now_s, after) = looks[0], looks[-1]
    return (after - before) / max(now_s - since_s, WINDOW_S)
