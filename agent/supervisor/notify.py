"""Answers to a guest's system calls: its filter asks, the supervisor acts in its place (see `agent.sandbox.seccomp`).

The guest's call is never let through. What it points to in memory is read once, and what was read is what is done, with
the guest's socket or one of ours: another thread of the guest may change the memory meanwhile, and changes nothing.

- `bind` of a stream to a declared port: a listener of ours is put at its descriptor, bound where the *definition* says.
- `bind` of a stream to a loopback address, port 0: done, and the port remembered (an emulated socket pair).
- `bind` of datagrams to a declared port: done on its socket, which is one of ours since `socket`.
- `listen`: done, where one of the above was bound.
- `connect`: done on its socket, to declared connections and to its own emulated pairs only; by a check also to the
  listeners of the guest that it checks (`agent.supervisor.checking`).
- `socket` for datagrams: one of ours, because the engine watches a descriptor from the start, so it cannot be exchanged
  at `bind`.
- Anything else: EACCES.

A guest with a network namespace of its own gets its sockets there, and a connection that is declared to this machine's
loopback is made to what stands for it (`agent.supervisor.network.addressing`). The rules of its interface check all of
it once more.

The supervisor must never wait for a guest: before it connects a guest's socket it bounds the time that would take, in
case the guest makes it a blocking one in that moment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from agent.api.processes import Endpoint
from agent.runtime import GuestFailed
from agent.sandbox import linux, seccomp
from agent.supervisor.checking import Reaching
from agent.supervisor.endpoints import Endpoints
from agent.supervisor.guest_record import Guest
from agent.supervisor.listener import Listener, family_of
from agent.supervisor.sockdiag import LISTEN, tcp_sockets

_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_ID_VALID: Final = 0x40082102
_ADD_FD: Final = 0x40182103
_ADD_FD_AT: Final = 1
_ADD_FD_AND_ANSWER: Final = 2
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_ADDED_FD: Final = struct.Struct("=QIIII")

MAX_ADDRESS_BYTES: Final = 128
MAX_LOOPBACK_PORTS: Final = 64
MAX_DATAGRAM_SOCKETS: Final = 256
_CONNECT_AT_MOST_US: Final = 2000
_REFUSED: Final = errno.EACCES


class Question(NamedTuple):
    """A system call that waits for its answer."""

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]


class SocketAddress(NamedTuple):
    family: int
    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Refused(Exception):
    """The answer is an error; `text`, if any, is told to whoever waits for the guest."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.number = number
        self.text = text


def parse_address(raw: bytes) -> SocketAddress:
    """A `struct sockaddr_in` or `sockaddr_in6`. Raises Refused for anything else."""
    family = int.from_bytes(raw[:2], "little") if len(raw) >= 2 else -1
    if family == socket.AF_UNSPEC:
        return SocketAddress(family, "", 0)
    if family == socket.AF_INET and len(raw) >= 8:
        return SocketAddress(family, str(ipaddress.IPv4Address(raw[4:8])), int.from_bytes(raw[2:4], "big"))
    if family == socket.AF_INET6 and len(raw) >= 24:
        return SocketAddress(family, str(ipaddress.IPv6Address(raw[8:24])), int.from_bytes(raw[2:4], "big"))
    raise Refused(errno.EAFNOSUPPORT)


def declared_listener(order: dict[str, Endpoint], wanted: SocketAddress, protocol: str) -> Endpoint | None:
    """Which declared listener a guest means: by port, protocol and family; of several the one with that very address.
    The definition decides on the address: a guest that asks for 0.0.0.0 gets the declared one."""
    found = [
        endpoint
        for endpoint in order.values()
        if endpoint.protocol == protocol and endpoint.port == wanted.port and family_of(endpoint) == wanted.family
    ]
    exact = [e for e in found if ipaddress.ip_address(e.address) == ipaddress.ip_address(wanted.address)]
    return next(iter(exact or found), None)


def is_declared_connection(order: dict[str, Endpoint], wanted: SocketAddress, protocol: str) -> bool:
    """May a guest connect there? Address, port and protocol must be exactly a declared connection's."""
    if not wanted.address:
        return False
    address = ipaddress.ip_address(wanted.address)
    return any(
        endpoint.protocol == protocol
        and endpoint.port == wanted.port
        and ipaddress.ip_address(endpoint.address) == address
        for endpoint in order.values()
    )


class Notifications:
    """One guest's questions. `on_listening` is called when it has opened a listener. `reaching`: how a check connects
    to the guest that it checks."""

    def __init__(
        self,
        guest: Guest,
        descriptor: int,
        endpoints: Endpoints,
        *,
        on_listening: Callable[[], None],
        reaching: Reaching | None = None,
    ) -> None:
        self.descriptor = descriptor
        self._reaching = reaching
        self._guest = guest
        self._endpoints = endpoints
        self._on_listening = on_listening
        arch = seccomp.architecture()
        self._calls: dict[int, Callable[[Question], int]] = {
            seccomp.number_of("bind", arch): self._bind,
            seccomp.number_of("listen", arch): self._listen,
            seccomp.number_of("connect", arch): self._connect,
        }
        self._socket_call = seccomp.number_of("socket", arch)
        self._bound: dict[int, tuple[Endpoint, Listener]] = {}
        """By socket inode: a listener of ours, and where it belongs."""
        self._datagrams: dict[int, socket.socket] = {}
        """By socket inode: our duplicate of a datagram socket that we gave it."""
        self._loopback_ports: set[int] = set()

    def adopt(self, listeners: dict[Endpoint, Listener], datagrams: list[socket.socket]) -> None:
        """What the guest has already, where it was taken over. The datagram sockets are ours from here on."""
        self._bound.update({one.inode: (endpoint, one) for endpoint, one in listeners.items()})
        self._datagrams.update({os.fstat(one.fileno()).st_ino: one for one in datagrams})

    def answer_one(self) -> bool:
        """Take a question and answer it. False when the guest has none any more: it is gone."""
        received = bytearray(_NOTIFICATION.size)
        try:
            linux.ioctl(self.descriptor, _RECEIVE, received)
        except OSError as error:
            # ENOENT: the caller was killed, or interrupted, before we came.
            return error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN)
        id_, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(received)
        question = Question(id_, thread, number, tuple(arguments))
        try:
            if number == self._socket_call:
                self._make_datagram_socket(question)
                return True
            value, failure = self._calls[number](question), 0
        except Refused as refused:
            value, failure = 0, refused.number
            if refused.text:
                self._guest.note_refusal(refused.text)
        except GuestFailed as error:
            value, failure = 0, errno.EADDRINUSE
            self._guest.note_refusal(str(error))
        except OSError as error:
            value, failure = 0, error.errno or errno.EIO
            self._guest.note_refusal(f"the supervisor could not do what it asked for: {error}")
        with contextlib.suppress(OSError):
            linux.ioctl(self.descriptor, _SEND, _ANSWER.pack(question.id, value, -failure, 0))
        return True

    def close(self) -> None:
        os.close(self.descriptor)
        if self._reaching is not None:
            self._reaching.close()
        for mine in self._datagrams.values():
            mine.close()
        self._datagrams.clear()

    # --- the calls --------------------------------------------------------------------------------------------------

    def _bind(self, question: Question) -> int:
        address = self._address(question, question.arguments[1], question.arguments[2])
        inode = self._inode(question)
        datagram = self._datagrams.get(inode)
        if datagram is not None:
            return self._bind_datagram(datagram, inode, address)
        endpoint = declared_listener(self._guest.order.listen, address, "tcp")
        if endpoint is not None:
            listener = self._endpoints.group(endpoint).listener_for(self._guest.name, namespace=self._guest.namespace)
            self._put(question, listener.sock, question.arguments[0])
            self._bound[listener.inode] = (endpoint, listener)
            return 0
        if address.port == 0 and _is_loopback(address):
            return self._bind_loopback(question, address)
        raise Refused(_REFUSED, f"it may not listen on {address}/tcp, which its definition does not name")

    def _bind_datagram(self, mine: socket.socket, inode: int, address: SocketAddress) -> int:
        endpoint = declared_listener(self._guest.order.listen, address, "udp")
        if endpoint is not None:
            # The group keeps the socket from here on, also when the guest is gone.
            own = mine.dup()
            group = self._endpoints.group(endpoint)
            listener = group.listener_for(self._guest.name, own, namespace=self._guest.namespace)
            self._bound[inode] = (endpoint, listener)
            self._on_listening()
            return 0
        listens = [*self._guest.order.listen.values()]
        may_connect = any(e.protocol == "udp" and e not in listens for e in self._guest.order.endpoints)
        if address.port == 0 and may_connect:
            mine.bind((address.address, 0))
            return 0
        raise Refused(_REFUSED, f"it may not listen on {address}/udp, which its definition does not name")

    def _bind_loopback(self, question: Question, address: SocketAddress) -> int:
        if len(self._loopback_ports) >= MAX_LOOPBACK_PORTS:
            raise Refused(errno.ENFILE)
        with self._guests_socket(question) as theirs:
            theirs.bind((address.address, 0))
            self._loopback_ports.add(theirs.getsockname()[1])
        return 0

    def _listen(self, question: Question) -> int:
        backlog = min(max(_signed(question.arguments[1]), 0), 4096)
        bound = self._bound.get(self._inode(question))
        if bound is not None:
            endpoint, listener = bound
            self._endpoints.group(endpoint).opened(listener, backlog)
            self._on_listening()
            return 0
        with self._guests_socket(question) as theirs:
            address, port = theirs.getsockname()[:2]
            if port not in self._loopback_ports or not ipaddress.ip_address(address).is_loopback:
                raise Refused(_REFUSED, "it may not listen on a port that was not given to it")
            theirs.listen(min(backlog, 16))
        return 0

    def _connect(self, question: Question) -> int:
        address = self._address(question, question.arguments[1], question.arguments[2])
        datagram = self._datagrams.get(self._inode(question))
        protocol = "tcp" if datagram is None else "udp"
        if datagram is not None and address.family == socket.AF_UNSPEC:
            linux.disconnect(datagram.fileno())
            return 0
        own = datagram is None and self._listens_at(address)
        if not own:
            address = address._replace(address=self._guest.declared(address.address))
        checked = self._reaching.listener_at(address.address, address.port, protocol) if self._reaching else None
        if not own and not checked and not is_declared_connection(self._guest.order.connect, address, protocol):
            raise Refused(_REFUSED, f"it may not connect to {address}/{protocol}, which its definition does not name")
        target = (address.address if own else self._guest.outside(address.address), address.port)
        with datagram.dup() if datagram is not None else self._guests_socket(question) as theirs:
            if self._reaching is not None and checked is not None:
                target = self._reaching.lead(theirs, checked)
            if datagram is not None:
                theirs.connect(target)
                return 0
            return _connect_without_waiting(theirs, target)

    def _listens_at(self, address: SocketAddress) -> bool:
        """For a pair that it emulates. A port that it was given may be another program's later, or elsewhere."""
        if address.port not in self._loopback_ports or not _is_loopback(address):
            return False
        own = (ipaddress.ip_address(address.address).packed, address.port)
        found = tcp_sockets(address.family, address.port, frozenset({LISTEN}), self._guest.place)
        return not {one.inode for one in found if one.local == own}.isdisjoint(sockets_of(self._guest.pid))

    def _make_datagram_socket(self, question: Question) -> None:
        """Answers the call by itself: with the descriptor the guest gets."""
        failure = 0
        try:
            self._forget_closed_datagrams()
            family = question.arguments[0] & 0xFFFFFFFF
            if family not in (socket.AF_INET, socket.AF_INET6) or not self._may_use_datagrams():
                raise Refused(_REFUSED, "it may not open datagram sockets: its definition names no UDP")
            if len(self._datagrams) >= MAX_DATAGRAM_SOCKETS:
                raise Refused(errno.EMFILE)
            fresh = self._guest.place.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._datagrams[os.fstat(fresh.fileno()).st_ino] = fresh
            added = _ADDED_FD.pack(question.id, _ADD_FD_AND_ANSWER, fresh.fileno(), 0, os.O_CLOEXEC)
            linux.ioctl(self.descriptor, _ADD_FD, added)
            return
        except Refused as refused:
            failure = refused.number
            if refused.text:
                self._guest.note_refusal(refused.text)
        except OSError as error:
            failure = error.errno or errno.EIO
        with contextlib.suppress(OSError):
            linux.ioctl(self.descriptor, _SEND, _ANSWER.pack(question.id, 0, -failure, 0))

    # --- the guest's process ----------------------------------------------------------------------------------------

    def _may_use_datagrams(self) -> bool:
        return any(e.protocol == "udp" for e in self._guest.order.endpoints)

    def _address(self, question: Question, pointer: int, length: int) -> SocketAddress:
        """What the call's address argument says now."""
        size = min(length & 0xFFFFFFFF, MAX_ADDRESS_BYTES)
        memory = os.open(f"/proc/{question.thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The thread's number could belong to somebody else by now; the question tells, after the file is open.
            linux.ioctl(self.descriptor, _ID_VALID, struct.pack("=Q", question.id))
            raw = os.pread(memory, size, pointer)
        except OverflowError:
            raise Refused(errno.EFAULT) from None
        finally:
            os.close(memory)
        return parse_address(raw)

    def _inode(self, question: Question) -> int:
        """The inode of the socket that the call's first argument names, in the guest's table of descriptors."""
        try:
            target = str(Path(f"/proc/{self._guest.pid}/fd/{_signed(question.arguments[0])}").readlink())
        except OSError:
            raise Refused(errno.EBADF) from None
        if not target.startswith("socket:["):
            raise Refused(errno.ENOTSOCK)
        return int(target[8:-1])

    def _guests_socket(self, question: Question) -> socket.socket:
        """A duplicate of the guest's stream socket."""
        if self._guest.pidfd is None:
            raise Refused(errno.EBADF)
        descriptor = linux.pidfd_getfd(self._guest.pidfd, _signed(question.arguments[0]))
        try:
            theirs = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            raise
        if theirs.family not in (socket.AF_INET, socket.AF_INET6) or theirs.type != socket.SOCK_STREAM:
            theirs.close()
            raise Refused(errno.EOPNOTSUPP)
        return theirs

    def _put(self, question: Question, mine: socket.socket, at: int) -> None:
        """Put a socket of ours at the guest's descriptor, in place of what is there."""
        added = _ADDED_FD.pack(question.id, _ADD_FD_AT, mine.fileno(), at & 0xFFFFFFFF, os.O_CLOEXEC)
        linux.ioctl(self.descriptor, _ADD_FD, added)

    def _forget_closed_datagrams(self) -> None:
        if len(self._datagrams) < MAX_DATAGRAM_SOCKETS // 2:
            return
        held = sockets_of(self._guest.pid)
        for inode in [inode for inode in self._datagrams if inode not in held]:
            self._datagrams.pop(inode).close()


def _connect_without_waiting(theirs: socket.socket, target: tuple[str, int]) -> int:
    """Start to connect a guest's socket; what comes of it the guest learns from its socket."""
    if not fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK:
        raise Refused(errno.EOPNOTSUPP, "it may connect non-blocking sockets only")
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 0, _CONNECT_AT_MOST_US))
    failure = theirs.connect_ex(target)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 0, 0))
    if failure:
        raise Refused(failure)
    return 0


def sockets_of(pid: int) -> set[int]:
    """Inodes of the sockets that a process holds; empty when it is gone."""
    inodes = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes


def _is_loopback(address: SocketAddress) -> bool:
    return bool(address.address) and ipaddress.ip_address(address.address).is_loopback


def _signed(argument: int) -> int:
    """An `int` argument as the kernel reads it."""
    low = argument & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low
