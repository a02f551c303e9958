"""What a host tells of itself and of the processes that it runs. Reading it changes nothing."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from agent.api.base import ProcessName, Struct
from agent.api.processes import ProcessSpec
from cas.digest import Digest


class ProcessState(enum.StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    """It exited and will be started again after a wait."""
    EXITED = "exited"
    """It ended and its restart rule leaves it so."""
    FAILED = "failed"
    """The host cannot run it (see `reason`): it tries again with growing waits, or has given up by `restart_limit`."""


class Troubles(Struct, frozen=True):
    """Starts of a process in a row of which none was a good run."""

    starts: Annotated[int, Meta(ge=1)]
    last: str
    """What came of the last one, as a sentence."""
    at_unix: float
    exit_code: int | None = None
    """Of the last one, where its guest ended by itself."""


class ProcessStatus(Struct, frozen=True):
    process: ProcessName
    spec: ProcessSpec
    spec_digest: Digest
    state: ProcessState
    pid: int | None
    since_unix: float
    """When this guest began to serve, or last changed its state."""
    restarts: int
    """How often this specification's guest was started again after it exited by itself."""
    release: Digest | None
    plan: Digest | None
    reason: str = ""
    memory_bytes: int = 0
    """Private memory now in use."""
    troubles: Troubles | UnsetType = UNSET
    """Not sent where the last start was a good run, or has not ended yet and is the first."""
    next_start_unix: float | UnsetType = UNSET
    """When it is started again; not sent where nothing waits for that."""
    given_up: bool | UnsetType = UNSET
    """It is not started again: its limit of starts is reached. Not sent where it is not so."""


class ProcessUsage(Struct, frozen=True):
    """What a process that runs takes now."""

    process: ProcessName
    pid: int
    cpu_s: float
    """Processor time of its guest since the guest's start."""
    memory_bytes: int
    """Private memory."""
    disk_bytes: int
    """What its volumes and its scratch space hold."""
    connections: int
    """Open TCP connections, accepted or made."""


Promise = Literal[
    "memory",
    "cores",
    "cpu-share",
    "threads",
    "disk",
    "files",
    "tcp-listeners",
    "tcp-connections",
    "udp",
    "udp-egress",
    "names",
    "own-user",
    "no-new-privileges",
    "system-calls",
    "signals",
]
"""What the design promises of every guest. Each is a row of a host's capability table, and a definition may require it
(`require`). `docs/sandbox.md` says what each of them means."""


class Guarantee(Struct, frozen=True):
    """One row of the capability table: something the design promises, and whether this host can."""

    name: str
    """A `Promise`, or one that a later version has."""
    given: bool
    """It is hard: enforced from outside the guest's program."""
    how: str
    """By which mechanism, or what is missing."""
    soft: bool | UnsetType = UNSET
    """Not given, but something is done: a guest that keeps to the rules meets the limit, a hostile one may pass it. Not
    sent where it is not so."""

    @property
    def strength(self) -> Literal["hard", "soft", "no"]:
        return "hard" if self.given else "soft" if self.soft is True else "no"


class VolumeStatus(Struct, frozen=True):
    volume: ProcessName
    size_bytes: int
    used_bytes: int
    held_by: ProcessName | None = None


class Waiting(Struct, frozen=True):
    """A release that a host was away for, and has heard of since: it brings here what it needs for it, and runs nothing
    of it before an operator's plan says so."""

    ref: str
    release: Digest
    at_unix_ns: int
    by: str
    """Who signed the word of it."""
    blobs: int
    """That the release has for this host."""
    missing: int
    """Of these, not here yet."""
    uncompiled: int = 0
    """Programs of it that are not compiled yet."""


class HostFacts(Struct, frozen=True):
    host: str
    cores: int
    memory_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    addresses: tuple[str, ...]
    kernel: str
    engine: str
    """Fingerprint of everything compiled code depends on."""
    guarantees: tuple[Guarantee, ...]
    volumes: tuple[VolumeStatus, ...] = ()
    store_blobs: int = 0
    store_bytes: int = 0
    version: str = ""
    sealing_key: str | UnsetType = UNSET
    """The public key that this host's secrets are sealed to (X25519, 64 hex digits). An older agent has none."""
    waiting: tuple[Waiting, ...] | UnsetType = UNSET
    """Not sent where nothing waits."""


class HostReport(Struct, frozen=True):
    """What a host is and what it runs, in one answer: hosts that are far away are asked for both again and again."""

    host: HostFacts
    processes: tuple[ProcessStatus, ...]
    undecided: tuple[str, ...] | UnsetType = UNSET
    """What a call is about that the host has begun to read and not yet decided, in words: what it runs may change
    without another call. Not sent where there is none; an older agent sends it never."""
