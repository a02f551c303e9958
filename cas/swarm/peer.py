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
        "busy_s",
        "busy_since_s",
        "bytes",
        "failures",
        "gets",
        "heard_s",
        "known",
        "last_s",
        "mute",
        "name",
        "near",
        "rate",
        "reason",
        "suspect",
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
        self.tell_s = 0.0
        """Not to be asked before."""
        self.mute = False
        """It had no time for a question, or did not answer it, while it was sending pieces, and is asked nothing before
        these are over."""
        self.failures = 0
        """In a row."""
        self.again_s = 0.0
        """Left alone until then."""
        self.busy_s = 0.0
        """It is well, but is not to be asked for pieces before."""
        self.busy_since_s: float | None = None
        """Since when it has been too busy to send any; None where it has sent some since."""
        self.suspect = False
        """It was asked for pieces that it had told of, sent none or wrong ones, and has sent no sound one since."""
        self.rate: float | None = None
        """Bytes in a second, lately."""
        self.last_s = 0.0
        """When pieces of it last came."""
        self.heard_s = 0.0
        """When it last sent or said anything."""
        self.bytes = 0
        """What it has sent, as it was on the wire."""
        self.banned: set[Digest] = set()
        """Blobs of which it sent wrong bytes."""
        self.reason = ""

    def is_well(self, now_s: float) -> bool:
        return now_s >= self.again_s

    def failed(self, now_s: float, reason: str) -> None:
        """Leave it, for twice as long as the time before."""
        self.failures += 1
        backoff_s = min(FIRST_BACKOFF_S * 2.0 ** min(self.failures, 16), LONGEST_BACKOFF_S)
        self.again_s = max(self.again_s, now_s + backoff_s)
        self.reason = reason

    def ban(self, blob: Digest, reason: str) -> None:
        """It sent wrong bytes of this blob."""
        self.banned.add(blob)
        self.reason = reason
        if len(self.banned) >= MAX_BANS:
            self.again_s = float("inf")

    def answered(self, now_s: float) -> None:
        """A question. Who owes pieces is believed again when it sends some."""
        self.heard_s = now_s
        if not self.suspect:
            self.failures = 0

    def delivered(self, now_s: float, wait_s: float, wire_bytes: int) -> None:
        """Bytes that came after a wait of so long."""
        rate = wire_bytes / max(wait_s, 1e-6)
        self.rate = rate if self.rate is None else self.rate + _RATE_WEIGHT * (rate - self.rate)
        self.last_s = self.heard_s = now_s
        self.failures = 0
        self.suspect = False
        self.busy_since_s = None
        self.bytes += wire_bytes
