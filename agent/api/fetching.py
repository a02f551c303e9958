"""How blobs come from other hosts, and large ones from an operator: in pieces.

An operator wishes (`Fetch`), the host asks others what they have and takes it (`HaveQuery`, `PiecesQuery`), and what no
host of a region has is brought there once (`PiecesOffer`). A blob's forms, and what pieces are: `cas.inventory`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, UnsetType

from agent.api.base import Struct
from agent.api.neighbours import MAX_NEIGHBOURS, HostName
from cas.digest import Digest

MAX_PARTIES: Final = 10_000
MAX_FORMS_ASKED: Final = 2048
MAX_PARTS_ASKED: Final = 1024
MAX_HAVE_WAIT_S: Final = 30.0
MAX_BEFORE_BYTES: Final = 4 << 20
"""Of a stream of blobs that comes before pieces."""

Bitmap = Annotated[bytes, Meta(max_length=1 << 20)]
"""A set of pieces: bit i of byte n, from the lowest, stands for piece 8 n + i."""


class Party(Struct, frozen=True):
    """Blobs, and the hosts that want all of them."""

    hosts: Annotated[tuple[HostName, ...], Meta(max_length=MAX_NEIGHBOURS)]
    """Empty where these are all of the list of neighbours, so that a large cloud's hosts need not be named again."""
    blobs: Annotated[tuple[Digest, ...], Meta(max_length=100_000)]


class Fetch(Struct, frozen=True):
    """Bring these blobs here from other hosts. The host remembers the wish, goes on when the caller has left or the
    agent was killed, and protects what arrives as `BlobQuery` does. Asking again for the same joins what is under
    way."""

    inventory: Digest
    """The blob that says of which pieces these blobs consist (`cas.inventory`); it and its manifests must be here."""
    parties: Annotated[tuple[Party, ...], Meta(max_length=MAX_PARTIES)]
    wait_s: Annotated[float, Meta(ge=0, le=50)] = 0.0
    """The answer comes when all is here, when nobody has what is missing, when a neighbour is found to lie, or after
    this time."""
    inside: bool | UnsetType = UNSET
    """Who asks brings what no host of the region has. As long as it goes on asking, and something comes, nothing is
    asked of other regions. Not for an agent that does not tell what is `arriving`."""


class Fetched(Struct, frozen=True):
    """How far a `Fetch` has come."""

    missing: tuple[Digest, ...]
    under_way: bool
    """False where it has ended: nothing is missing, or it is given up for now, and `trouble` says why."""
    blobs: int = 0
    region_bytes: int = 0
    """Received from hosts of the same region."""
    border_bytes: int = 0
    """Received from hosts of other regions."""
    wrong: tuple[HostName, ...] = ()
    """Hosts that have sent wrong bytes for one of these blobs."""
    trouble: str = ""


class FormAsked(Struct, frozen=True):
    """A form of a blob (`cas.inventory.Form`), with what it takes to find it in a store."""

    form: Digest
    blob: Digest
    size: Annotated[int, Meta(ge=0, le=1 << 48)]
    encoding: Literal["plain", "zstd", "delta"] = "plain"
    base: Digest | None = None


class HaveQuery(Struct, frozen=True):
    """Which pieces of these forms does the host have? It answers at once where it has one that would be news, else
    once it does, and after `wait_s` in any case."""

    forms: Annotated[tuple[FormAsked, ...], Meta(max_length=MAX_FORMS_ASKED)]
    news: Annotated[tuple[Bitmap, ...], Meta(max_length=MAX_FORMS_ASKED)]
    """For each form, the pieces that would be news."""
    wait_s: Annotated[float, Meta(ge=0, le=MAX_HAVE_WAIT_S)] = 0.0


class HaveAnswer(Struct, frozen=True):
    holdings: Annotated[dict[int, Bitmap], Meta(max_length=MAX_FORMS_ASKED)]
    """By the place of a form in the question, all pieces of it that are here; nothing of a form that is not here."""


class PartAsked(Struct, frozen=True, array_like=True, gc=False):
    """Consecutive pieces of one of the forms of a question, which it names by its place there."""

    form: Annotated[int, Meta(ge=0, lt=MAX_FORMS_ASKED)]
    first: Annotated[int, Meta(ge=0, le=1 << 32)]
    count: Annotated[int, Meta(ge=1, le=1 << 32)]


class PiecesQuery(Struct, frozen=True):
    """Pieces of forms. They come one after the other, raw, and nothing else in the answer; one that is not here ends
    it."""

    forms: Annotated[tuple[FormAsked, ...], Meta(max_length=MAX_FORMS_ASKED)]
    parts: Annotated[tuple[PartAsked, ...], Meta(min_length=1, max_length=MAX_PARTS_ASKED)]


class PiecesOffer(Struct, frozen=True):
    """What an operator brings of large blobs, as they are in an inventory that the host has: pieces of forms. The
    request's body is the length of this (4 bytes, little-endian), this, and then the pieces one after the other, raw.
    What is here already of a form (`HaveQuery`) need not be in it; a form that is whole afterwards becomes its blob."""

    inventory: Digest
    forms: Annotated[tuple[Digest, ...], Meta(max_length=MAX_FORMS_ASKED)]
    """In the order in which they become blobs: the base of a patch before the patch."""
    parts: Annotated[tuple[PartAsked, ...], Meta(max_length=MAX_PARTS_ASKED)]
    before_bytes: Annotated[int, Meta(ge=0, le=MAX_BEFORE_BYTES)] | UnsetType = UNSET
    """So many bytes of the body come before the pieces: exchange frames, with what it takes to check the pieces, so
    that a host that is far away has both at once. Not for an agent that does not tell what is `arriving`."""
