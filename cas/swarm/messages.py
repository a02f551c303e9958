"""What `cas.swarm.fetching` asks of whoever drives it, and what it is told: the whole contract between the two.

A driver (the agent over HTTP, the simulator over a virtual network) carries out requests and reports events. It checks
each piece against its manifest (`Manifest.fits`) and writes it to the spool (`cas.partial`) before it says `Arrived`.

    request   the driver answers with
    Ask       one Told, Busy or Failed
    Get       Flowing while bytes come, Arrived for pieces in any grouping; Over where the answer ended before all came,
              Busy, Failed, or Wrong
    Cancel    nothing: it stops that request, and what still comes of it is ignored
    Keep      one Kept
    Ended     nothing: the blob is settled

A request is over with its Told, Busy, Failed, Over or Wrong, and a Get also with the last piece it asked for. Events of
requests that are over, or never were, are ignored. A set of pieces is an int: bit i stands for piece i.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cas.digest import Digest

MAX_ASK_FORMS: Final = 2048
MAX_GET_PARTS: Final = 1024
FLOWING_BYTES: Final = 16 << 10
"""Who sends fewer between two looks is as good as silent."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """Consecutive pieces of one form."""

    form: Digest
    first: int
    count: int


class Ask(msgspec.Struct, frozen=True):
    """Tell me which pieces of these forms you have: at once where you have one of those named here, else once you do,
    and after `wait_s` in any case. The answer has only forms of which something is there, each with all its pieces."""

    id: int
    peer: str
    forms: dict[Digest, int]
    """By form, the pieces that would be news."""
    wait_s: float


class Get(msgspec.Struct, frozen=True):
    """Send me these, one after the other. What you lack ends the answer early."""

    id: int
    peer: str
    parts: tuple[Part, ...]


class Cancel(msgspec.Struct, frozen=True):
    id: int


class Keep(msgspec.Struct, frozen=True):
    """All pieces of this form are in the spool: store the blob durably. Its base is in the store."""

    blob: Digest
    form: Digest


class Ended(msgspec.Struct, frozen=True):
    blob: Digest
    ok: bool
    reason: str = ""


Request = Ask | Get | Cancel | Keep | Ended


class Told(msgspec.Struct, frozen=True):
    id: int
    holdings: dict[Digest, int]


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """Verified and in the spool."""

    id: int
    form: Digest
    first: int
    count: int
    wire_bytes: int


class Flowing(msgspec.Struct, frozen=True, gc=False):
    """Bytes of this answer have come, `FLOWING_BYTES` since it was last said: over a slow link a piece takes long."""

    id: int


class Wrong(msgspec.Struct, frozen=True):
    """A piece that is not what it should be came. The driver has closed the connection."""

    id: int
    form: Digest
    index: int


class Over(msgspec.Struct, frozen=True):
    """The answer has ended well, though the peer did not have everything."""

    id: int


class Busy(msgspec.Struct, frozen=True):
    """The peer is well but has enough to do: no blame, ask again later."""

    id: int
    again_s: float


class Failed(msgspec.Struct, frozen=True):
    """No connection, cut off, timed out, or an answer that makes no sense."""

    id: int
    reason: str


class Kept(msgspec.Struct, frozen=True):
    blob: Digest
    ok: bool
    reason: str = ""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: due at `Fetch.wake_s`."""


Event = Told | Flowing | Arrived | Wrong | Over | Busy | Failed | Kept | Tick


def everything(pieces: int) -> int:
    """The set of all pieces."""
    return (1 << pieces) - 1


def pack_pieces(held: int, pieces: int) -> bytes:
    """A set of pieces as bytes, little-endian, as long as `pieces` need."""
    return held.to_bytes(-(-pieces // 8), "little")


def unpack_pieces(data: bytes, pieces: int) -> int:
    """Raises ValueError for a set of other pieces than these."""
    held = int.from_bytes(data, "little")
    if len(data) != -(-pieces // 8) or held >> pieces:
        raise ValueError(f"this is no set of {pieces} pieces")
    return held
