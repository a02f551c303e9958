"""Who is asked what it has by now.

The neighbours in the circle of the region about everything; the bringer of each blob about this host's share of it; and
hosts of other regions by whoever brings the blob in, or has had no news from inside for so long that it takes over. Of
what the region has already they are asked nothing: a bringer that was left behind gets it from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Set

from cas.digest import Digest
from cas.inventory import MAX_FORMS
from cas.swarm.blob import Blob
from cas.swarm.bringers import Bringers
from cas.swarm.limits import Limits
from cas.swarm.messages import MAX_ASK_FORMS
from cas.swarm.patience import Pace
from cas.swarm.peer import Peer
from cas.swarm.pieces import Picker
from cas.swarm.ranking import Swarm

EXPLORED = 4
"""How many hosts that are no bringers are asked at a time for a blob of which there is no news."""
SUCCESSORS = 3
"""How many hosts of another region are asked at most, the next one where those before it told of nothing."""


class Asking:
    """Who is to be asked about what, as long as nothing changes. `plan` makes it anew."""

    def __init__(self, me: str, limits: Limits, peers: Mapping[str, Peer], picker: Picker, near: Pace) -> None:
        self._me = me
        self._limits = limits
        self._peers = peers
        self._picker = picker
        self._near_pace, self._news_pace = near, Pace()
        self._swarm: Swarm | None = None
        self._near: list[str] = []
        self._most = max(limits.neighbours, limits.outside)
        """So many hosts of each side are asked at a time."""
        self._stays_inside = False
        """Hosts of other regions are asked nothing."""
        self._let_out_s = float("-inf")
        """Since when they may be, where that was so."""
        self.doubtful = False
        """Whether something is in flight for so long that others are to be asked about it."""
        self._bringers = Bringers()
        self.about: dict[str, dict[Digest, Blob] | None] = {}
        """By host, the blobs that it is asked about; None stands for all."""
        self.due: dict[str, None] = {}
        """Those that may have to be asked now: what is not in it has been asked, or there is nothing to ask it."""

    def plan(self, blobs: Collection[Blob], now_s: float) -> None:
        self.about = {}
        for name in self._near:
            if len(self.about) >= min(self._limits.neighbours, self._most):
                break
            if self._is_well(name, now_s):
                self.about[name] = None
        self._bringers.look(now_s)
        near = [peer for peer in self._peers.values() if peer.near]
        left = self._bringers.behind | {peer.name for peer in near if not self._is_trusted(peer.name)}
        liars = [peer for peer in near if peer.banned]
        for blob in blobs:
            if not blob.keeping:
                self._plan_one(blob, left | {peer.name for peer in liars if blob.blob in peer.banned}, now_s)
        self.due = dict.fromkeys(self.about)
        self.doubtful = any(blob.doubtful | blob.tardy for blob in blobs)

    def stay_inside(self, stays: bool, now_s: float) -> None:
        if self._stays_inside and not stays:
            self._let_out_s = now_s
        self._stays_inside = stays

    def again(self, name: str) -> None:
        """Something has changed, so that it may have to be asked."""
        if name in self.about:
            self.due[name] = None

    def all_again(self) -> None:
        self.due = dict.fromkeys(self.about)

    def join(self, swarm: Swarm) -> None:
        """The neighbours are those of this swarm from now on."""
        if self._swarm is not swarm:
            self._swarm = swarm
            self._near = list(swarm.circle(self._me))

    def _plan_one(self, blob: Blob, left: Set[str], now_s: float) -> None:
        """`left`: the hosts of this region that are not to bring it."""
        limits = self._limits
        ahead = sum(blob.swarm.place(name, blob.blob) < blob.place for name in left if name in blob.swarm.region_of)
        rank = blob.place - ahead
        blob.root = next((host for host in blob.ranking if host not in left), self._me)
        blob.absent = left if len(blob.ranking) <= limits.neighbours + 1 else frozenset()
        self._bringers.begin(blob.root, blob, now_s)
        quiet_s = self._quiet_s(blob, blob.root, now_s)
        patience_s = max(
            self._near_pace.patience_s(limits.least_takeover_s, limits.takeover_s),
            self._news_pace.usual_s(limits.least_takeover_s, limits.takeover_s),
        )
        if self._bringers.are_silent(now_s - patience_s) or blob.news_s <= self._let_out_s:
            patience_s = limits.takeover_s
        quiet_s = min(quiet_s, now_s - self._let_out_s)  # until then another host was to be told to bring it
        if self._stays_inside:
            blob.outside = blob.out_of_turn = False
        elif not rank or (blob.out_of_turn and blob.lead < 0):
            blob.outside, blob.out_of_turn = not rank, False
        elif not blob.out_of_turn:
            blob.outside = blob.out_of_turn = quiet_s >= patience_s * (1 + rank.bit_length()) / 2
            blob.lead = 0
        blob.relief = 0 if blob.pending & ~blob.doubtful else self._steps(now_s - blob.moved_s)
        wanted = list(blob.forms) if blob.form is None else [blob.form]
        if blob.root != self._me and self.about.get(blob.root, {}) is not None:
            mine = any(blob.lacking(form) & self._picker.watched_inside(blob, form) for form in wanted)
            if mine or rank <= 2:
                self._add(blob.root, blob)
        if blob.outside and (blob.out_of_turn or not blob.is_near()):
            for name in self._outsiders(blob, blob.swarm.region_of[self._me], now_s, patience_s):
                self._add(name, blob)

    def _quiet_s(self, blob: Blob, root: str, now_s: float) -> float:
        """For how long its bringer seems to have brought nothing. Once the blob has begun to come, what it brings of
        other blobs excuses it for twice as long, no more: others may bring that in its place."""
        heard_s = self._bringers.heard_s(root)
        if blob.news_s > blob.first_s:
            heard_s = min(heard_s, (now_s + max(blob.news_s, self._bringers.resumed_s)) / 2)
        return now_s - max(blob.news_s, heard_s)

    def _steps(self, starved_s: float) -> int:
        """Each step lasts as long as all before it, the first longer than most waits are."""
        first_s = self._limits.relief_s
        if self._near_pace.mean_s is not None:
            first_s = self._near_pace.usual_s(first_s, self._limits.stall_s)
        return int(starved_s / first_s).bit_length()

    def _outsiders(self, blob: Blob, region: str, now_s: float, patience_s: float) -> Iterator[str]:
        """Who brings the blob into the other regions, and in turn some other hosts where there is no news."""
        regions = (other for other in blob.swarm.regions if other != region)
        bringing = (enumerate(self._bringing(blob, other, now_s, patience_s)) for other in regions)
        by_place = sorted(itertools.chain.from_iterable(bringing))
        taken = dict.fromkeys(name for _, name in by_place[: min(self._limits.outside, self._most)])
        yield from taken
        if now_s - max(blob.heard_s, blob.moved_s) > self._limits.relief_s:
            others = blob.swarm.outside(region, blob.blob)
            rest = [name for name in others if name not in taken and self._is_well(name, now_s)]
            turn = int((now_s - blob.first_s) / self._limits.relief_s) * EXPLORED
            yield from {rest[(turn + step) % len(rest)]: None for step in range(min(EXPLORED, self._most)) if rest}

    def _bringing(self, blob: Blob, region: str, now_s: float, patience_s: float) -> Iterator[str]:
        """The first host of a region that is well. Where it has told of nothing for so long, somebody there may have
        taken over from it, which nobody outside is told: the next one too, and so on."""
        well = (name for name in blob.swarm.ranking(region, blob.blob) if self._is_well(name, now_s))
        for name in itertools.islice(well, SUCCESSORS):
            yield name
            told_s = blob.told_s.setdefault(name, now_s)
            if now_s - told_s < patience_s or self._has_the_rest(blob, name):
                return

    def _has_the_rest(self, blob: Blob, name: str) -> bool:
        peer = self._peers.get(name)
        return blob.form is not None and peer is not None and not blob.open & ~peer.known.get(blob.form, 0)

    def _add(self, name: str, blob: Blob) -> None:
        about = self.about.setdefault(name, {})
        if about is not None:
            about[blob.blob] = blob

    def came(self, blob: Blob, pieces: int, now_s: float) -> None:
        """This host has brought so many pieces that were not in its region; if out of turn, in place of the bringer."""
        blob.lead += pieces
        self._news(blob, 0 if blob.out_of_turn else pieces, now_s)

    def told(self, blob: Blob, pieces: int, now_s: float) -> None:
        """Others have brought so many."""
        blob.lead -= pieces
        self._news(blob, pieces, now_s)

    def _news(self, blob: Blob, pieces: int, now_s: float) -> None:
        if blob.news_s > blob.first_s:
            self._news_pace.waited(now_s - blob.news_s)
        blob.news_s = now_s
        if blob.root is not None and pieces:
            self._bringers.brought(blob.root, pieces, now_s)

    def _is_trusted(self, name: str) -> bool:
        """Who failed is asked again after a while, but brings nothing before it has answered."""
        peer = self._peers.get(name)
        if name in self._bringers.behind:
            return False
        return peer is None or not (peer.failures or peer.suspect)

    def _is_well(self, name: str, now_s: float) -> bool:
        peer = self._peers.get(name)
        return peer is None or peer.is_well(now_s)

    # --- questions ---

    def answered(self) -> None:
        """Somebody was asked and has answered: twice as many may be asked at a time."""
        self._most = min(2 * self._most, max(self._limits.neighbours, self._limits.outside))

    def failed(self, asked_s: float) -> None:
        """Somebody who was asked then has not answered. Where nobody else was heard since, it may be this host's own
        line that is slow or cut: half as many are asked at a time."""
        if all(peer.heard_s < asked_s for peer in self._peers.values()):
            self._most = max(1, self._most // 2)

    def questions_for(self, peer: Peer, blobs: Mapping[Digest, Blob]) -> dict[Digest, int]:
        """By form, what would be news from this peer, of the open blobs that it is asked about."""
        about = self.about.get(peer.name)
        forms: dict[Digest, int] = {}
        for digest, blob in (blobs if about is None else about).items():
            if blob.keeping or digest in peer.banned or digest not in blobs:
                continue
            for form in blob.forms if blob.form is None or blob.relief else (blob.form,):
                if news := self._lacks(peer, blob, form):
                    forms[form] = news
            if len(forms) > MAX_ASK_FORMS - MAX_FORMS - 1:
                break
        return forms

    def _lacks(self, peer: Peer, blob: Blob, form: Digest) -> int:
        if form != blob.form:
            return blob.lacking(form) & ~peer.known.get(form, 0)
        news = (blob.open | blob.doubtful | (blob.tardy if peer.near else 0)) & ~peer.known.get(form, 0)
        if news and peer.name == blob.root:
            news &= self._picker.watched_inside(blob, form)
        return news
