"""Whom a host may exchange blobs with: the hosts of its cloud, and what it knows of each of them.

A list of 10,000 hosts is long and changes little. So it is a blob, of which a host is told the name (`Acquaint`);
where it has an older one, a delta is all that it is sent.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, UnsetType

from agent.api.base import ProcessName, Struct
from agent.api.facts import Waiting
from cas.digest import Digest

MAX_NEIGHBOURS: Final = 20_000


HostName = ProcessName


class Neighbour(Struct, frozen=True):
    """A host of the same cloud: whom blobs may come from."""

    host: HostName
    region: HostName
    address: Annotated[str, Meta(max_length=256)]
    """`address:port` of its agent."""


class Meet(Struct, frozen=True):
    """The hosts of a definition, with the host that is told among them. The newest list counts, and lasts."""

    neighbours: Annotated[tuple[Neighbour, ...], Meta(max_length=MAX_NEIGHBOURS)]
    at_unix_ns: Annotated[int, Meta(ge=0)]


class Neighbours(Struct, frozen=True):
    """The hosts of a definition, as a blob: `lowcloud neighbours 1`, newline, msgpack."""

    neighbours: Annotated[tuple[Neighbour, ...], Meta(max_length=MAX_NEIGHBOURS)]


class Acquaint(Struct, frozen=True):
    """As `Meet`, by the name of the blob that is the list (`Neighbours`)."""

    neighbours: Digest
    at_unix_ns: Annotated[int, Meta(ge=0)]
    bring: bool = False
    """The host is to get the list from the neighbours that it knows already, where it has not got it."""


class Acquainted(Struct, frozen=True):
    known: bool
    """False where the host has not got the list: then it is to be sent, and the question asked again."""


class PeerStatus(Struct, frozen=True):
    """What a host knows of another one since its agent started."""

    host: HostName
    region: HostName
    address: str
    received_bytes: int = 0
    sent_bytes: int = 0
    rate_bytes_s: float = 0.0
    """Of pieces received, while they came; 0 where none did."""
    failures: int = 0
    banned: tuple[Digest, ...] = ()
    """Blobs that it has sent wrong bytes for."""


class PeersStatus(Struct, frozen=True):
    region: str
    """Of the host that tells; "" before it was told of its neighbours."""
    peers: tuple[PeerStatus, ...]
    deployer_bytes: int = 0
    """Blobs received from operators since the agent started."""
    waiting: tuple[Waiting, ...] | UnsetType = UNSET
    """Not sent where nothing waits."""
