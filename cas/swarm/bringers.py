"""How well the hosts of a region that bring blobs into it do so, as far as this host hears of it.

A bringer that is slow is hard to tell from a border that is, unless others bring blobs over the same border: who is
many times slower than most of them is behind, and the next in the ranking brings its blobs.
"""

from __future__ import annotations

from statistics import median
from typing import Final, NamedTuple

from cas.digest import Digest
from cas.swarm.blob import Blob


class Scale(NamedTuple):
    """A bringer is behind where it has brought so many times less than most others, once those have brought so many
    pieces: little is enough where the difference is large."""

    pieces: int
    slower: float


SCALES: Final = (Scale(64, 16.0), Scale(256, 4.0))
MEMORY: Final = 2.0
"""What was before most have brought so many times the pieces of a scale counts little."""
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
        self.resumed_s = float("-inf")
        """When that was last after a silence."""
        self.behind: frozenset[str] = frozenset()
        """Those that were much slower than most. They stay behind: what others bring in their place cannot be told from
        what they bring themselves."""

    def begin(self, root: str, blob: Blob, now_s: float) -> None:
        """This host is to bring this blob, or still is."""
        bringer = self._of.get(root)
        if bringer is None:
            bringer = self._of[root] = _Bringer(now_s)
        bringer.blobs[blob.blob] = blob

    def brought(self, root: str, pieces: int, now_s: float) -> None:
        bringer = self._of.get(root)
        if bringer is not None:
            bringer.brought(pieces, now_s)
        if now_s - self._newest_s > SILENCE_S:
            self.resumed_s = now_s
        self._newest_s = now_s

    def heard_s(self, root: str) -> float:
        """When it last brought something, or could again, because others did after a time when nobody had."""
        return max(self._of[root].last_s, self.resumed_s)

    def are_silent(self, since_s: float) -> bool:
        """Whether none of several that have something to bring has brought any of it since then: that is the border."""
        at_it = [bringer for bringer in self._of.values() if bringer.blobs]
        return len(at_it) > 1 and all(bringer.last_s < since_s for bringer in at_it)

    def look(self, now_s: float) -> None:
        past_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        for bringer in self._of.values():
            bringer.pass_time(past_s, self._usual)
        rates = [bringer.rate for bringer in self._of.values() if bringer.has_worked]
        self._usual = median(rates) if len(rates) >= FEWEST else 0.0
        self.behind |= {root for root, bringer in self._of.items() if bringer.is_slow(self._usual)}


class _Bringer:
    __slots__ = ("blobs", "last_s", "pieces", "took_s")

    def __init__(self, now_s: float) -> None:
        self.blobs: dict[Digest, Blob] = {}
        self.pieces = [0.0] * len(SCALES)
        self.took_s = [0.0] * len(SCALES)
        self.last_s = now_s

    @property
    def has_worked(self) -> bool:
        return self.took_s[-1] > 0

    @property
    def rate(self) -> float:
        """Pieces in a second."""
        return self.pieces[-1] / self.took_s[-1]

    def brought(self, pieces: int, now_s: float) -> None:
        self.pieces = [before + pieces for before in self.pieces]
        self.last_s = now_s

    def pass_time(self, past_s: float, usual: float) -> None:
        """So long it had something to bring, unless all of it has been brought or given up."""
        self.blobs = {digest: blob for digest, blob in self.blobs.items() if not (blob.ended or blob.is_near())}
        if not self.blobs:
            return
        for at, scale in enumerate(SCALES):
            kept = max(0.0, 1.0 - past_s * usual / (MEMORY * scale.pieces))
            self.took_s[at] = self.took_s[at] * kept + past_s
            self.pieces[at] *= kept

    def is_slow(self, usual: float) -> bool:
        return any(
            took_s * usual > max(scale.pieces, pieces * scale.slower)
            for scale, took_s, pieces in zip(SCALES, self.took_s, self.pieces, strict=True)
        )
