"""Is a new guest ready to serve? Shown by a real connection that reaches it while it is still dark.

A listener in a namespace of its own is reached there, from inside. For one on the host the probe binds a port of this
machine first; the group's selector then sends connections from exactly that address and port to the dark listener. No
address is reserved for it, so it works for every local address, and no client can be mistaken for it: while the probe
holds the port nobody else has it.

A connection to a listening socket is established without the program doing anything, so that alone proves nothing: the
guest must have accepted it, which the kernel tells (the connection belongs to a process).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Generator
from typing import Final, NamedTuple

from agent.api.processes import Endpoint, Ready
from agent.runtime import GuestFailed
from agent.supervisor import sockdiag
from agent.supervisor.event_loop import POLLIN, POLLOUT, Loop, Wait
from agent.supervisor.group import Group
from agent.supervisor.guest_record import Guest
from agent.supervisor.listener import Listener

ATTEMPT_S: Final = 5.0
FIRST_RETRY_S: Final = 0.01
LAST_RETRY_S: Final = 0.25
ACCEPT_POLL_S: Final = 0.002
LAST_ACCEPT_POLL_S: Final = 0.05
MAX_STATUS_LINE_BYTES: Final = 8192
MAX_PATH: Final = 4096

Step = Generator[Wait, bool, str]
"""A part of a probe; its value is what went wrong, empty where nothing did."""


def wait_until_listening(loop: Loop, guest: Guest, groups: dict[str, Group], deadline: float) -> Step:
    """Wait until every listener of the guest is open."""
    while True:
        missing = [name for name, group in groups.items() if not group.is_open(guest.name)]
        if guest.ended or not missing:
            return ""
        if loop.clock() >= deadline:
            tried = f"; {guest.refusals[-1]}" if guest.refusals else ""
            return f"it never listened on {', '.join(f'{name} ({groups[name].endpoint})' for name in missing)}{tried}"
        yield Wait(deadline, signal=guest.changed)


def wait_until_proven(loop: Loop, guest: Guest, group: Group, ready: Ready, deadline: float) -> Step:
    """Try until the guest has accepted a connection, and answered where a path is given. What a try found that came to
    an end is told, not that the last one was cut off by the deadline."""
    retry_s = FIRST_RETRY_S
    told = ""
    while True:
        problem = yield from probe(loop, guest, group, ready.path, min(deadline, loop.clock() + ATTEMPT_S))
        if not problem or guest.ended:
            return problem
        if not told or loop.clock() < deadline:
            told = problem
        if loop.clock() + retry_s >= deadline:
            return told
        yield Wait(loop.clock() + retry_s, signal=guest.changed)
        retry_s = min(2 * retry_s, LAST_RETRY_S)


def probe(loop: Loop, guest: Guest, group: Group, path: str | None, deadline: float) -> Step:
    """One connection to the guest's listener."""
    listener = group.listener_of(guest.name)
    if listener is None:
        return f"it does not listen on {group.endpoint} any more"
    address = listener.near_address(group.endpoint)  # the probe comes from where it goes
    try:
        with listener.place.socket(group.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            connection.bind((address, 0))
            with group.steered(connection, guest.name):
                to = Probed(group.endpoint, listener, (address, listener.port))
                return (yield from _talk(loop, guest, to, connection, path, deadline))
    except OSError as error:
        return f"a connection to {group.endpoint} failed: {error.strerror or error}"


class Probed(NamedTuple):
    """A listener that is tried."""

    endpoint: Endpoint
    listener: Listener
    target: tuple[str, int]
    """Where it is reached."""


def _talk(loop: Loop, guest: Guest, to: Probed, connection: socket.socket, path: str | None, deadline: float) -> Step:
    failure = connection.connect_ex(to.target)
    if failure == errno.EINPROGRESS:
        if not (yield Wait(deadline, connection.fileno(), POLLOUT)):
            return f"{to.endpoint} did not take a connection"
        failure = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, os.strerror(failure))
    if path is None:
        return (yield from _wait_until_accepted(loop, guest, to, connection, deadline))
    connection.send(request_for(to.endpoint, path))
    return (yield from _read_status(loop, connection, path, deadline))


def _wait_until_accepted(loop: Loop, guest: Guest, to: Probed, connection: socket.socket, deadline: float) -> Step:
    poll_s = ACCEPT_POLL_S
    port = connection.getsockname()[1]
    while not sockdiag.is_accepted(connection.family, to.listener.port, port, to.listener.place):
        if loop.clock() >= deadline or guest.ended:
            return f"it listens on {to.endpoint} but does not accept connections"
        yield Wait(min(deadline, loop.clock() + poll_s), signal=guest.changed)
        poll_s = min(2 * poll_s, LAST_ACCEPT_POLL_S)
    return ""


def _read_status(loop: Loop, connection: socket.socket, path: str, deadline: float) -> Step:
    answer = b""
    while b"\n" not in answer and len(answer) < MAX_STATUS_LINE_BYTES:
        if not (yield Wait(deadline, connection.fileno(), POLLIN)) and loop.clock() >= deadline:
            return f"it did not answer GET {path}"
        try:
            piece = connection.recv(4096)
        except BlockingIOError:
            continue
        if not piece:
            return f"it closed the connection instead of answering GET {path}"
        answer += piece
    return judge_status(answer.partition(b"\n")[0], path)


def judge_status(line: bytes, path: str) -> str:
    """What is wrong with a status line (RFC 9112): nothing where its status is below 400."""
    version, _, rest = line.strip().partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/") or not status.isdigit():
        return f"it answered GET {path} with something that is not HTTP"
    return "" if int(status) < 400 else f"it answered GET {path} with {status.decode()}"


def request_for(endpoint: Endpoint, path: str) -> bytes:
    """Raises GuestFailed for a path that does not fit into a request line."""
    if not path.startswith("/") or len(path) > MAX_PATH or any(c <= " " or c > "~" for c in path):
        raise GuestFailed(f"the readiness path {path!r} must begin with / and have no spaces or control characters")
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{endpoint.port}", "User-Agent: lowcloud", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()
