"""Whether the bytes of an answer still come, where several share this host's line.

What a program has been handed says little of a thin line: TLS hands over records of 16 KiB, and with three answers
under way at 20 kbit/s one takes 20 s. The system knows what has arrived (`agent.sockets`).

Who sends fewer than `FLOWING_BYTES` between two looks is as good as silent (`cas.swarm.messages`). Three neighbours
that send at once over a thin line do so each for itself; together they fill it. So an answer also flows where that much
has come of all of them and it has brought its part: half as much as it would if all were equally fast. Who trickles
beside others that send has not, and who is alone must bring all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from cas.digest import Digest
from cas.swarm.messages import FLOWING_BYTES

RECORD_BYTES: Final = 16 << 10
"""Of TLS: what has arrived and was not handed over has no more."""
AROUND_BYTES: Final = 64 << 10
"""What may come with an answer, whatever its size; twice the size is always enough."""


class Flows:
    """The answers under way of one host."""

    def __init__(self) -> None:
        self.bytes = 0
        """That have come of all of them."""
        self.open = 0

    def begin(self, size_bytes: int, received: Callable[[], int | None]) -> Flow:
        """An answer of about so many bytes, to be ended with `end`. `received`: what has arrived on its connections,
        which falls when one ends; None where nobody knows."""
        return Flow(self, 2 * size_bytes + AROUND_BYTES, received)


class Flow:
    """One answer. Mutable."""

    def __init__(self, flows: Flows, most_bytes: int, received: Callable[[], int | None]) -> None:
        self._flows = flows
        self._flows.open += 1
        self._most_bytes = most_bytes
        self._received = received
        self._before = received()
        self._bytes = self._taken_bytes = 0
        """That have arrived, and of which it is known what they are."""
        self._own_bytes, self._all_since = 0, flows.bytes

    def end(self) -> None:
        self._flows.open -= 1

    def taken(self, size_bytes: int) -> None:
        """So many more were handed over."""
        self._taken_bytes += size_bytes

    def look(self) -> bool:
        """Whether anything has arrived since the last look."""
        now, before = self._received(), self._before
        self._before = now
        came = self._taken_bytes - self._bytes if now is None or before is None else now - before
        came = max(0, min(came, self._most_bytes - self._bytes))
        self._bytes += came
        self._own_bytes += came
        self._flows.bytes += came
        return came > 0

    @property
    def has_begun(self) -> bool:
        return self._bytes > 0

    @property
    def arriving_bytes(self) -> int:
        """That have arrived and were not handed over."""
        return max(0, min(self._bytes - self._taken_bytes, RECORD_BYTES))

    @property
    def is_flowing(self) -> bool:
        """Whether enough has come since that was last `told`."""
        if self._own_bytes >= FLOWING_BYTES:
            return True
        all_bytes = self._flows.bytes - self._all_since
        return all_bytes >= FLOWING_BYTES and 2 * self._own_bytes * self._flows.open >= all_bytes

    def told(self) -> None:
        self._own_bytes, self._all_since = 0, self._flows.bytes


class Answer(NamedTuple):
    number: int
    """Of its request."""
    peer: str
    near: bool
    blobs: tuple[Digest, ...]
    """Of which pieces come."""
    flow: Flow


class Answers:
    """Those that one errand waits for."""

    def __init__(self) -> None:
        self._by_number: dict[int, Answer] = {}
        self._said = {True: 0, False: 0}

    @contextmanager
    def waiting_for(self, answer: Answer) -> Iterator[Flow]:
        self._by_number[answer.number] = answer
        try:
            yield answer.flow
        finally:
            del self._by_number[answer.number]
            answer.flow.end()

    def of(self, peer: str) -> list[Answer]:
        return [answer for answer in self._by_number.values() if answer.peer == peer]

    def moved(self) -> list[Answer]:
        """Those of which bytes have come since this was asked last."""
        return [answer for answer in self._by_number.values() if answer.flow.look()]

    def flowing(self) -> list[Answer]:
        """Those of which enough has come since they were last told here."""
        found = [answer for answer in self._by_number.values() if answer.flow.is_flowing]
        for answer in found:
            answer.flow.told()
        return found

    def with_arriving(self, taken_bytes: int, *, near: bool) -> int:
        """So many bytes of the own region, or of others, with what has arrived and was not handed over. Never falls."""
        arriving = sum(answer.flow.arriving_bytes for answer in self._by_number.values() if answer.near == near)
        self._said[near] = max(self._said[near], taken_bytes + arriving)
        return self._said[near]
