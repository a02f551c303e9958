"""What agent and supervisor say to each other, and what a guest tells the supervisor before its program runs.

Agent and supervisor: a Unix stream socket in the state directory; each message is a 4-byte little-endian length and
that many bytes of msgpack. The supervisor speaks first (`Hello`); then requests, each answered once under its number,
in any order; `Exited` comes unasked. Both sides refuse a message of more than `MAX_MESSAGE_BYTES` and an unknown
version.

Guest and supervisor: a pair of packet sockets, one message of msgpack each (`FromGuest`), sent by our own code in the
guest's process. Once the program runs it might have taken that process over, so what arrives then is never trusted:
it is bounded text and decides nothing.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from agent.api.processes import Ready
from agent.runtime import GuestId, GuestOrder, GuestState

WIRE_VERSION: Final = 3
MAX_MESSAGE_BYTES: Final = 16 << 20
LENGTH_BYTES: Final = 4
MAX_GUEST_MESSAGE_BYTES: Final = 8192

SOCKET_NAME: Final = "supervisor.sock"
LOCK_NAME: Final = "supervisor.lock"
STATE_NAME: Final = "supervisor.state"
LOG_NAME: Final = "supervisor.log"


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


# --- agent to supervisor --------------------------------------------------------------------------------------------


class Spawn(_Message, frozen=True, tag="spawn"):
    order: GuestOrder


class WaitReady(_Message, frozen=True, tag="wait-ready"):
    guest: GuestId
    ready: Ready | None
    deadline_s: float


class Check(_Message, frozen=True, tag="check"):
    order: GuestOrder
    deadline_s: float


class Flip(_Message, frozen=True, tag="flip"):
    guest: GuestId


class Drain(_Message, frozen=True, tag="drain"):
    guest: GuestId
    deadline_s: float
    hands_over: bool = False
    """New connections wait for the process's next guest; otherwise nobody is to serve them."""


class Kill(_Message, frozen=True, tag="kill"):
    guest: GuestId


class Forget(_Message, frozen=True, tag="forget"):
    guest: GuestId


class SetMemory(_Message, frozen=True, tag="set-memory"):
    guest: GuestId
    memory_bytes: int


class SetCpus(_Message, frozen=True, tag="set-cpus"):
    guest: GuestId
    cpus: tuple[int, ...]


class ListGuests(_Message, frozen=True, tag="guests"):
    pass


class ShutDown(_Message, frozen=True, tag="shut-down"):
    pass


Action = Spawn | WaitReady | Check | Flip | Drain | Kill | Forget | SetCpus | SetMemory | ListGuests | ShutDown


class Request(_Message, frozen=True):
    number: int
    action: Action


# --- supervisor to agent --------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, tag="hello"):
    version: int
    pid: int
    build: str = ""
    """`agent.build`, as it was when the supervisor started."""


class Answer(_Message, frozen=True, tag="answer"):
    number: int
    state: GuestState | None = None
    """For `Spawn`, `Check` and `Kill`."""
    drained: bool = False
    guests: tuple[GuestState, ...] = ()


class Failure(_Message, frozen=True, tag="failure"):
    number: int
    kind: Literal["guest-failed", "endpoint-taken", "bad-request", "internal"]
    message: str
    state: GuestState | None = None


class Exited(_Message, frozen=True, tag="exited"):
    state: GuestState


ToAgent = Hello | Answer | Failure | Exited


# --- guest to supervisor --------------------------------------------------------------------------------------------


class Born(_Message, frozen=True, tag="born"):
    """The guest's process exists; nothing of the program is loaded yet."""

    pid: int


class Sandboxed(_Message, frozen=True, tag="sandboxed"):
    """Code loaded, sandbox closed. The filter's notification descriptor comes with it, where there is one."""

    limit_address: Annotated[int, Meta(ge=4096, lt=1 << 48, multiple_of=8)] | None = None
    """Where the engine keeps the limit of the program's memory; None where that cannot be changed."""


class Running(_Message, frozen=True, tag="running"):
    """The program is instantiated and begins to run."""


class Failed(_Message, frozen=True, tag="failed"):
    """Why the program could not be started, or how it ended (a trap)."""

    reason: str


FromGuest = Born | Sandboxed | Running | Failed


# --- the supervisor's memory of its guests, for a successor that finds them without it -------------------------------


class LivingGuest(_Message, frozen=True):
    guest: str
    pid: int
    start_ticks: int
    """With the pid, names a process for good (until the machine restarts: see `boot`)."""
    order: GuestOrder | None = None
    """Absent from files of before: such a guest is not taken over."""
    started_unix: float = 0.0
    serving: bool = False
    """It runs, and new connections reach it."""
    limit_address: int | None = None
    """As in `Sandboxed`."""


class SavedState(_Message, frozen=True):
    version: int
    boot: str
    living: tuple[LivingGuest, ...]
    block: int | None = None
    """Which block of addresses its guests in network namespaces have (`agent.supervisor.network.networks`)."""


def frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is more than {MAX_MESSAGE_BYTES}")
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class FrameReader:
    """Cuts a byte stream into messages. Raises ValueError for a length beyond the limit."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        bodies = []
        while len(self._buffer) >= LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:LENGTH_BYTES], "little")
            if length > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {length} bytes is announced; at most {MAX_MESSAGE_BYTES} are accepted")
            if len(self._buffer) < LENGTH_BYTES + length:
                break
            bodies.append(bytes(self._buffer[LENGTH_BYTES : LENGTH_BYTES + length]))
            del self._buffer[: LENGTH_BYTES + length]
        return bodies
