"""Who is asked what it has by now.

The neighbours in the circle of the region about everything; the bringer of each blob about this host's share of it; and
hosts of other regions by whoever brings the blob in, or has had no news from inside for so long that it takes over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from cas.digest import Digest
from cas.inventory import MAX_FORMS
from cas.swarm.blob import Blob
from cas.swarm.limits import Limits
from cas.swarm.messages import MAX_ASK_FORMS
from cas.swarm.peer import Peer
from cas.swarm.pieces import Picker
from cas.swarm.ranking import Swarm

EXPLORED = 4
"""How many hosts that are no bringers are asked at a time for a blob of which there is no news."""


class Asking:
    """Who is to be asked about what, as long as nothing changes. `plan` makes it anew."""

    def __init__(self, me: str, limits: Limits, peers: Mapping[str, Peer], picker: Picker) -> None:
        self._me = me
        self._limits = limits
        self._peers = peers
        self._picker = picker
        self._swarm: Swarm | None = None
        self._near: list[str] = []
        self.about: dict[str, dict[Digest, Blob] | None] = {}
        """By host, the blobs that it is asked about; None stands for all."""

    def plan(self, blobs: Collection[Blob], now_s: float) -> None:
        self.about = {}
        for name in self._near:
            if len(self.about) >= self._limits.neighbours:
                break
            if self._is_well(name, now_s):
                self.about[name] = None
        left = [peer.name for peer in self._peers.values() if peer.near and not peer.is_well(now_s)]
        for blob in blobs:
            if not blob.keeping:
                self._plan_one(blob, left, now_s)

    def join(self, swarm: Swarm) -> None:
        """The neighbours are those of this swarm from now on."""
        if self._swarm is not swarm:
            self._swarm = swarm
            self._near = list(swarm.circle(self._me))

    def _plan_one(self, blob: Blob, left: list[str], now_s: float) -> None:
        limits = self._limits
        place = blob.swarm.place(self._me, blob.blob)
        ahead = sum(blob.swarm.place(name, blob.blob) < place for name in left if name in blob.swarm.region_of)
        rank = place - ahead
        region = blob.swarm.region_of[self._me]
        ranking = blob.swarm.ranking(region, blob.blob)
        blob.root = next((host for host in ranking if self._is_well(host, now_s)), self._me)
        blob.outside = now_s >= blob.news_s + limits.takeover_s * rank.bit_length()
        blob.relieved = not blob.pending and now_s - blob.moved_s > limits.relief_s
        wanted = list(blob.forms) if blob.form is None else [blob.form]
        if blob.root != self._me and self.about.get(blob.root, {}) is not None:
            mine = any(blob.lacking(form) & self._picker.share_inside(blob, form) for form in wanted)
            if mine or rank <= 2 or blob.relieved:
                self._add(blob.root, blob)
        if blob.outside:
            quiet = now_s - max(blob.heard_s, blob.moved_s) > limits.relief_s
            for name in self._outsiders(blob, region, explore=quiet, now_s=now_s):
                self._add(name, blob)

    def _outsiders(self, blob: Blob, region: str, *, explore: bool, now_s: float) -> Iterator[str]:
        """The bringers of the other regions, and in turn some other hosts where there is no news."""
        bringers = len(blob.swarm.regions) - 1
        taken = 0
        rest: list[str] = []
        for place, name in enumerate(blob.swarm.outside(region, blob.blob)):
            if place >= bringers and not explore and taken >= min(bringers, self._limits.outside):
                break
            if not self._is_well(name, now_s):
                continue
            if taken < min(bringers, self._limits.outside):
                taken += 1
                yield name
            else:
                rest.append(name)
        if explore and rest:
            turn = int((now_s - blob.first_s) / self._limits.relief_s) * EXPLORED
            yield from {rest[(turn + step) % len(rest)]: None for step in range(EXPLORED)}

    def _add(self, name: str, blob: Blob) -> None:
        about = self.about.setdefault(name, {})
        if about is not None:
            about[blob.blob] = blob

    def _is_well(self, name: str, now_s: float) -> bool:
        peer = self._peers.get(name)
        return peer is None or peer.is_well(now_s)

    # --- questions ---

    def questions_for(self, peer: Peer, blobs: Mapping[Digest, Blob]) -> dict[Digest, int]:
        """By form, what would be news from this peer, of the open blobs that it is asked about."""
        about = self.about.get(peer.name)
        forms: dict[Digest, int] = {}
        for digest, blob in (blobs if about is None else about).items():
            if blob.keeping or digest in peer.banned or digest not in blobs:
                continue
            for form in blob.forms if blob.form is None or blob.relieved else (blob.form,):
                if news := self._news(peer, blob, form):
                    forms[form] = news
            if len(forms) > MAX_ASK_FORMS - MAX_FORMS - 1:
                break
        return forms

    def _news(self, peer: Peer, blob: Blob, form: Digest) -> int:
        news = blob.lacking(form) & ~peer.known.get(form, 0)
        if form == blob.form:
            news &= ~blob.pending
            if peer.name == blob.root and not blob.relieved:
                news &= self._picker.share_inside(blob, form)
        return news
