"""A blob that is wanted: in which forms it may come, what is here of it, and what is known of where it is."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from cas.digest import Digest
from cas.inventory import Form, Item
from cas.manifest import pieces_in
from cas.swarm.messages import everything
from cas.swarm.ranking import Swarm


class Want(NamedTuple):
    item: Item
    swarm: Swarm
    bases: frozenset[Digest] = frozenset()
    """Those of the item's bases that the store holds."""
    unchecked: frozenset[Digest] = frozenset()
    """Forms that are left aside, because the manifest that their pieces are checked by is not here."""


class Group(NamedTuple):
    """The regions that are served by those that had a blob first, so many: this host's place among them."""

    sources: int
    place: int
    size: int


class Blob:
    """Mutable; belongs to one `Fetch`. A set of pieces is an int, as in `messages`."""

    __slots__ = (
        "absent",
        "blob",
        "crossing",
        "doubtful",
        "ended",
        "first_s",
        "flowed_s",
        "form",
        "forms",
        "group",
        "have",
        "heard_s",
        "keeping",
        "late_inside",
        "late_outside",
        "lead",
        "moved_s",
        "near",
        "news_s",
        "offered",
        "open",
        "out_of_turn",
        "outside",
        "owned",
        "pending",
        "pieces",
        "place",
        "ranking",
        "relief",
        "root",
        "said_far",
        "said_near",
        "sources",
        "swarm",
        "tardy",
        "told_s",
        "wholes",
    )

    def __init__(self, want: Want, forms: list[Form], have: dict[Digest, int], me: str, now_s: float) -> None:
        self.blob = want.item.whole.digest
        self.swarm = want.swarm
        self.ranking = want.swarm.ranking(want.swarm.region_of[me], self.blob)
        """The hosts of this region, who should bring it first."""
        self.place = want.swarm.place(me, self.blob)
        """Where in the ranking this host stands."""
        self.forms = {form.digest: form for form in forms}
        """Those that can be used, the smallest first."""
        self.wholes = {form.digest: everything(pieces_in(form.size)) for form in forms}
        """All pieces of each form."""
        self.have = have
        self.form: Digest | None = None
        """The one that it is fetched in."""
        self.pieces = 0
        """How many the form has."""
        self.open = 0
        """Pieces of the form that are neither here nor in flight."""
        self.pending = 0
        """Pieces of the form that are in flight."""
        self.crossing = 0
        """Those of them that were asked for in other regions."""
        self.tardy = 0
        """Pieces that have been in flight for longer than neighbours usually need, so that those are asked for them."""
        self.doubtful = 0
        """Pieces that have been in flight for long."""
        self.near: dict[Digest, int] = {}
        """What hosts of this region have that are believed, by form."""
        self.said_near: dict[Digest, int] = {}
        """What hosts of this region ever said they have."""
        self.said_far: dict[Digest, int] = {}
        """What hosts of other regions ever said they have."""
        self.told_s: dict[str, float] = {}
        """When hosts of other regions last told of something that they had not told of, or were first asked."""
        self.offered: dict[Digest, float] = {}
        """Forms that somebody has something of, and since when that is known."""
        self.sources: set[str] = set()
        """Regions that had the whole form when they were first heard of."""
        self.group: Group | None = None
        """As it was when it was last needed."""
        self.owned: dict[tuple[Digest, int, int, int], int] = {}
        """The runs of a form that are dealt to a place among so many, where each has so many owners."""
        self.late_inside: list[int] = []
        """Pieces of the form that only the bringer of the region had at the last look, at the last two, ..."""
        self.late_outside: list[int] = []
        """The same of those that had the blob first and the other bringers."""
        self.keeping = False
        self.ended = False
        self.absent: Set[str] = frozenset()
        """Hosts of a small region that take nothing over from its bringer, as far as this one knows."""
        self.root: str | None = None
        """The host that brings it into this region."""
        self.outside = False
        """Whether this host may ask in other regions."""
        self.out_of_turn = False
        """Whether it does so although another host should, of which there was no news for long."""
        self.lead = 0
        """How many pieces more than others this host has brought since it went outside."""
        self.relief = 0
        """For how long nothing of it came, in steps: more and more may be taken from whoever has it."""
        self.first_s = now_s
        self.moved_s = now_s
        """When something of it was last asked for or came."""
        self.news_s = now_s
        """When something of it last came, or was new in this region."""
        self.flowed_s = now_s
        """When bytes of a piece last came."""
        self.heard_s = now_s
        """The same as `news_s`, or was new anywhere. Not moved by anything that can be said twice."""

    def lacking(self, form: Digest) -> int:
        return self.wholes[form] & ~self.have.get(form, 0)

    def is_near(self) -> bool:
        """Whether all of it is in this region."""
        form = self.form
        return form is not None and not self.lacking(form) & ~self.near.get(form, 0)

    def use(self, form: Digest | None) -> None:
        """Fetch it in this form from now on; nothing of it is in flight."""
        self.form = form
        self.pieces = 0 if form is None else pieces_in(self.forms[form].size)
        self.open = 0 if form is None else self.lacking(form)
        self.pending = self.crossing = 0
        self.late_inside, self.late_outside = [], []

    def asked_for(self, pieces: int, now_s: float | None, *, near: bool) -> None:
        """Now; None where whoever was asked is not expected to send them."""
        self.pending |= pieces
        if not near:
            self.crossing |= pieces
        self.open &= ~pieces
        if now_s is not None:
            self.moved_s = now_s

    def asked_in_vain(self) -> None:
        """Who was asked has no time: that moved nothing, however often it is tried."""
        self.moved_s = min(self.moved_s, self.news_s)

    def came(self, form: Digest, pieces: int, now_s: float) -> None:
        self.have[form] = self.have.get(form, 0) | pieces
        self.pending &= ~pieces
        self.crossing &= ~pieces
        self.moved_s = self.news_s = self.heard_s = now_s
        self.relief = 0

    def given_up(self, pieces: int) -> None:
        """These pieces do not come, although they were asked for."""
        self.pending &= ~pieces
        self.crossing &= ~pieces
        self.open |= pieces

    def why_not(self, patience_s: float) -> str:
        """The reason for giving it up after so long without news."""
        if not self.offered:
            return f"no host that was asked has it; {patience_s:.0f} s without news"
        return f"the hosts that have it sent nothing for {patience_s:.0f} s"
