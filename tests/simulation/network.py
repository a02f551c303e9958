"""Links with a bandwidth and a delay, under a virtual clock.

Every host has a link up and one down, every region a border in each direction. A transfer takes its turn on each link
on its way (first come, first served) and flows through them at the same time, so it lasts as long as the busiest of
them makes it, and then the delay.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple


class Model(NamedTuple):
    host_bytes_per_s: float = 125e6
    border_bytes_per_s: float = 125e6
    near_delay_s: float = 0.0005
    far_delay_s: float = 0.04


class Link:
    __slots__ = ("bytes", "free_s", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.free_s = 0.0
        self.bytes = 0

    def take(self, start_s: float, size: int) -> tuple[float, float]:
        """When the first and the last byte are through."""
        begin_s = max(start_s, self.free_s)
        self.free_s = begin_s + size / self.rate
        self.bytes += size
        return begin_s, self.free_s


class Network:
    """The clock, what is due, and the links."""

    def __init__(self, region_of: dict[str, str], model: Model) -> None:
        self.now_s = 0.0
        self.model = model
        self.region_of = region_of
        self.up = {host: Link(model.host_bytes_per_s) for host in region_of}
        self.down = {host: Link(model.host_bytes_per_s) for host in region_of}
        self.border_out = {region: Link(model.border_bytes_per_s) for region in region_of.values()}
        self.border_in = {region: Link(model.border_bytes_per_s) for region in region_of.values()}
        self._heals_s: dict[str, float] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time_s, next(self._order), action))

    def cut(self, region: str, for_s: float) -> None:
        """Nothing passes this border from now on for so long; what was on its way comes later."""
        heals_s = self._heals_s[region] = self.now_s + for_s
        for border in (self.border_out[region], self.border_in[region]):
            border.free_s = max(border.free_s, self.now_s) + for_s
        self.at(heals_s, lambda: None)

    def delay_s(self, one: str, other: str) -> float:
        """Of a message that is sent now."""
        here, there = self.region_of[one], self.region_of[other]
        if here == there:
            return self.model.near_delay_s
        heals_s = max(self._heals_s.get(here, 0.0), self._heals_s.get(there, 0.0))
        return max(heals_s - self.now_s, 0.0) + self.model.far_delay_s

    def transfer(self, sender: str, receiver: str, size: int, arrived: Callable[[], None]) -> None:
        """Send so many bytes from now on; `arrived` is called when the last one is there."""
        path = [self.up[sender]]
        if self.region_of[sender] != self.region_of[receiver]:
            path += [self.border_out[self.region_of[sender]], self.border_in[self.region_of[receiver]]]
        path.append(self.down[receiver])
        self._pass(path, 0, size, 0.0, self.delay_s(sender, receiver), arrived)

    def _pass(
        self, path: list[Link], place: int, size: int, last_s: float, delay_s: float, arrived: Callable[[], None]
    ) -> None:
        """Take a turn on this link now, and on the next one when the first byte gets there."""
        first_s, through_s = path[place].take(self.now_s, size)
        last_s = max(last_s, through_s)
        if place + 1 == len(path):
            self.at(last_s + delay_s, arrived)
        else:
            self.at(first_s, partial(self._pass, path, place + 1, size, last_s, delay_s, arrived))

    def run(self, *, until_s: float, is_done: Callable[[], bool], check_every: int = 1) -> None:
        """Let time pass until nothing is due, or it is done, which is looked at after every so many events."""
        for count in itertools.count():
            if not self._due or (count % check_every == 0 and is_done()):
                return
            time_s, _, action = heapq.heappop(self._due)
            if time_s > until_s:
                return
            self.now_s = time_s
            action()
