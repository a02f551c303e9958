"""Taking a guest over from a supervisor that was killed: its descriptors are copied out of the guest itself.

A guest holds everything that a supervisor needs of it, and goes on serving without one:

- its listeners, of which the killed supervisor had duplicates. Alone in its groups, a guest is the first in the
  kernel's order, so the selector can be attached anew; who shares an endpoint with the serving guest is ended;
- the descriptor of its filter's questions, kept open in the guest for this (the filter leaves it no call to use it
  with). Until it is taken, a question waits instead of failing;
- the writing end of its output pipe, which the reading end is opened from.

What is not there any more: the exit status (somebody else is the parent now, so an end counts as failed), and the
queues of listeners whose guest had died. A call that the killed supervisor had begun to answer would wait for ever, so
a guest with such a call is not taken over.

The right to copy is that of a debugger (`PTRACE_MODE_ATTACH_REALCREDS`): root has it. Where it is refused, the guest is
ended and started again.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.api import Endpoint
from agent.runtime import GuestOrder
from agent.sandbox import linux, seccomp
from agent.supervisor.endpoints import kind_of

OUTPUT: Final = 1
QUESTIONS: Final = "anon_inode:seccomp notify"
ASKED: Final = ("bind", "listen", "connect", "socket")


class NotTaken(Exception):
    """The guest cannot be taken over; the message says why."""


class Taken:
    """What was copied. It belongs to whoever asked for it."""

    def __init__(self, pidfd: int) -> None:
        self.pidfd = pidfd
        self.questions: int | None = None
        self.output = -1
        """The reading end."""
        self.listeners: dict[Endpoint, socket.socket] = {}
        self.datagrams: list[socket.socket] = []
        """Every datagram socket of the guest, also those that are listeners."""

    def close(self) -> None:
        for descriptor in (self.pidfd, self.questions, self.output):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        for held in (*self.listeners.values(), *self.datagrams):
            held.close()


def take(order: GuestOrder, pid: int, start_ticks: int) -> Taken:
    """Copy what a successor needs. Raises NotTaken, OSError."""
    taken = Taken(os.pidfd_open(pid))
    try:
        if linux.process_start_ticks(pid) != start_ticks:
            raise NotTaken("it has ended")
        for descriptor, target in _descriptors(pid):
            if target == QUESTIONS or target.startswith("socket:"):
                try:
                    copy = linux.pidfd_getfd(taken.pidfd, descriptor)
                except OSError as error:
                    if error.errno == errno.EBADF:
                        continue  # The guest has closed it since: one of a client, or of its own start.
                    raise
                if target == QUESTIONS:
                    taken.questions = copy
                else:
                    _keep(taken, order, socket.socket(fileno=copy))
        absent = [str(endpoint) for endpoint in order.listen.values() if endpoint not in taken.listeners]
        if absent:
            raise NotTaken(f"it does not listen on {', '.join(absent)}")
        if taken.questions is None and (order.listen or order.connect):
            raise NotTaken("its filter's questions cannot be had")
        if taken.questions is not None and _has_half_answered(pid, taken.questions):
            raise NotTaken("it waits for an answer that nobody can give any more")
        writing = linux.pidfd_getfd(taken.pidfd, OUTPUT)
        try:
            taken.output = os.open(f"/proc/self/fd/{writing}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(writing)
    except BaseException:
        taken.close()
        raise
    return taken


def _descriptors(pid: int) -> Iterator[tuple[int, str]]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield int(entry.name), str(entry.readlink())


def _keep(taken: Taken, order: GuestOrder, held: socket.socket) -> None:
    """Take a socket that is a listener or of datagrams; close any other."""
    if held.family in (socket.AF_INET, socket.AF_INET6):
        endpoint = next((e for e in order.listen.values() if e not in taken.listeners and _is_on(held, e)), None)
        if held.type == socket.SOCK_DGRAM:
            taken.datagrams.append(held)
            if endpoint is not None:
                taken.listeners[endpoint] = held.dup()
            return
        if endpoint is not None and held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            taken.listeners[endpoint] = held
            return
    held.close()


def _is_on(held: socket.socket, endpoint: Endpoint) -> bool:
    address, port = held.getsockname()[:2]
    return (
        held.type == kind_of(endpoint)
        and port == endpoint.port
        and ipaddress.ip_address(address) == ipaddress.ip_address(endpoint.address)
    )


def _has_half_answered(pid: int, questions: int) -> bool:
    """Is a thread in a call that is asked about, although no question waits to be taken?"""
    arch = seccomp.architecture()
    numbers = {str(seccomp.number_of(name, arch)) for name in ASKED}
    if select.select([questions], [], [], 0)[0]:
        return False
    calls = [_call_of(pid, thread) for thread in linux.threads_of(pid)]
    return any(call in numbers for call in calls) and not select.select([questions], [], [], 0)[0]


def _call_of(pid: int, thread: int) -> str:
    try:
        return Path(f"/proc/{pid}/task/{thread}/syscall").read_text().partition(" ")[0]
    except OSError:
        return ""
