"""A blob that is wanted: in which forms it may come, what is here of it, and what is known of where it is."""

from __future__ import annotations

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


class Blob:
    """Mutable; belongs to one `Fetch`."""

    __slots__ = (
        "blob",
        "far",
        "first_s",
        "form",
        "forms",
        "full",
        "have",
        "heard_s",
        "keeping",
        "moved_s",
        "near",
        "news_s",
        "offered",
        "outside",
        "pending",
        "relieved",
        "root",
        "shares",
        "sources",
        "swarm",
    )

    def __init__(self, want: Want, forms: list[Form], have: dict[Digest, int], now_s: float) -> None:
        self.blob = want.item.whole.digest
        self.swarm = want.swarm
        self.forms = {form.digest: form for form in forms}
        """Those that can be used, the smallest first."""
        self.have = have
        self.form: Digest | None = None
        """The one that it is fetched in."""
        self.full = 0
        """All pieces of the form."""
        self.pending = 0
        """Pieces of the form that are in flight."""
        self.near: dict[Digest, int] = {}
        """What hosts of this region said they have, by form."""
        self.far: dict[Digest, int] = {}
        """What hosts of other regions said they have."""
        self.offered: dict[Digest, float] = {}
        """Forms that somebody has something of, and since when that is known."""
        self.sources: set[str] = set()
        """Regions that had the whole form when they were first heard of."""
        self.shares: dict[tuple[str, Digest, int], int] = {}
        self.keeping = False
        self.root: str | None = None
        """The host that brings it into this region."""
        self.outside = False
        """Whether this host may ask in other regions."""
        self.relieved = False
        """Whether it may be taken from whoever has it, because nothing of it comes."""
        self.first_s = now_s
        self.moved_s = now_s
        """When something of it was last asked for or came."""
        self.news_s = now_s
        """When something of it last came, or was new in this region."""
        self.heard_s = now_s
        """The same, or was new anywhere. Not moved by anything that can be said twice."""

    def lacking(self, form: Digest) -> int:
        return everything(pieces_in(self.forms[form].size)) & ~self.have.get(form, 0)

    def why_not(self, patience_s: float) -> str:
        """The reason for giving it up after so long without news."""
        if not self.offered:
            return f"no host that was asked has it; {patience_s:.0f} s without news"
        return f"the hosts that have it sent nothing for {patience_s:.0f} s"
