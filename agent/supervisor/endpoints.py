"""The listening sockets of a host: one group per endpoint, one socket per version of the process behind it.

The supervisor makes every listener and keeps a duplicate, so that no connection is lost with a guest: the listener of a
serving guest that died stays in the group, its queue grows instead of being reset, and it goes as it is to the next
guest. Accepting happens in the guest alone; nothing here is in the path of a connection.

A group belongs to one process. Its life: `reserve` (nobody else has the address), a listener per guest (`listener_for`,
`opened`), `flip` from one to the next, `retire` when a guest has ended, `close` when no guest uses it any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from agent.api import Endpoint
from agent.runtime import EndpointTaken, GuestFailed
from agent.supervisor import sockdiag
from agent.supervisor.event_loop import Loop
from agent.supervisor.selector import Order, Steer, attach, selector_program

MIN_BACKLOG: Final = 1024
MAX_BACKLOG: Final = 4096
TURNED_AWAY_PER_TURN: Final = 64
MAX_STEERED: Final = 32
"""Sources at once: a longer program would be asked for every connection of the endpoint."""


def family_of(endpoint: Endpoint) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET


def kind_of(endpoint: Endpoint) -> socket.SocketKind:
    return socket.SOCK_DGRAM if endpoint.protocol == "udp" else socket.SOCK_STREAM


class Listener:
    """One version's socket on an endpoint: our duplicate of what the guest has."""

    def __init__(self, sock: socket.socket, guest: str | None) -> None:
        self.sock = sock
        self.guest = guest
        """Whose it is; None for the one that turns connections away."""
        self.inode = os.fstat(sock.fileno()).st_ino
        self.listening = False
        """Its guest has asked for connections."""
        self.dead = False
        """Its guest has ended."""
        self.half_open: set[tuple[bytes, int]] = set()
        """Who was in the middle of a handshake with it when it stopped serving."""
        self.flipped_at: float | None = None

    def waiting(self) -> int:
        """Connections or datagrams that its guest has not taken yet."""
        if self.sock.type == socket.SOCK_STREAM:
            return sockdiag.waiting_in(self.sock)
        answer = bytearray(4)
        fcntl.ioctl(self.sock, termios.FIONREAD, answer)
        return int.from_bytes(answer, sys.byteorder)


class Group:
    """All sockets on one endpoint. See the module's head."""

    def __init__(self, endpoint: Endpoint, process: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoint = endpoint
        self.process = process
        self.family = family_of(endpoint)
        self.kind = kind_of(endpoint)
        self.is_stream = self.kind == socket.SOCK_STREAM
        self.users: set[str] = set()
        """Guests whose order names this endpoint and that are not forgotten."""
        self.serving: Listener | None = None
        self._order: Order[Listener] = Order()
        self._opening: list[Listener] = []
        """Given to a guest that does not listen yet."""
        self._reserved: socket.socket | None = None
        self._steered: dict[tuple[str, int], Listener] = {}
        """By source address and port, who gets what comes from there."""
        self._turning_away: tuple[Loop, Listener] | None = None
        self._clock = clock

    def reserve(self) -> None:
        """See that nobody else listens here, and hold the address. Raises EndpointTaken; GuestFailed for an address
        that this host does not have or may not use."""
        with self._new_socket() as trial:
            # Addresses in TIME_WAIT do not matter; anything that listens, also in a group of its own, does.
            if self.is_stream:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bind(trial)
        if self.is_stream:
            self._reserved = self._new_member()

    def listener_for(self, guest: str, sock: socket.socket | None = None) -> Listener:
        """The socket that a guest gets when it binds: the one it had, or that of a serving guest that died, with what
        waits in it, or a new one. `sock`: for UDP the guest's own, which joins at once. Raises OSError."""
        for listener in [*self._order.members, *self._opening]:
            if listener.guest == guest and not listener.dead:
                return listener
        if sock is not None:
            return self._join_datagram(guest, sock)
        if self.serving is not None and self.serving.dead:
            self.serving.dead = self.serving.listening = False
            self.serving.guest = guest
            return self.serving
        fresh, self._reserved = self._reserved or self._new_member(), None
        listener = Listener(fresh, guest)
        self._opening.append(listener)
        return listener

    def adopt(self, guest: str, sock: socket.socket) -> Listener:
        """Begin with the serving listener of a guest that is alone on this endpoint."""
        listener = Listener(sock, guest)
        listener.listening = True
        self._order.join(listener)
        self.serving = listener
        self._attach()
        return listener

    def opened(self, listener: Listener, backlog: int) -> None:
        """The guest listens. Raises OSError."""
        listener.listening = True
        if listener in self._order:
            return
        listener.sock.listen(min(max(backlog, MIN_BACKLOG), MAX_BACKLOG))
        self._opening.remove(listener)
        self._joined(listener)

    def is_open(self, guest: str) -> bool:
        """The guest has a listener here, and has asked for connections."""
        return any(one.guest == guest and one.listening for one in self._order.members if not one.dead)

    def is_waited_for(self) -> bool:
        """Is a living guest about to listen here?"""
        return any(not one.dead for one in [*self._opening, *self._order.members])

    def listener_of(self, guest: str) -> Listener | None:
        """The open listener of a guest."""
        return next((listener for listener in self._order.members if listener.guest == guest), None)

    def flip(self, guest: str) -> None:
        """This guest's listener gets what is new from here on, in one step."""
        listener = self.listener_of(guest)
        if listener is None:
            raise GuestFailed(f"{self.process} has not opened {self.endpoint}")
        before = self.serving
        if before is listener:
            return
        self.serving = listener
        listener.flipped_at = None
        self._attach()
        if before is not None:
            before.flipped_at = self._clock()
            if self.is_stream:
                before.half_open = sockdiag.half_open_peers(self.family, self.endpoint.port)
        self._stop_turning_away()
        self._sweep()

    def retire(self, guest: str) -> None:
        """The guest has ended. A serving listener stays, with what waits in it."""
        for listener in [*self._order.members, *self._opening]:
            if listener.guest == guest:
                listener.dead = True
        for listener in [one for one in self._opening if one.dead]:
            self._opening.remove(listener)
            listener.sock.close()
        self._sweep()

    def turn_away(self, loop: Loop) -> None:
        """Nobody is to serve here any more, although the serving guest still finishes what it has: new connections are
        closed at once."""
        if not self.is_stream or self._turning_away is not None:
            return
        listener = Listener(self._new_member(), None)
        listener.sock.listen(MIN_BACKLOG)
        self._joined(listener)
        before, self.serving = self.serving, listener
        self._attach()
        if before is not None and before is not listener:
            before.flipped_at = self._clock()
            before.half_open = sockdiag.half_open_peers(self.family, self.endpoint.port)
        self._turning_away = (loop, listener)
        loop.watch(listener.sock.fileno(), lambda: self._turn_some_away(listener))

    @contextlib.contextmanager
    def steered(self, source: tuple[str, int], guest: str) -> Iterator[None]:
        """While this lasts, connections from this address and port reach the guest's listener, also while it is
        dark. Raises OSError."""
        listener = self.listener_of(guest)
        if listener is None or len(self._steered) >= MAX_STEERED:
            raise OSError(errno.EBUSY, "too many probes are under way")
        self._steered[source] = listener
        try:
            self._attach()
            yield
        finally:
            del self._steered[source]
            if self._order.members:
                self._attach()

    def close(self) -> None:
        """Refuse connections from here on."""
        self._stop_turning_away()
        for listener in [*self._order.members, *self._opening]:
            listener.sock.close()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        self._order = Order()
        self._opening.clear()
        self.serving = None

    # --- the kernel's group -----------------------------------------------------------------------------------------

    def _new_socket(self) -> socket.socket:
        fresh = socket.socket(self.family, self.kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if self.family == socket.AF_INET6:
            fresh.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return fresh

    def _new_member(self) -> socket.socket:
        fresh = self._new_socket()
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._bind(fresh)
        return fresh

    def _join_datagram(self, guest: str, sock: socket.socket) -> Listener:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._bind(sock)
        listener = Listener(sock, guest)
        listener.listening = True
        self._joined(listener)
        return listener

    def _bind(self, sock: socket.socket) -> None:
        try:
            sock.bind((self.endpoint.address, self.endpoint.port))
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                raise EndpointTaken(f"{self.endpoint} is in use by something else on this host") from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise GuestFailed(f"this host does not have the address of {self.endpoint}") from error
            if error.errno == errno.EACCES:
                raise GuestFailed(f"the agent may not listen on {self.endpoint}: it needs privileges") from error
            raise GuestFailed(f"{self.endpoint} cannot be used: {error}") from error

    def _joined(self, listener: Listener) -> None:
        self._order.join(listener)
        nobody = self.serving is None or (self.serving.dead and not self.is_stream)
        if nobody or self._turning_away is not None:
            self.serving = listener
        self._attach()
        self._stop_turning_away()
        self._sweep()

    def _attach(self) -> None:
        serving = self.serving
        if serving is None:
            return
        steers = [Steer(*source, self._order.index(to)) for source, to in self._steered.items() if to in self._order]
        attach(serving.sock, selector_program(self.family, self._order.index(serving), steers))

    def _sweep(self) -> None:
        """Close what nobody needs, as far as no index changes meaning by it."""
        while self.serving is not None:
            serving = self.serving
            goes = next((m for m in self._order.members if m.dead and self._order.may_leave(m, serving)), None)
            if goes is None:
                return
            self._order.leave(goes)
            goes.sock.close()
            self._attach()

    # --- turning away -----------------------------------------------------------------------------------------------

    def _turn_some_away(self, listener: Listener) -> None:
        for _ in range(TURNED_AWAY_PER_TURN):
            try:
                connection, _ = listener.sock.accept()
            except OSError:
                return
            # Reset instead of an orderly end: the client learns at once that nobody has read anything.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    def _stop_turning_away(self) -> None:
        if self._turning_away is not None:
            loop, listener = self._turning_away
            self._turning_away = None
            loop.unwatch(listener.sock.fileno())
            listener.dead = True
            self._sweep()


class Endpoints:
    """All groups of a host."""

    def __init__(self) -> None:
        self._groups: dict[Endpoint, Group] = {}

    def acquire(self, guest: str, process: str, wanted: Iterable[Endpoint]) -> None:
        """Make sure of all these endpoints for a guest, or of none. Raises EndpointTaken, GuestFailed."""
        endpoints = list(wanted)
        self._close_left_behind(process, endpoints)
        made: list[Group] = []
        try:
            for endpoint in endpoints:
                group = self._groups.get(endpoint)
                if group is None:
                    group = Group(endpoint, process)
                    group.reserve()
                    self._groups[endpoint] = group
                    made.append(group)
                elif group.process != process:
                    raise EndpointTaken(f"{endpoint} belongs to the process {group.process}")
        except GuestFailed:
            for group in made:
                del self._groups[group.endpoint]
                group.close()
            raise
        for endpoint in endpoints:
            self._groups[endpoint].users.add(guest)

    def adopt(self, guest: str, process: str, endpoint: Endpoint, sock: socket.socket) -> Listener:
        """A group that a supervisor before has made, with the one guest that serves there. Raises OSError."""
        if endpoint in self._groups:
            raise EndpointTaken(f"{endpoint} belongs to the process {self._groups[endpoint].process}")
        group = self._groups[endpoint] = Group(endpoint, process)
        group.users.add(guest)
        return group.adopt(guest, sock)

    def group(self, endpoint: Endpoint) -> Group:
        return self._groups[endpoint]

    def get(self, endpoint: Endpoint) -> Group | None:
        return self._groups.get(endpoint)

    def retire(self, guest: str) -> None:
        """The guest has ended; its serving listeners stay."""
        for group in self._groups.values():
            group.retire(guest)

    def release(self, guest: str) -> None:
        """The guest is forgotten: what only it used is closed."""
        for group in list(self._groups.values()):
            group.users.discard(guest)
            if not group.users:
                del self._groups[group.endpoint]
                group.close()

    def serves(self, guest: str) -> bool:
        """Do new connections of any endpoint go to this guest's listener (or wait in it, where it has ended)?"""
        return any(g.serving is not None and g.serving.guest == guest for g in self._groups.values())

    def close(self) -> None:
        for group in self._groups.values():
            group.close()
        self._groups.clear()

    def _close_left_behind(self, process: str, wanted: list[Endpoint]) -> None:
        """An endpoint that this process had and its next version does not have any more, and that nobody serves, must
        not be in the way of a similar one (another address with the same port)."""
        for group in list(self._groups.values()):
            orphaned = group.serving is None or group.serving.dead
            if group.process == process and group.endpoint not in wanted and orphaned and not group.is_waited_for():
                del self._groups[group.endpoint]
                group.close()
