"""What only a source has, though it should long have been taken from it: others take it in place of its owner.

Each run of a blob is dealt to one of the group that a source serves (`pieces`). Where that one is dead, slow, or keeps
what it took, nobody else would ask the source for the run. So those that watch a run look now and then whether it is
still the source's alone. If it is so at two looks, the second in line takes it too, at three the third and fourth, and
so on, twice as many each time; but only who has nothing of the blob in flight, one run after the other. Between two
looks is a time that most waits are shorter than, so that a source which has much to do is not asked for more because of
that. Over a border, where each piece that comes twice costs, nothing is late as long as there is news of the blob.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from cas.swarm.blob import Blob
from cas.swarm.limits import Limits
from cas.swarm.patience import Pace
from cas.swarm.peer import Peer

MOST_LOOKS: Final = 10
"""What was late at so many looks is as late as can be."""


class Late:
    """When to look, and what is seen. Belongs to one `Fetch`; what was seen stands in the blobs."""

    def __init__(self, limits: Limits, peers: Mapping[str, Peer], near: Pace, far: Pace) -> None:
        self._limits = limits
        self._peers = peers
        self._near_pace, self._far_pace = near, far
        self._inside_s = self._outside_s = float("-inf")
        """When the last look was."""

    def look(self, blobs: Collection[Blob], now_s: float) -> None:
        least_s, most_s = self._limits.relief_s, self._limits.takeover_s
        if now_s - self._inside_s >= self._near_pace.usual_s(least_s, most_s):
            self._inside_s = now_s
            for blob in blobs:
                _age(blob.late_inside, self._only_inside(blob))
        if now_s - self._outside_s >= self._far_pace.usual_s(least_s, most_s):
            for blob in blobs:
                is_quiet = blob.heard_s <= self._outside_s
                _age(blob.late_outside, self._only_outside(blob) if is_quiet else 0)
            self._outside_s = now_s

    def _only_inside(self, blob: Blob) -> int:
        """Pieces that this host lacks and only the bringer of the region is known to have there."""
        root = None if blob.root is None else self._peers.get(blob.root)
        if blob.form is None or root is None:
            return 0
        only = root.known.get(blob.form, 0) & blob.open
        for peer in self._peers.values():
            if not only:
                break
            if peer.near and peer is not root and not peer.suspect:
                only &= ~peer.known.get(blob.form, 0)
        return only

    def _only_outside(self, blob: Blob) -> int:
        """Pieces that this host lacks and only those that had the blob first are known to have."""
        if blob.form is None or not blob.outside:
            return 0
        first = others = 0
        for peer in self._peers.values():
            if not peer.near and not peer.suspect and blob.form in peer.known:
                if blob.swarm.region_of[peer.name] in blob.sources:
                    first |= peer.known[blob.form]
                else:
                    others |= peer.known[blob.form]
        return first & blob.open & ~others & ~blob.near.get(blob.form, 0)


def _age(late: list[int], only: int) -> None:
    """Note what is late now; what was so before and still is, is so at one look more."""
    late.insert(0, only)
    for looks in range(1, len(late)):
        late[looks] &= only
    del late[MOST_LOOKS:]
    while late and not late[-1]:
        late.pop()
