"""What a host knows of another one."""

from __future__ import annotations

from typing import Final

from cas.digest import Digest

FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0
MAX_BANS: Final = 3
"""A peer that sent wrong bytes of so many blobs is asked for nothing more."""
_RATE_WEIGHT: Final = 0.3


class Peer:
    """Mutable; belongs to one `Fetch`."""

    __slots__ = (
        "again_s",
        "asked",
        "banned",
        "bytes",
        "dry",
        "failures",
        "gets",
        "known",
        "last_s",
        "name",
        "near",
        "rate",
        "reason",
        "tell_s",
    )

    def __init__(self, name: str, *, near: bool) -> None:
        self.name = name
        self.near = near
        """Of the same region."""
        self.known: dict[Digest, int] = {}
        """What it has said it has, by form."""
        self.asked = 0
        """The id of the question that it has not answered yet; 0 where there is none."""
        self.gets = 0
        self.dry = True
        """It has nothing to offer, as far as is known."""
        self.tell_s = 0.0
        """Not to be asked before."""
        self.failures = 0
        """In a row."""
        self.again_s = 0.0
        """Left alone until then."""
        self.rate: float | None = None
        """Bytes in a second, lately."""
        self.last_s = 0.0
        self.bytes = 0
        """What it has sent, as it was on the wire."""
        self.banned: set[Digest] = set()
        """Blobs of which it sent wrong bytes."""
        self.reason = ""

    def is_well(self, now_s: float) -> bool:
        return now_s >= self.again_s and len(self.banned) < MAX_BANS

    def failed(self, now_s: float, reason: str) -> None:
        """Leave it, for twice as long as the time before."""
        self.failures += 1
        self.again_s = now_s + min(FIRST_BACKOFF_S * 2.0 ** min(self.failures, 16), LONGEST_BACKOFF_S)
        self.reason = reason

    def delivered(self, now_s: float, since_s: float, wire_bytes: int, *, count: bool = True) -> None:
        """Bytes that came after a wait since `since_s`."""
        took_s = max(now_s - max(since_s, self.last_s), 1e-6)
        rate = wire_bytes / took_s
        self.rate = rate if self.rate is None else self.rate + _RATE_WEIGHT * (rate - self.rate)
        self.last_s = now_s
        self.failures = 0
        if count:
            self.bytes += wire_bytes
