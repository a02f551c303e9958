"""What the agent asks of the part of a host that outlives it.

Three kinds of process run on a host:

- the **agent** (asyncio; may be killed, restarted, upgraded at any time) decides what should run;
- the **supervisor** (one small single-threaded loop, no engine, no asyncio) holds what must not be lost: the listeners,
  the notification descriptors of the guests' system-call filters, their output pipes and their exit statuses. It is the
  subreaper of everything below it;
- the **zygote** (single-threaded, engine and linker loaded) forks guests, and is replaced when it dies.

The agent reaches the supervisor over a Unix socket in its state directory. If the agent is gone, guests go on serving,
their output is kept, their exit statuses wait. This module declares the messages' content and the calls; the
implementation is `agent.supervisor.client`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent.api.base import Struct
from agent.api.processes import Endpoint, Ready
from cas.digest import digest_of

GuestId = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,128}\Z")]
"""Chosen by the agent, never used twice in a state directory."""

Network = Literal["listeners", "namespace"]

MEMORY_OVERHEAD_BYTES: Final = 96 << 20
"""What the engine may use beside a program's memory: stacks of its threads, buffers, tables."""


def kernel_name(state_dir: Path) -> str:
    """16 hex digits: what control groups and packet filter rules of the agent of this state directory are named
    after."""
    return digest_of(os.fsencode(state_dir.resolve())).removeprefix("b3:")[:16]


class Preopen(Struct, frozen=True):
    """A host directory that the guest sees under a path of its own."""

    host_path: str
    guest_path: str
    writable: bool


class Mount(Struct, frozen=True):
    """A file system of a size that the kernel keeps, for one guest alone."""

    target: str
    """The host directory that it is mounted on; a preopen names it."""
    size_bytes: int
    image: str = ""
    """The file that holds an ext4 file system; "" for memory that begins empty."""


class Checked(Struct, frozen=True):
    """The guest that another one, a check, is to judge by its exit code."""

    guest: GuestId
    listen: dict[str, Endpoint]
    """Its listeners. The check may connect to each at its `local_address`, and reaches this guest, also while it is
    dark."""


class GuestOrder(Struct, frozen=True):
    """All that is needed to run one guest. Every path is absolute."""

    guest: GuestId
    process: str
    code_path: str
    """Compiled code that this host's own compiler made for this engine."""
    code_kind: Literal["core", "component"]
    args: tuple[str, ...]
    env: dict[str, str]
    preopens: tuple[Preopen, ...]
    listen: dict[str, Endpoint]
    connect: dict[str, Endpoint]
    memory_bytes: int
    cpus: tuple[int, ...]
    """CPUs it may run on; empty means all."""
    output_path: str
    """Standard output and error go here, appended; the supervisor rotates the file (`.1`, `.2`, … are older)."""
    uid: int | None = None
    """The user the guest runs as; None keeps the agent's own (always so without privileges)."""
    mounts: tuple[Mount, ...] = ()
    """What the guest's process mounts for itself; it goes when the process ends. Needs privileges."""
    cgroups: tuple[str, ...] = ()
    """Control groups that the guest's process joins: one directory for each hierarchy."""
    network: Network = "listeners"
    """`listeners`: in the host's network, with sockets that the supervisor makes there. `namespace`: in a network
    namespace of its own, to which rules lead what comes for its endpoints; needs privileges. A check is where the
    guest is that it checks."""
    checks: Checked | UnsetType = UNSET
    """Set for a check, which is no version of its process. Not sent where it is none."""

    @property
    def checked(self) -> Checked | None:
        return None if self.checks is UNSET else self.checks

    @property
    def endpoints(self) -> list[Endpoint]:
        """Everything on the network that the guest has to do with."""
        checked = self.checked.listen if self.checked else {}
        return [*self.listen.values(), *self.connect.values(), *checked.values()]


class GuestState(Struct, frozen=True):
    """A guest as the supervisor sees it."""

    guest: GuestId
    process: str
    pid: int
    started_unix: float
    listening: bool
    """Every listener of its order is open."""
    serving: bool
    """New connections reach it. A guest without listeners serves from its start."""
    exit_code: int | None = None
    """Exit code of the guest's program; 128 + signal where a signal ended it; None while it lives."""
    exit_reason: str = ""
    """For a trap or a failed start: what the engine said."""


def local_address(endpoint: Endpoint) -> str:
    """Where a listener is reached from its own machine."""
    address = ipaddress.ip_address(endpoint.address)
    if address.is_unspecified:
        return "::1" if address.version == 6 else "127.0.0.1"
    return endpoint.address


class GuestExited(msgspec.Struct, frozen=True):
    state: GuestState


class RuntimeUnavailable(Exception):
    """The supervisor cannot be reached or started. The message says why."""


class GuestFailed(Exception):
    """A guest could not be started, or ended or stayed unready before it was to serve."""

    def __init__(self, message: str, *, state: GuestState | None = None) -> None:
        super().__init__(message)
        self.state = state


class EndpointTaken(GuestFailed):
    """A listener's address and port are in use by something that is not a version of this process."""


class Runtime(Protocol):
    """The supervisor as the agent sees it. All calls may raise RuntimeUnavailable."""

    async def spawn(self, order: GuestOrder) -> GuestState:
        """Start a guest. If another guest serves one of its endpoints (the previous version), the new one starts dark:
        it gets no connection but probes. Otherwise it serves as soon as it listens. Raises GuestFailed,
        EndpointTaken."""
        ...

    async def wait_ready(self, guest: GuestId, ready: Ready | None, *, deadline_s: float) -> None:
        """Wait until every listener is open and `ready` holds, shown by a real connection that reaches this guest even
        while it is dark. Without listeners: until the program has begun to run. Raises GuestFailed with the reason (it
        exited, it never listened, it answered 500)."""
        ...

    async def check(self, order: GuestOrder, *, deadline_s: float) -> GuestState:
        """Run a check to its end, and tell that. It is ended when the time is over, or with the guest that it checks
        (exit code 137), and forgotten. Raises GuestFailed where it could not be started."""
        ...

    async def flip(self, guest: GuestId) -> None:
        """From now on this guest receives the new connections of all its endpoints; the one before receives none."""
        ...

    async def drain(self, guest: GuestId, *, deadline_s: float, hands_over: bool = False) -> bool:
        """Wait until a guest that no longer serves has accepted its queue and finished its connections. False when the
        deadline came first. One that still serves serves nothing new from here on: where it `hands_over`, new
        connections wait for the process's next guest, otherwise they are turned away."""
        ...

    async def kill(self, guest: GuestId) -> GuestState:
        """End a guest now and forget it once its listeners are safe to close. The queue of a serving guest's listener
        is kept for the next version. Idempotent."""
        ...

    async def forget(self, guest: GuestId) -> None:
        """Drop what is kept of a guest that has exited; closes its endpoints where nothing else uses them."""
        ...

    async def set_cpus(self, guest: GuestId, cpus: tuple[int, ...]) -> None: ...

    async def set_memory(self, guest: GuestId, memory_bytes: int) -> None:
        """Let a guest that runs have more memory. Raises GuestFailed where it cannot be given that, and nothing has
        changed then."""
        ...

    async def guests(self) -> dict[GuestId, GuestState]: ...

    def exits(self) -> AsyncIterator[GuestExited]:
        """Guests that ended, also those that ended while no agent was connected and were not forgotten yet."""
        ...

    async def close(self) -> None:
        """Disconnect; guests and supervisor stay."""
        ...

    async def shut_down(self) -> None:
        """End every guest, the zygote and the supervisor."""
        ...
