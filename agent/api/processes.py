"""What a process is: all that a host has to know to run it. The digest of that is its version there."""

from __future__ import annotations

import functools
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent.api.base import GuestPath, ProcessName, Struct, Text, canonical_of
from cas.digest import Digest, digest_of

MAX_STARTS: Final = 1_000_000
"""The largest limit of starts in a row."""
SPECS_REMEMBERED: Final = 1 << 17
"""Digests that are kept: whoever plans for a large fleet asks for each of them several times."""


class Endpoint(Struct, frozen=True):
    """Where a listener is, or whom a connection may reach."""

    address: Annotated[str, Meta(max_length=64, description="an IPv4 or IPv6 address, without brackets")]
    port: Annotated[int, Meta(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] = "tcp"

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}/{self.protocol}"


class Ready(Struct, frozen=True):
    """When a new process may take over: when all that is named here holds."""

    tcp: str | None = None
    """Name of the listener that must accept a connection."""
    path: str | None = None
    """If set, an HTTP GET of this path over that connection must also be answered with a status below 400."""
    within_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0
    run: tuple[Text, ...] | UnsetType = UNSET
    """If set, the same binary is run with these arguments, again and again, until it ends with exit code 0."""

    def __post_init__(self) -> None:
        if self.run == ():
            msgspec.structs.force_setattr(self, "run", UNSET)

    @property
    def command(self) -> tuple[Text, ...]:
        return () if self.run is UNSET else self.run


class Update(Struct, frozen=True):
    """How one version of a process gives way to the next."""

    order: Literal["start-first", "stop-first"] = "start-first"
    drain_s: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    """How long the old version may finish its connections after the new one has taken over."""
    on_failure: Literal["rollback", "pause"] = "rollback"
    probation_s: Annotated[float, Meta(ge=0, le=3600)] | UnsetType = UNSET
    """How long a version that has taken over is watched: if it ends badly or is unready in that time, the host goes
    back to the version before by itself."""
    config: Literal["restart", "reload"] | UnsetType = UNSET
    """`reload`: the program reads its configuration files again by itself; new ones are put under a running guest."""

    def __post_init__(self) -> None:
        if self.probation_s == 0:
            msgspec.structs.force_setattr(self, "probation_s", UNSET)
        if self.config == "restart":
            msgspec.structs.force_setattr(self, "config", UNSET)

    @property
    def watched_s(self) -> float:
        """The probation's length; 0 where there is none."""
        return 0.0 if self.probation_s is UNSET else self.probation_s

    @property
    def rereads(self) -> bool:
        return self.config == "reload"


class ProcessSpec(Struct, frozen=True):
    """Everything a host has to know to run a process. Its digest is the process's version on that host."""

    name: ProcessName
    binary: Digest
    args: tuple[Text, ...] = ()
    env: dict[str, Text] = {}
    config: dict[GuestPath, Digest] = {}
    """Read-only files: guest path to blob."""
    volume: dict[GuestPath, ProcessName] = {}
    """Writable directories that outlive the process: guest path to the volume's name."""
    listen: dict[ProcessName, Endpoint] = {}
    connect: dict[ProcessName, Endpoint] = {}
    """All that the process may connect to. The guest finds `address:port` in `LOWCLOUD_CONNECT_<NAME>`."""
    cores_milli: Annotated[int, Meta(ge=1)] = 1000
    """Thousandths of a core."""
    memory_bytes: Annotated[int, Meta(ge=65536)] = 64 << 20
    disk_bytes: Annotated[int, Meta(ge=0)] = 0
    """Scratch space at `/tmp`; 0 means none."""
    restart: Literal["always", "on-failure", "never"] = "always"
    ready: Ready | None = None
    update: Update = Update()
    secret: dict[GuestPath, Digest] | UnsetType = UNSET
    """Read-only files that only this host can open: guest path to the blob that was sealed to the host's key
    (`cas.sealed`). A directory with a secret in it holds nothing else. Not sent and not hashed where there is none."""
    restart_limit: Annotated[int, Meta(ge=0, le=MAX_STARTS)] | UnsetType = UNSET
    """After so many starts in a row without a good run it stays down until a call on it. UNSET, as 0: never."""

    def __post_init__(self) -> None:
        if self.secret == {}:
            msgspec.structs.force_setattr(self, "secret", UNSET)
        if self.restart_limit == 0:
            msgspec.structs.force_setattr(self, "restart_limit", UNSET)

    @property
    def secrets(self) -> dict[GuestPath, Digest]:
        return {} if self.secret is UNSET else self.secret


def spec_digest(spec: ProcessSpec) -> Digest:
    """The version of a process on a host: the digest of its specification's canonical msgpack."""
    return _spec_digest(msgspec.msgpack.encode(spec))


@functools.lru_cache(maxsize=SPECS_REMEMBERED)
def _spec_digest(encoded: bytes) -> Digest:
    return digest_of(canonical_of(encoded, ProcessSpec))
