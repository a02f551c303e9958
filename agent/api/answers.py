"""What a call comes to: an `Outcome` with status 200, or a `Refusal` with the status of its reason."""

from __future__ import annotations

import enum

from msgspec import UNSET, UnsetType

from agent.api.base import Struct
from cas.digest import Digest


class SnapshotFacts(Struct, frozen=True):
    """A snapshot, and what it took."""

    snapshot: Digest
    at_unix_ns: int
    entries: int
    data_bytes: int
    """Of all files, without holes."""
    read_bytes: int = 0
    blobs: int = 0
    stored_bytes: int = 0
    """What the host's store has more for it."""
    pause_ms: float = 0.0
    """How long the process was held; 0 where none ran or it may not be held."""
    left_out: int = 0
    """Entries that are neither file, directory nor symbolic link."""


class Outcome(Struct, frozen=True):
    """A call that succeeded."""

    changed: bool
    """False where the state asked for was already there."""
    steps: dict[str, float] = {}
    """Milliseconds that each step took, in order: for a swap `spawn`, `ready`, `flip`, `drain`."""
    detail: str = ""
    blobs: int = 0
    bytes: int = 0
    """For `collect` and `check`: how many blobs and bytes were removed or verified."""
    damaged: tuple[Digest, ...] = ()
    snapshot: SnapshotFacts | UnsetType = UNSET
    """For `snapshot-volume` alone."""


class Reason(enum.StrEnum):
    """Why a call was refused. A deployer decides by this, never by the message."""

    BAD_REQUEST = "bad-request"
    """The body is not a call of this API version."""
    TOO_LARGE = "too-large"
    UNEXPECTED_STATE = "unexpected-state"
    """`expect` does not hold: the world has moved."""
    MISSING_BLOBS = "missing-blobs"
    BAD_BLOB = "bad-blob"
    """Bytes that are not what their name says."""
    BAD_BINARY = "bad-binary"
    """A blob that is no WebAssembly, does not compile, or imports what this host does not offer."""
    NO_ROOM = "no-room"
    """Cores, memory, disk, ports: the host does not have what the specification asks for."""
    NOT_READY = "not-ready"
    """The new process did not become ready; what ran before still runs."""
    NOT_FOUND = "not-found"
    IN_USE = "in-use"
    BUSY = "busy"
    """Another call on the same process is under way."""
    FORBIDDEN = "forbidden"
    INTERNAL = "internal"


class Refusal(Struct, frozen=True):
    """A call that changed nothing, and why."""

    reason: Reason
    message: str
    hint: str = ""
    missing: tuple[Digest, ...] = ()
    """Some of the blobs that are not there."""
    output_tail: str = ""
    """The last lines that a guest which did not become ready has printed."""


STATUS_OF_REASON: dict[Reason, int] = {
    Reason.BAD_REQUEST: 400,
    Reason.FORBIDDEN: 403,
    Reason.NOT_FOUND: 404,
    Reason.UNEXPECTED_STATE: 409,
    Reason.IN_USE: 409,
    Reason.BUSY: 409,
    Reason.TOO_LARGE: 413,
    Reason.MISSING_BLOBS: 424,
    Reason.BAD_BLOB: 422,
    Reason.BAD_BINARY: 422,
    Reason.NOT_READY: 424,
    Reason.NO_ROOM: 507,
    Reason.INTERNAL: 500,
}
