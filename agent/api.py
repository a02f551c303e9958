"""The minimal API of a host: every call, every record and the process specification, and nothing else.

`agent` and `deployer` meet only here. A call travels as one msgpack map in an HTTP request body (`POST /v1/call`, an
`Envelope`); an answer is a msgpack map as well: the call's result, or a `Refusal` with a 4xx or 5xx status.

**Compare and swap.** A call names the specification it expects to find (`expect`, the digest of a `ProcessSpec`; a
`Start` expects none). The agent acts only if that holds. **Idempotent.** Where the state that a call asks for is there
already, the call succeeds without doing anything; so a deployer that lost the answer simply asks again. A call's name
is the digest of its envelope, and the journal records it with the plan and the release the call belongs to.
"""

from __future__ import annotations

import enum
import functools
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cas.digest import Digest, digest_of
from cas.signed import Signature
from cas.tree import MAX_MESSAGE

API_VERSION: Final = 1

MAX_CALL_BYTES = 4 << 20
"""A call's body is refused beyond this size, before it is decoded."""
MAX_SPECS_PER_STAGE = 4096
MAX_STARTS: Final = 1_000_000
"""The largest limit of starts in a row."""
SPECS_REMEMBERED: Final = 1 << 17
"""Digests that are kept: whoever plans for a large fleet asks for each of them several times."""

ProcessName = Annotated[
    str, Meta(pattern=r"^[a-z][a-z0-9-]{0,62}\Z", description="lower-case letters, digits, hyphens")
]
GuestPath = Annotated[
    str,
    Meta(
        pattern=r"^(/(?!\.{1,2}(/|\Z))[^/\x00-\x1f\x7f]+)+\Z",
        max_length=1024,
        description="an absolute path that the guest sees, without `.` and `..`",
    ),
]
Text = Annotated[str, Meta(max_length=65536)]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of everything on the wire: immutable, and a field that the reader does not know is an error.

    Digests leave fields out that have their default, so a later version may add a field with a default, and every
    specification and journal entry keeps its digest. For the same reason a default, once released, never changes. A
    later field whose default is `UNSET` is not even sent where it is not used: neither an older reader nor a file that
    an older program has written sees a difference.
    """


# --- what a process is ----------------------------------------------------------------------------------------------


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
    return digest_of(_canonical(encoded, ProcessSpec))


def canonical(value: Struct) -> bytes:
    """The one encoding of a value that its digest is taken of: msgpack with sorted keys, every number in the type that
    its field declares (a Python caller may have given the float field an int), and no field that has its default."""
    return _canonical(msgspec.msgpack.encode(value), type(value))


def _canonical(encoded: bytes, kind: type[Struct]) -> bytes:
    typed = msgspec.msgpack.decode(encoded, type=kind)
    return msgspec.msgpack.encode(_without_defaults(typed), order="deterministic")


def _without_defaults(value: Any) -> Any:
    """msgspec's own `omit_defaults` goes by identity, so an equal value would be left out or not by how it came to
    be."""
    if isinstance(value, msgspec.Struct):
        tag, defaults = _shape_of(type(value))
        kept = dict(tag)
        for name, encoded_name, default in defaults:
            held = getattr(value, name)
            if held != default:
                kept[encoded_name] = held if type(held) in _PLAIN else _without_defaults(held)
        return kept
    if isinstance(value, tuple):
        return [item if type(item) in _PLAIN else _without_defaults(item) for item in value]
    if isinstance(value, dict):
        return {key: item if type(item) in _PLAIN else _without_defaults(item) for key, item in value.items()}
    return value


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""What has no defaults in it; most of a specification is such values."""


@functools.cache
def _shape_of(kind: type[msgspec.Struct]) -> tuple[dict[str, Any], tuple[tuple[str, str, Any], ...]]:
    """A structure's tag, and for each field its name, its name on the wire, and its default. Found once for each kind:
    a fleet has as many specifications as processes."""
    config = kind.__struct_config__
    return (
        {} if config.tag is None else {str(config.tag_field): config.tag},
        tuple(
            (
                one.name,
                one.encode_name,
                one.default if one.default_factory is msgspec.NODEFAULT else one.default_factory(),
            )
            for one in msgspec.structs.fields(kind)
        ),
    )


# --- calls ----------------------------------------------------------------------------------------------------------


class Stage(Struct, frozen=True, tag="stage"):
    """Make ready everything that these specifications need (blobs present, binaries compiled, resources free) and touch
    nothing that runs. Names of missing blobs come back in the refusal. What is staged is protected from collection for
    `hold_s`."""

    specs: Annotated[tuple[ProcessSpec, ...], Meta(max_length=MAX_SPECS_PER_STAGE)]
    hold_s: Annotated[float, Meta(gt=0, le=7 * 86400)] = 86400.0


class Start(Struct, frozen=True, tag="start"):
    """Run a process that is not here yet. Returns when it is ready, or says why it is not."""

    spec: ProcessSpec


class Stop(Struct, frozen=True, tag="stop"):
    """Drain and end a process. Its volumes stay."""

    process: ProcessName
    expect: Digest


class Replace(Struct, frozen=True, tag="replace"):
    """Swap to another specification of the same process. The old one serves until the new one is ready; one that is not
    ready in time never receives a connection, and the old one stays."""

    spec: ProcessSpec
    expect: Digest


class Configure(Struct, frozen=True, tag="configure"):
    """Replace configuration files only; otherwise as `Replace`. Where the specification says that the program rereads
    them (`update.config`) and the paths stay the same, they are replaced under the running guest."""

    process: ProcessName
    config: dict[GuestPath, Digest]
    expect: Digest


class Resize(Struct, frozen=True, tag="resize"):
    """Change what can be changed without a new process: cores, more memory, and the rules for restart, readiness and
    update. Where this host cannot give a guest that runs more memory, a swap does (`Outcome.detail` says so)."""

    spec: ProcessSpec
    expect: Digest


class Restart(Struct, frozen=True, tag="restart"):
    """The same specification again, by the same swap. `nonce` tells one wish from the repetition of a call."""

    process: ProcessName
    expect: Digest
    nonce: Annotated[str, Meta(min_length=8, max_length=64)]


class CreateVolume(Struct, frozen=True, tag="create-volume"):
    """Make a volume, or grow one that is smaller. Refused where it would shrink."""

    volume: ProcessName
    size_bytes: Annotated[int, Meta(ge=1)]


class DeleteVolume(Struct, frozen=True, tag="delete-volume"):
    """Delete a volume and what is in it. Refused while a process holds it."""

    volume: ProcessName


class SnapshotVolume(Struct, frozen=True, tag="snapshot-volume"):
    """Keep in the host's store what a volume holds now (`cas.tree`). Its process is held for an instant, for
    `max_pause_s` at most. Only what is new since the last snapshot is read and stored. `nonce` tells one wish from the
    repetition of a call."""

    volume: ProcessName
    nonce: Annotated[str, Meta(min_length=8, max_length=64)]
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)] = ""
    max_pause_s: Annotated[float, Meta(gt=0, le=60)] = 5.0


class RestoreVolume(Struct, frozen=True, tag="restore-volume"):
    """Make a volume of a snapshot whose blobs are here: beside, and moved into place when it is whole. Refused where
    there is a volume of that name, unless `replace`, and always while a process holds it."""

    volume: ProcessName
    snapshot: Digest
    size_bytes: Annotated[int, Meta(ge=1)]
    nonce: Annotated[str, Meta(min_length=8, max_length=64)]
    replace: bool = False


class Collect(Struct, frozen=True, tag="collect"):
    """Remove the blobs and compiled code that nothing on this host needs. Rollback stays possible offline to the
    specifications of the last `keep` releases."""

    keep: Annotated[int, Meta(ge=0)] = 5


class Check(Struct, frozen=True, tag="check"):
    """Verify every blob of the host's store."""


Call = (
    Stage
    | Start
    | Stop
    | Replace
    | Configure
    | Resize
    | Restart
    | CreateVolume
    | DeleteVolume
    | SnapshotVolume
    | RestoreVolume
    | Collect
    | Check
)


class Envelope(Struct, frozen=True):
    """A call, and in whose name: the release it leads to, the plan it is a step of (absent for single calls such as a
    restart), and who asked."""

    call: Call
    release: Digest | None = None
    plan: Digest | None = None
    by: Annotated[str, Meta(max_length=256)] = ""
    version: Literal[1] = API_VERSION


def call_digest(envelope: Envelope) -> Digest:
    return digest_of(canonical(envelope))


# --- answers --------------------------------------------------------------------------------------------------------


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


# --- what can be read -----------------------------------------------------------------------------------------------


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


# --- between hosts --------------------------------------------------------------------------------------------------

MAX_NEIGHBOURS: Final = 20_000
MAX_PARTIES: Final = 10_000
MAX_FORMS_ASKED: Final = 2048
MAX_PARTS_ASKED: Final = 1024
MAX_HAVE_WAIT_S: Final = 30.0
MAX_WORDS: Final = 16
MAX_WORD_BYTES: Final = 2048
MAX_LISTING_BYTES: Final = 256 << 20
"""What a blob that a word names may have."""
MAX_BEFORE_BYTES: Final = 4 << 20
"""Of a stream of blobs that comes before pieces."""
WORD_CONTEXT: Final = b"lowcloud word signature 1\n"
"""Goes before what is signed, so that no signature can be taken for one of something else."""

Bitmap = Annotated[bytes, Meta(max_length=1 << 20)]
"""A set of pieces: bit i of byte n, from the lowest, stands for piece 8 n + i."""

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


class Wishes(Struct, frozen=True):
    """Who needs what of a release, as a blob: `lowcloud wishes 1`, newline, msgpack."""

    parties: Annotated[tuple[Party, ...], Meta(max_length=MAX_PARTIES)]
    """Every blob of the inventory, each once, with the hosts of the definition that need it."""
    programs: Annotated[tuple[Digest, ...], Meta(max_length=100_000)] = ()
    """Those that are programs, which a host compiles before it is asked to run them."""
    behind: Annotated[tuple[HostName, ...], Meta(max_length=MAX_NEIGHBOURS)] = ()
    """Hosts that did not run their part of the release when its apply had ended."""


class Word(Struct, frozen=True):
    """That there is a release, for hosts that were away: an operator signs it, hosts keep the newest of each ref and
    hand it on. It lets a host fetch and verify what it may be asked to run, and nothing else."""

    ref: Annotated[str, Meta(min_length=1, max_length=256)]
    release: Digest
    at_unix_ns: Annotated[int, Meta(ge=0)]
    """The release's. The greatest counts."""
    inventory: Digest
    inventory_bytes: Annotated[int, Meta(ge=0, le=MAX_LISTING_BYTES)]
    wishes: Digest
    wishes_bytes: Annotated[int, Meta(ge=0, le=MAX_LISTING_BYTES)]
    neighbours: Digest
    neighbours_bytes: Annotated[int, Meta(ge=0, le=MAX_LISTING_BYTES)]

    def listing(self) -> dict[Digest, int]:
        """The blobs that it names, and how many bytes they have."""
        return {
            self.neighbours: self.neighbours_bytes,
            self.wishes: self.wishes_bytes,
            self.inventory: self.inventory_bytes,
        }


class SignedWord(Struct, frozen=True):
    """A word and an operator's signature of it: what hosts keep and hand on."""

    word: Annotated[bytes, Meta(max_length=MAX_WORD_BYTES)]
    """`lowcloud word 1`, newline, the msgpack of a `Word`."""
    signature: Signature
    """Over `WORD_CONTEXT` and these bytes."""


class WordsQuery(Struct, frozen=True):
    """Which words does the host have that are newer than these, and of other refs?"""

    newest: Annotated[dict[str, int], Meta(max_length=MAX_WORDS)] = {}
    """By ref, `at_unix_ns`."""
    words: Annotated[tuple[SignedWord, ...], Meta(max_length=MAX_WORDS)] = ()
    """What the asker has just heard itself, for the host to take."""


class WordsAnswer(Struct, frozen=True):
    words: Annotated[tuple[SignedWord, ...], Meta(max_length=MAX_WORDS)]


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


RECORD_KINDS: Final[dict[type[Struct], str]] = {Neighbours: "neighbours", Wishes: "wishes", Word: "word"}
R = TypeVar("R", bound=Struct)


def encode_record(record: Neighbours | Wishes | Word) -> bytes:
    """A record between hosts as bytes: a line that says what it is, and msgpack, written in one way only."""
    return _record_line(type(record)) + msgspec.msgpack.encode(record, order="deterministic")


def decode_record(data: bytes, kind: type[R]) -> R:
    """Raises ValueError for anything else, and for another version of it."""
    line = _record_line(kind)
    if not data.startswith(line):
        raise ValueError(f"these bytes are no {RECORD_KINDS[kind]} that this lowcloud can read")
    try:
        return msgspec.msgpack.decode(memoryview(data)[len(line) :], type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"these bytes are no {RECORD_KINDS[kind]}: {error}") from error


def _record_line(kind: type[Struct]) -> bytes:
    return f"lowcloud {RECORD_KINDS[kind]} 1\n".encode()


class Routes:
    """Paths of the HTTP service. All are under TLS 1.3 with client certificates."""

    CALL = "/v1/call"
    HOST = "/v1/host"
    PROCESSES = "/v1/processes"
    REPORT = "/v1/report"
    """GET: a `HostReport`."""
    USAGE = "/v1/usage"
    METRICS = "/metrics"
    """For Prometheus. As all routes, under TLS with a certificate; a `reader`'s is enough."""
    OUTPUT = "/v1/output/{process}"
    """`?follow=1` keeps the response open; `?tail_bytes=N` bounds what comes first."""
    JOURNAL = "/v1/journal"
    """`?after=SEQ&limit=N`: entries after a sequence number."""
    BLOBS_QUERY = "/v1/blobs/query"
    BLOBS_BEGUN = "/v1/blobs/begun"
    """POST: a `BegunQuery`; a sender that begins again sends the rest only."""
    CODE_QUERY = "/v1/code/query"
    BLOBS = "/v1/blobs"
    """POST: a stream of exchange frames (`cas.exchange`)."""
    RECONCILE = "/v1/reconcile"
    """POST: a question of `cas.reconcile` about all blobs of the host; the answer's bytes."""
    PIECES = "/v1/pieces"
    """POST: a `PiecesOffer` and what it offers; answered by a `BlobReceipt`."""
    BLOBS_OFFER = "/v1/blobs/offer"
    """POST `BlobsWanted`: a `BlobOffer`."""
    BLOBS_TAKE = "/v1/blobs/take"
    """POST `BlobsWanted`: a stream of exchange frames."""
    BLOB = "/v1/blobs/{digest}"
    """GET: one blob's raw bytes."""
    PEERS = "/v1/peers"
    """POST `Meet`; GET: `PeersStatus`."""
    ACQUAINT = "/v1/peers/acquaint"
    """POST `Acquaint`."""
    WORD = "/v1/word"
    """POST `SignedWord`: an operator leaves it."""
    FETCH = "/v1/fetch"
    PEER_HAVE = "/v1/peer/have"
    PEER_PIECES = "/v1/peer/pieces"
    PEER_BLOB = "/v1/peer/blob/{digest}"
    """As BLOB."""
    PEER_WORDS = "/v1/peer/words"
    """POST `WordsQuery`. These four are all that a host may ask of another."""
    SHUTDOWN = "/v1/shutdown"
    """POST: the agent ends; with `?guests=1` every guest and the supervisor end with it, and come back with the next
    agent."""
