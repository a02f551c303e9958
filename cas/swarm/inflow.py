"""How much of small blobs a host asks for in other regions at a time, all peers together.

What it asks for beyond what its border lets through waits in a queue. There it looks as if nobody sent it: peers are
left as silent, bringers are replaced, and the same crosses the border again. Who brings in many small blobs has many
peers that have something for it, and shares the border with all other bringers of its region. So a host has asked for
what lately came over the border in `INFLOW_S`, no more. That is far longer than a way there and back, so the border is
never idle, and far shorter than anybody's patience. What is overdue although others send does not count: who fails
holds up nobody else. A large blob has few bringers, of which each peer has its share, and is asked for by what each
peer sends (`pieces`).
"""

from __future__ import annotations

from collections.abc import Collection
from math import exp
from typing import Final

from cas.manifest import PIECE_BYTES
from cas.swarm.in_flight import PendingGet
from cas.swarm.limits import Limits
from cas.swarm.patience import Pace

INFLOW_S: Final = 0.5
LEAST_BYTES: Final = PIECE_BYTES
"""So much may be asked for, however little came."""
LEAST_GETS: Final = 2
"""So many peers may be asked for a piece each, and one more for each second without anything."""


class Inflow:
    """Mutable; belongs to one `Fetch`."""

    def __init__(self, limits: Limits, far: Pace) -> None:
        self._limits = limits
        self._far_pace = far
        self._bytes = self._took_s = 0.0
        """What came while something was awaited, and for how long that was: what is longer ago counts less."""
        self._looked_s = 0.0
        self._came_s = float("-inf")
        """When something last came."""

    def look(self, now_s: float, *, awaits: bool) -> None:
        """Whether something was awaited until now."""
        past_s, self._looked_s = now_s - self._looked_s, now_s
        if awaits and past_s > 0:
            kept = exp(-past_s / INFLOW_S)
            self._bytes *= kept
            self._took_s = self._took_s * kept + past_s

    def came(self, size_bytes: int, now_s: float) -> None:
        """From another region."""
        self._bytes += size_bytes
        self._came_s = now_s

    def room_bytes(self, gets: Collection[PendingGet], now_s: float) -> int:
        """How much more may be asked for; less than a piece stands for one piece, or one small blob."""
        far = [get for get in gets if not get.peer.near and not self._is_overdue(get, now_s)]
        lately_bytes = int(self._bytes / self._took_s * INFLOW_S) if self._took_s else 0
        room_bytes = max(LEAST_BYTES, lately_bytes) - sum(get.bytes for get in far)
        if room_bytes > 0:
            return room_bytes
        quiet_s = now_s - max(self._came_s, min(get.since_s for get in far))
        return int(len(far) < LEAST_GETS + int(quiet_s / self._limits.relief_s))

    def _is_overdue(self, get: PendingGet, now_s: float) -> bool:
        since_s = max(get.flowed_s, get.last_s, get.peer.last_s)
        usual_s = self._far_pace.usual_s(self._limits.least_patience_s / 2, self._limits.stall_s)
        return self._came_s > since_s and now_s - since_s >= usual_s
