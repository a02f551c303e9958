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
from typing import TYPE_CHECKING, Final

from agent.api.processes import Endpoint
from agent.runtime import GuestOrder
from agent.sandbox import linux, seccomp
from agent.supervisor.listener import family_of, kind_of

if TYPE_CHECKING:
    from agent.supervisor.network.namespace import Namespace
    from agent.supervisor.network.networks import Networks

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
        self.namespace: Namespace | None = None
        self.listeners: dict[Endpoint, tuple[socket.socket, Namespace | None]] = {}
        """Each with the namespace that it is in, which need not be the guest's: it may have been another guest's."""
        self.datagrams: list[socket.socket] = []
        """Every datagram socket of the guest, also those that are listeners."""

    def close(self) -> None:
        for descriptor in (self.pidfd, self.questions, self.output):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        for held in (*(sock for sock, _ in self.listeners.values()), *self.datagrams):
            held.close()


def take(order: GuestOrder, pid: int, start_ticks: int, networks: Networks | None) -> Taken:
    """Copy what a successor needs. `networks` finds namespaces again. Raises NotTaken, OSError."""
    taken = Taken(os.pidfd_open(pid))
    try:
        if linux.process_start_ticks(pid) != start_ticks:
            raise NotTaken("it has ended")
        if networks is not None:
            taken.namespace = networks.adopt(order, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        if taken.namespace is None and order.network == "namespace":
            raise NotTaken("its network namespace is not known")
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
                    _keep(taken, order, socket.socket(fileno=copy), networks)
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


def _keep(taken: Taken, order: GuestOrder, held: socket.socket, networks: Networks | None) -> None:
    """Take a socket that is a listener or of datagrams; close any other."""
    if held.family in (socket.AF_INET, socket.AF_INET6):
        is_datagram = held.type == socket.SOCK_DGRAM
        if is_datagram:
            taken.datagrams.append(held)
        if is_datagram or held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            namespace = networks.adopt(order, linux.namespace_of(held)) if networks is not None else None
            wanted = (e for e in order.listen.values() if e not in taken.listeners and _is_on(held, e, namespace))
            for endpoint in wanted:
                taken.listeners[endpoint] = (held.dup() if is_datagram else held, namespace)
                return
        if is_datagram:
            return
    held.close()


def _is_on(held: socket.socket, endpoint: Endpoint, namespace: Namespace | None) -> bool:
    address, port = held.getsockname()[:2]
    if held.type != kind_of(endpoint) or held.family != family_of(endpoint):
        return False
    if namespace is not None:
        return bool(port == namespace.ports.get(endpoint))
    return port == endpoint.port and ipaddress.ip_address(address) == ipaddress.ip_address(endpoint.address)


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
