"""What is asked about the blobs of a host before they move: what it lacks, what has come already, what it would send.

The blobs themselves travel as exchange frames (`cas.exchange`), which are no part of the API.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from agent.api.base import Struct
from agent.api.calls import MAX_SPECS_PER_STAGE
from agent.api.neighbours import Acquaint
from cas.digest import Digest


class BlobQuery(Struct, frozen=True):
    """Which of these blobs does the host lack, and which of the bases that the sender could use does it hold? Asking
    leases the wanted blobs, so that nothing that arrives is collected before it is used."""

    want: Annotated[tuple[Digest, ...], Meta(max_length=100_000)]
    bases: Annotated[tuple[Digest, ...], Meta(max_length=100_000)] = ()
    lease_s: Annotated[float, Meta(gt=0, le=86400)] = 3600.0
    acquaint: Acquaint | UnsetType = UNSET
    """The host is told of its neighbours too. Where it has not got their list, it knows them as soon as that comes."""


class BlobAnswer(Struct, frozen=True):
    missing: tuple[Digest, ...]
    bases: tuple[Digest, ...]
    arriving: tuple[Digest, ...] | UnsetType = UNSET
    """Forms of which pieces are here already; said to who has sent `acquaint`."""


class BegunQuery(Struct, frozen=True):
    """What has come of these blobs by streams that broke off?"""

    blobs: Annotated[tuple[Digest, ...], Meta(max_length=20_000)]


class BlobBegun(Struct, frozen=True):
    """The first bytes of an encoding of a blob, unverified."""

    digest: Digest
    encoding: Annotated[str, Meta(pattern=r"^(plain|zstd)\Z")]
    bytes: Annotated[int, Meta(ge=0)]


class BegunAnswer(Struct, frozen=True):
    begun: tuple[BlobBegun, ...]


class BlobReceipt(Struct, frozen=True):
    """What a stream of blobs left behind."""

    blobs: int
    wire_bytes: int
    raw_bytes: int


class BlobsWanted(Struct, frozen=True):
    """Blobs that an operator wants from the host, and what is there already to build them on."""

    want: Annotated[tuple[Digest, ...], Meta(max_length=100_000)]
    bases: Annotated[tuple[Digest, ...], Meta(max_length=100_000)] = ()


class BlobOffer(Struct, frozen=True):
    """How the host would send them."""

    bases: tuple[Digest, ...]
    """Blobs whose presence at the receiver would save bytes, at most as many as a question may name."""
    bytes: int
    """About how long the stream will be, with the bases that were named."""


class CodeQuery(Struct, frozen=True):
    """Which of these binaries has the host not compiled for its engine? Asking changes nothing."""

    binaries: Annotated[tuple[Digest, ...], Meta(max_length=MAX_SPECS_PER_STAGE)]


class CodeAnswer(Struct, frozen=True):
    missing: tuple[Digest, ...]
