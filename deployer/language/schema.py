"""The definition's schema: every field once, with its type, its meaning and what a change of it does to a process.

Parsing, error messages, the reference (`docs/definition.md`), the diff of two versions and the class of every planned
change are derived from these declarations; a field exists only here. The same structures hold the definition as written
(after its units are normalised) and its canonical form (after every file name is resolved to a digest too).
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agent.api.base import GuestPath, Text
from agent.api.facts import Promise
from agent.api.processes import MAX_STARTS


class Change(enum.StrEnum):
    """What a change of a field means for a process that runs, from the mildest to the strongest."""

    NONE = "none"
    HOT = "hot"
    RESTART = "restart"
    REPLACE = "replace"
    MOVE = "move"


MEANING_OF_CHANGE: dict[Change, str] = {
    Change.NONE: "nothing on a host changes",
    Change.HOT: "the running guest goes on",
    Change.RESTART: "a new guest of the same binary takes over by a swap",
    Change.REPLACE: "a guest of another binary takes over by a swap",
    Change.MOVE: "the process starts on one host or ends on another",
}


class Unit(enum.StrEnum):
    """What a number counts. As written it is text with a unit (`deployer.language.units`), from then on an integer."""

    BYTES = "bytes"
    MILLICORES = "millicores"
    MILLISECONDS = "milliseconds"
    TIMES = "times"


Bytes = Annotated[int, Meta(extra={"unit": Unit.BYTES})]
"""A size, written with its unit: `64MiB`."""
Millicores = Annotated[int, Meta(extra={"unit": Unit.MILLICORES})]
"""Processor time in thousandths of a core, written as whole cores (`2`) or a share (`"0.5"`)."""
Milliseconds = Annotated[int, Meta(extra={"unit": Unit.MILLISECONDS})]
"""A duration, written with its unit: `10s`."""
Times = Annotated[int, Meta(extra={"unit": Unit.TIMES})]
"""How often: a whole number, without a unit."""

MAX_BYTES = 1 << 60
MAX_MILLICORES = 1 << 24
HOUR_MS = 3_600_000


def field(
    change: Change,
    description: str,
    *,
    example: str = "",
    later: bool = False,
    smaller: Change | None = None,
    **limits: Any,
) -> Meta:
    """The declaration of one field. `example` is TOML, as it would stand to the right of the equals sign. `later`: the
    field came after version 1 of the canonical form, which therefore leaves it out where it has its default, so that
    the definitions of before keep their digests. `smaller`: what a smaller number means, where that is something else
    than `change`."""
    extra = {"change": change, "example": example, "later": later, "smaller": smaller}
    return Meta(description=description, extra=extra, **limits)


Name = Annotated[
    str,
    Meta(pattern=r"^[a-z][a-z0-9-]{0,62}\Z", description="lower-case letters, digits and hyphens, a letter first"),
]
BlobRef = Annotated[str, Meta(min_length=1, max_length=4096, description="a file's path, or b3:<hash>")]
"""As written: a path beside the definition or a digest. In the canonical form: a whole digest."""
EnvName = Annotated[
    str,
    Meta(pattern=r"^[^=\x00]+\Z", max_length=256, description="a name without `=`"),
]
FilePath = Annotated[
    str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00\\]+\Z", description="a path relative to this file")
]
KeyPath = Annotated[str, Meta(min_length=1, max_length=4096, description="a dotted key, as TOML writes it")]
HttpPath = Annotated[
    str, Meta(pattern=r"^/[!-~]*\Z", max_length=1024, description="a path that begins with /, without spaces")
]
EndpointText = Annotated[str, Meta(max_length=256, description="address:port/tcp or address:port/udp")]
"""An address of a listener or of a connection; `deployer.language.endpoints` has the grammar."""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False, kw_only=True):
    """Base of every table of the definition."""


class Region(Table, frozen=True):
    """Hosts that are near each other. Traffic between regions is what costs."""

    title: Annotated[str, field(Change.NONE, "what people call it", example='"Frankfurt"', max_length=256)] = ""


class Host(Table, frozen=True):
    """A machine that runs an agent."""

    region: Annotated[Name, field(Change.NONE, "the region it stands in", example='"fra"')]
    address: Annotated[
        str,
        field(
            Change.RESTART,
            "where its agent listens: an IP address and a port; processes that use the token `host`, or connect to a "
            "process there, see the address change",
            example='"10.0.0.1:7400"',
            max_length=256,
        ),
    ]
    cores: Annotated[
        Millicores, field(Change.NONE, "cores that processes may be given", example="8", ge=1, le=MAX_MILLICORES)
    ]
    memory: Annotated[
        Bytes, field(Change.NONE, "memory that processes may be given", example='"32GiB"', ge=65536, le=MAX_BYTES)
    ]
    disk: Annotated[
        Bytes,
        field(Change.NONE, "disk that volumes and scratch space may take", example='"400GiB"', ge=0, le=MAX_BYTES),
    ]


class Ready(Table, frozen=True):
    """When a new process may take over: when everything that is named here holds."""

    tcp: Annotated[Name | None, field(Change.HOT, "the listener that must accept a connection", example='"http"')] = (
        None
    )
    path: Annotated[
        HttpPath | None,
        field(
            Change.HOT, "an HTTP GET of this path must also be answered with a status below 400", example='"/healthz"'
        ),
    ] = None
    run: Annotated[
        tuple[Text, ...],
        field(
            Change.HOT,
            "arguments: the same binary, run with them beside the new version, must end with exit code 0; it is run "
            "again and again until then (docs/guests.md)",
            example='["--check"]',
            later=True,
        ),
    ] = ()
    within: Annotated[Milliseconds, field(Change.HOT, "how long it may take", example='"10s"', ge=1, le=HOUR_MS)] = (
        10_000
    )


class Update(Table, frozen=True):
    """How one version gives way to the next."""

    order: Annotated[
        Literal["start-first", "stop-first"],
        field(
            Change.HOT,
            "whether the new version is ready before the old one stops; a process with a volume is always stop-first",
            example='"start-first"',
        ),
    ] = "start-first"
    drain: Annotated[
        Milliseconds,
        field(
            Change.HOT, "how long the old version may finish its connections", example='"30s"', ge=0, le=24 * HOUR_MS
        ),
    ] = 30_000
    on_failure: Annotated[
        Literal["rollback", "pause"],
        field(Change.HOT, "what an apply does to hosts that moved already when another fails", example='"rollback"'),
    ] = "rollback"
    probation: Annotated[
        Milliseconds,
        field(
            Change.HOT,
            "how long a version that has taken over is watched: if it ends badly or is unready in that time, its host "
            "goes back to the version before, and the call fails",
            example='"20s"',
            ge=0,
            le=HOUR_MS,
            later=True,
        ),
    ] = 0
    config: Annotated[
        Literal["restart", "reload"],
        field(
            Change.HOT,
            "`reload`: the program reads its configuration files again by itself when they change, so that only they "
            "are replaced, each in one step; files that come or go need a restart",
            example='"restart"',
            later=True,
        ),
    ] = "restart"


class Process(Table, frozen=True):
    """A sandboxed WASM program, with everything it may use."""

    binary: Annotated[BlobRef, field(Change.REPLACE, "the program: a path, or `b3:<hash>`", example='"build/web.wasm"')]
    hosts: Annotated[
        tuple[Name, ...],
        field(
            Change.MOVE, "the hosts it runs on; there is no hidden scheduler", example='["fra1", "ams1"]', min_length=1
        ),
    ]
    args: Annotated[tuple[Text, ...], field(Change.RESTART, "its arguments", example='["--port", "8080"]')] = ()
    env: Annotated[
        dict[EnvName, Text],
        field(Change.RESTART, "its environment; nothing is inherited", example='{ LOG = "info" }'),
    ] = {}
    cores: Annotated[
        Millicores,
        field(Change.HOT, 'whole cores are dedicated; `"0.5"` is a share of one', example="1", ge=1, le=MAX_MILLICORES),
    ] = 1000
    memory: Annotated[
        Bytes,
        field(
            Change.HOT,
            "the most memory it may use",
            example='"64MiB"',
            smaller=Change.RESTART,
            ge=65536,
            le=MAX_BYTES,
        ),
    ] = 64 << 20
    disk: Annotated[
        Bytes,
        field(Change.RESTART, "scratch space at `/tmp`, emptied at every start", example='"16MiB"', ge=0, le=MAX_BYTES),
    ] = 0
    restart: Annotated[
        Literal["always", "on-failure", "never"],
        field(Change.HOT, "whether it is started again after it has ended by itself", example='"always"'),
    ] = "always"
    restart_limit: Annotated[
        Times,
        field(
            Change.HOT,
            "after so many starts in a row of which none ran well for a minute it stays down, as `failed`, until "
            "`lowcloud restart` or the next version; 0: it is tried for ever",
            example="10",
            ge=0,
            le=MAX_STARTS,
            later=True,
        ),
    ] = 0
    config: Annotated[
        dict[GuestPath, BlobRef],
        field(
            Change.RESTART,
            "the program's own configuration files, read-only: guest path = file",
            example='{ "/etc/web.toml" = "conf/web.toml" }',
        ),
    ] = {}
    volume: Annotated[
        dict[GuestPath, Name],
        field(
            Change.RESTART,
            "writable directories that outlive it: guest path = volume",
            example='{ "/data" = "kv-data" }',
        ),
    ] = {}
    listen: Annotated[
        dict[Name, EndpointText],
        field(
            Change.RESTART,
            "where it accepts connections: name = `address:port/tcp` or `/udp`; "
            "the address `host` is that of the host it runs on",
            example='{ http = "0.0.0.0:8080/tcp" }',
        ),
    ] = {}
    connect: Annotated[
        dict[Name, EndpointText],
        field(
            Change.RESTART,
            "all it may connect to: name = `process@host:port/tcp`, or `address:port/tcp`; "
            "the guest finds the address in `LOWCLOUD_CONNECT_<NAME>`",
            example='{ kv = "kv@fra1:6379/tcp" }',
        ),
    ] = {}
    secret: Annotated[
        dict[GuestPath, Name],
        field(
            Change.RESTART,
            "files that hold a secret, read-only: guest path = the name that `lowcloud secret set` gave it; a "
            "directory with a secret in it holds nothing else",
            example='{ "/run/secrets/db" = "db-password" }',
            later=True,
        ),
    ] = {}
    gpu: Annotated[
        Literal["none", "webgpu"],
        field(
            Change.RESTART,
            "reserved: `webgpu` asks for a GPU, and a plan is refused where no host offers one",
            example='"none"',
            later=True,
        ),
    ] = "none"
    require: Annotated[
        tuple[Promise, ...],
        field(
            Change.NONE,
            "guarantees of the sandbox that its hosts must give as hard ones; a plan is refused where one cannot "
            "(`lowcloud host show` lists them)",
            example='["own-user", "disk"]',
            later=True,
        ),
    ] = ()
    ready: Annotated[
        Ready | None,
        field(Change.HOT, "when a new version may take over", example='{ tcp = "http", within = "10s" }'),
    ] = None
    update: Annotated[
        Update, field(Change.HOT, "how one version gives way to the next", example='{ drain = "30s" }')
    ] = Update()


class Volume(Table, frozen=True):
    """Stateful storage on the host of the process that uses it. It stays when the process goes."""

    size: Annotated[Bytes, field(Change.HOT, "its size; it can grow", example='"1GiB"', ge=1, le=MAX_BYTES)]


class Secret(Table, frozen=True):
    """What only a process may read, by name. Written by hand only to fix a version: `lowcloud resolve` fills it in."""

    sealed: Annotated[
        dict[Name, BlobRef],
        field(
            Change.RESTART,
            "host = `b3:<hash>` of what was sealed to that host's key; without it the newest that "
            "`lowcloud secret set` has made",
            example='{ fra1 = "b3:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }',
        ),
    ] = {}


class Definition(Table, frozen=True):
    """The whole infrastructure."""

    name: Annotated[Name, field(Change.NONE, "what this infrastructure is called", example='"shop"')]
    region: Annotated[dict[Name, Region], field(Change.NONE, "regions by name")] = {}
    host: Annotated[dict[Name, Host], field(Change.NONE, "hosts by name")] = {}
    process: Annotated[dict[Name, Process], field(Change.MOVE, "processes by name")] = {}
    volume: Annotated[dict[Name, Volume], field(Change.HOT, "volumes by name")] = {}
    secret: Annotated[
        dict[Name, Secret], field(Change.RESTART, "sealed secrets by name; filled in by `lowcloud resolve`", later=True)
    ] = {}


class Head(Table, frozen=True):
    """What a file says about itself. It is no part of the definition that the files make together."""

    include: Annotated[
        tuple[FilePath, ...],
        field(
            Change.NONE,
            "further files that belong to the definition; each may include more",
            example='["hosts.toml", "regions/eu.toml"]',
        ),
    ] = ()
    remove: Annotated[
        tuple[KeyPath, ...],
        field(
            Change.NONE,
            "in an overlay only: keys that the definition has and this overlay takes away",
            example='["process.debug", "process.web.env.LOG"]',
        ),
    ] = ()
