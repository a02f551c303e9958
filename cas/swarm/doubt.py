"""Whom this host leaves because of its silence.

How long a silence is too long is measured (`patience`). What it means depends on the others: who sent nothing while
others did is left as soon as one of them can be asked for the same; where nobody can, it is only noted that what it
owes is doubtful, so that others are asked about it. Neighbours are asked about it sooner, when it is tardy, so that it
is known by then whether one of them has it. What somebody owes who is suspect is doubtful from the beginning, and is
asked of the first other one that has it. Over a thin line answers starve each other: as long as bytes of some come,
and no piece is whole, nobody is left for silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cas.digest import Digest
from cas.swarm.in_flight import InFlight, PendingGet
from cas.swarm.limits import Limits
from cas.swarm.patience import Pace, Wait, patience
from cas.swarm.peer import Peer
from cas.swarm.wanted import Wanted


class Doubt:
    """Belongs to one `Fetch`."""

    def __init__(
        self, limits: Limits, wanted: Wanted, peers: Mapping[str, Peer], flight: InFlight, near: Pace, far: Pace
    ) -> None:
        self._limits = limits
        self._wanted = wanted
        self._peers = peers
        self._flight = flight
        self._near_pace, self._far_pace = near, far
        self.starving = False
        """Some answers take all that this host's line has, so that others are silent."""
        self.starved = 0
        """So many are, or were just now: they take nothing of the line."""

    def silent(self, now_s: float) -> Iterator[tuple[Peer, float]]:
        """Who is to be left, and how long it has been silent. The gets of who is left may end meanwhile."""
        tardy_s = self._near_pace.usual_s(self._limits.least_patience_s / 4, self._limits.stall_s)
        for blob in self._wanted.open.values():
            blob.doubtful = blob.tardy = 0
        self.starving, self.starved = False, 0
        for get in list(self._flight.gets.values()):
            if get.id not in self._flight.gets:
                continue
            since_s = max(get.flowed_s, get.last_s, get.peer.last_s)
            wait = self._wait(get, now_s - since_s)
            if now_s - since_s >= tardy_s:
                for form, left in get.left.items():
                    self._wanted.by_form[form].tardy |= left
            if wait is Wait.NORMAL and not get.peer.suspect:
                continue
            if wait is Wait.OVER and self._is_starved(get, since_s):
                self.starving = True
                get.starved_s = now_s
            if now_s - get.starved_s < self._limits.starved_s:
                self.starved += 1
                continue
            keeps = wait is Wait.VERY_LONG and get.peer.near and self._hears_neighbours(get.peer, since_s)
            if wait is Wait.OVER or keeps or self._could_be_replaced(get, since_s, now_s):
                yield get.peer, now_s - since_s
            else:
                for form, left in get.left.items():
                    self._wanted.by_form[form].doubtful |= left

    def _wait(self, get: PendingGet, silent_s: float) -> Wait:
        """What its silence means. With the last pieces of a blob it is long when most waits are shorter: to wait for
        longer is no loss only while something else comes."""
        pace = self._near_pace if get.peer.near else self._far_pace
        wait = patience(silent_s, pace, self._limits)
        are_last = not any(self._wanted.by_form[form].open for form in get.left)
        if are_last and silent_s >= pace.usual_s(self._limits.least_patience_s / 2, self._limits.stall_s):
            return Wait.LONG if wait is Wait.NORMAL else wait
        return wait

    def _is_starved(self, get: PendingGet, since_s: float) -> bool:
        """Whether bytes of others came meanwhile, and no whole piece of anybody: this host's own line is thin. Where
        it is not, pieces come."""
        if any(peer.last_s > since_s for peer in self._peers.values()):
            return False
        return any(other.flowed_s > since_s and other.peer is not get.peer for other in self._flight.gets.values())

    def needless(self, now_s: float) -> list[PendingGet]:
        """What was asked of another region and has not come for longer than neighbours need, who have all of it by now.
        Nobody is blamed: it may be the border."""
        return [get for get in self._flight.gets.values() if not get.peer.near and self._is_needless(get, now_s)]

    def _is_needless(self, get: PendingGet, now_s: float) -> bool:
        silent_s = now_s - max(get.flowed_s, get.last_s, get.peer.last_s)
        if patience(silent_s, self._near_pace, self._limits) is Wait.NORMAL:
            return False
        return all(not left & ~self._had_near(form, now_s) for form, left in get.left.items())

    def _had_near(self, form: Digest, now_s: float) -> int:
        """The pieces that could be taken from neighbours at once."""
        had = 0
        for peer in self._peers.values():
            if peer.near and not peer.suspect and peer.is_well(now_s):
                had |= peer.known.get(form, 0)
        return had

    def _hears_neighbours(self, but: Peer, since_s: float) -> bool:
        return any(peer.near and peer.heard_s > since_s and peer is not but for peer in self._peers.values())

    def _could_be_replaced(self, get: PendingGet, since_s: float, now_s: float) -> bool:
        """Whether a peer that was heard of meanwhile has something of what this one was asked for."""
        for peer in self._peers.values():
            if peer.heard_s > since_s and peer is not get.peer and peer.is_well(now_s) and not peer.suspect:
                for form, left in get.left.items():
                    blob = self._wanted.by_form[form]
                    if peer.known.get(form, 0) & left and (peer.near or blob.outside):
                        return True
        return False
