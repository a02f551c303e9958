"""How long to wait for whom: measured, not fixed.

What is normal is learnt from what came lately, as TCP learns its timeout (RFC 6298): the smoothed mean of the waits and
their mean deviation, for peers of the own region and for others. A peer that lets this host wait for much longer than
that is left, but only where its silence says something about it: others of its side have sent meanwhile, so the network
is there. Where all are silent (a border is cut, this host was asleep) nobody is left before `stall_s`.
"""

from __future__ import annotations

from enum import Enum

from cas.swarm.limits import Limits

_MEAN_WEIGHT = 1 / 8
_DEVIATION_WEIGHT = 1 / 4
_DEVIATIONS = 4.0
MARGIN = 2.0
"""How many times what TCP would wait."""


class Pace:
    """Of the waits for something: how long they are. Mutable; belongs to one `Fetch`."""

    __slots__ = ("deviation_s", "mean_s")

    def __init__(self) -> None:
        self.mean_s: float | None = None
        self.deviation_s = 0.0

    def waited(self, wait_s: float) -> None:
        if self.mean_s is None:
            self.mean_s, self.deviation_s = wait_s, wait_s / 2
            return
        error_s = wait_s - self.mean_s
        self.deviation_s += _DEVIATION_WEIGHT * (abs(error_s) - self.deviation_s)
        self.mean_s += _MEAN_WEIGHT * error_s

    def usual_s(self, least_s: float, most_s: float) -> float:
        """Most waits are shorter; the most where nothing was measured yet."""
        if self.mean_s is None:
            return most_s
        return min(max(self.mean_s + _DEVIATIONS * self.deviation_s, least_s), most_s)

    def patience_s(self, least_s: float, most_s: float) -> float:
        """So long a wait is still normal; the most where nothing was measured yet."""
        if self.mean_s is None:
            return most_s
        return min(max(MARGIN * (self.mean_s + _DEVIATIONS * self.deviation_s), least_s), most_s)


class Wait(Enum):
    NORMAL = 1
    LONG = 2
    """So long that the peer is left where another one can be asked."""
    VERY_LONG = 3
    """So long that a neighbour is left although nobody else is known to have the same."""
    OVER = 4
    """So long that it is left."""


def patience(silent_s: float, pace: Pace, limits: Limits) -> Wait:
    """What to think of a peer that has sent nothing for so long."""
    if silent_s >= limits.stall_s:
        return Wait.OVER
    patience_s = pace.patience_s(limits.least_patience_s, limits.stall_s)
    if silent_s >= MARGIN * patience_s:
        return Wait.VERY_LONG
    return Wait.LONG if silent_s >= patience_s else Wait.NORMAL
