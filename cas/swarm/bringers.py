"""How well the hosts of a region that bring blobs into it do so, as far as this host hears of it.

A bringer that is slow is hard to tell from a border that is, unless others bring blobs over the same border: who is
many times slower than most of them is behind, and the next in the ranking brings its blobs.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from cas.digest import Digest
from cas.swarm.blob import Blob

SLOWER: Final = 4.0
"""A bringer is behind where it is so many times slower than most others."""
FAIR_PIECES: Final = 256
"""Nobody is judged before most would have brought so many pieces."""
REMEMBERED_PIECES: Final = 512
"""What was before most have brought so many counts little."""
SILENCE_S: Final = 2.0
"""When nobody has brought anything for so long, the border is slow or cut, and time does not count against anyone."""
FEWEST: Final = 3
"""Nobody is judged beside fewer bringers, itself among them."""


class Bringers:
    """Mutable; belongs to one `Fetch`. `look` is called every now and then."""

    def __init__(self) -> None:
        self._of: dict[str, _Bringer] = {}
        self._usual = 0.0
        """Pieces in a second that most bring."""
        self._looked_s: float | None = None
        self._newest_s = float("-inf")
        """When anything was last brought, by whomever."""
        self._resumed_s = float("-inf")
        """When that was last after a silence."""
        self.behind: frozenset[str] = frozenset()
        """Those that are much slower than most."""

    def begin(self, root: str, blob: Blob, now_s: float) -> None:
        """This host is to bring this blob, or still is."""
        bringer = self._of.get(root)
        if bringer is None:
            bringer = self._of[root] = _Bringer(now_s)
        bringer.blobs[blob.blob] = blob

    def brought(self, root: str, pieces: int, now_s: float) -> None:
        bringer = self._of.get(root)
        if bringer is not None:
            bringer.pieces += pieces
            bringer.last_s = now_s
        if now_s - self._newest_s > SILENCE_S:
            self._resumed_s = now_s
        self._newest_s = now_s

    def heard_s(self, root: str) -> float:
        """When it last brought something, or could again, because others did after a time when nobody had."""
        return max(self._of[root].last_s, self._resumed_s)

    def are_silent(self, since_s: float) -> bool:
        """Whether none of several that have something to bring has brought any of it since then: that is the border."""
        at_it = [bringer for bringer in self._of.values() if bringer.blobs]
        return len(at_it) > 1 and all(bringer.last_s < since_s for bringer in at_it)

    def look(self, now_s: float) -> None:
        past_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        kept = max(0.0, 1.0 - past_s * self._usual / REMEMBERED_PIECES)
        for bringer in self._of.values():
            bringer.pass_time(past_s, kept)
        rates = [bringer.pieces / bringer.took_s for bringer in self._of.values() if bringer.took_s]
        self._usual = median(rates) if len(rates) >= FEWEST else 0.0
        self.behind = frozenset(
            root
            for root, bringer in self._of.items()
            if bringer.took_s * self._usual > max(FAIR_PIECES, bringer.pieces * SLOWER)
        )


class _Bringer:
    __slots__ = ("blobs", "last_s", "pieces", "took_s")

    def __init__(self, now_s: float) -> None:
        self.blobs: dict[Digest, Blob] = {}
        self.pieces = 0.0
        self.took_s = 0.0
        self.last_s = now_s

    def pass_time(self, past_s: float, kept: float) -> None:
        """So long it had something to bring, unless all of it has been brought."""
        self.blobs = {digest: blob for digest, blob in self.blobs.items() if not blob.is_near()}
        if self.blobs:
            self.took_s = self.took_s * kept + past_s
            self.pieces *= kept
