"""What a host can be asked to do. Each call is one map in an `Envelope` that says in whose name it is made.

**Compare and swap.** A call names the specification it expects to find (`expect`, the digest of a `ProcessSpec`; a
`Start` expects none). The agent acts only if that holds. **Idempotent.** Where the state that a call asks for is there
already, the call succeeds without doing anything; so a deployer that lost the answer simply asks again. A call's name
is the digest of its envelope, and the journal records it with the plan and the release the call belongs to.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from agent.api.base import GuestPath, ProcessName, Struct, canonical
from agent.api.processes import ProcessSpec
from cas.digest import Digest, digest_of
from cas.tree import MAX_MESSAGE

API_VERSION: Final = 1

MAX_CALL_BYTES = 4 << 20
"""A call's body is refused beyond this size, before it is decoded."""
MAX_SPECS_PER_STAGE = 4096


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
