"""What a host's journal is made of: entries, each with the hash of the one before it.

They are written by the host alone and read by whoever audits it, years later and with a later version; so an entry is
hashed in the canonical encoding, which a new field does not change.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent.api.base import Struct, canonical
from cas.digest import Digest, digest_of


class Event(enum.StrEnum):
    """What the journal tells of."""

    AGENT_STARTED = "agent-started"
    CALL = "call"
    """An accepted call, before anything acts on it."""
    CALL_FAILED = "call-failed"
    SPAWNED = "spawned"
    SERVING = "serving"
    """From this instant new connections reach this guest; where there is no listener, it runs."""
    DRAINED = "drained"
    ENDED = "ended"
    """This guest serves no longer."""
    EXITED = "exited"
    """This guest ended by itself."""
    VOLUME_CREATED = "volume-created"
    VOLUME_DELETED = "volume-deleted"
    VOLUME_SNAPSHOT = "volume-snapshot"
    COLLECTED = "collected"
    PROBATION = "probation"
    """A version that has taken over is watched from now on, has stood that, or has failed (`detail` says which)."""


class JournalEntry(Struct, frozen=True):
    """One link of a host's chain. `hash` is the BLAKE3-256 of the entry's canonical msgpack with `hash` empty, and
    `previous` the hash of the entry before, so that nothing can be changed, removed or put between unseen."""

    seq: Annotated[int, Meta(ge=0)]
    at_unix_ns: int
    previous: Digest | None
    host: str
    event: Event
    process: str = ""
    spec: Digest | None = None
    binary: Digest | None = None
    config: dict[str, Digest] = {}
    release: Digest | None = None
    plan: Digest | None = None
    call: Digest | None = None
    by: str = ""
    guest: str = ""
    """Which of the process's guests, as the host names them."""
    pid: int | None = None
    detail: str = ""
    ms: float | None = None
    """How long the step took."""
    hash: str = ""
    secret: dict[str, Digest] | UnsetType = UNSET
    """As `config`: the sealed blobs, never what is in them."""

    @property
    def secrets(self) -> dict[str, Digest]:
        return {} if self.secret is UNSET else self.secret


def entry_hash(entry: JournalEntry) -> Digest:
    return digest_of(canonical(msgspec.structs.replace(entry, hash="")))
