"""The listening sockets on one endpoint: one for each version of the process behind it.

The supervisor makes every listener and keeps a duplicate, so that no connection is lost with a guest: the listener of a
serving guest that died stays in the group, its queue grows instead of being reset, and it goes as it is to the next
guest. Accepting happens in the guest alone; nothing here is in the path of a connection.

A listener is on the host, where the selector says which of them gets what is new (`agent.supervisor.selector`), or in a
guest's network namespace, where a rule leads to it what comes to the endpoint (`agent.supervisor.network`). Versions of
one process may differ in that; while the one that serves is in a namespace, a socket that never listens keeps the
address on the host.

A group belongs to one process. Its life: `reserve` (nobody else has the address), a listener per guest (`listener_for`,
`opened`), `flip` from one to the next, or `keep` what is new for the next where there can be one guest only, `retire`
when a guest has ended, `close` when no guest uses it any more.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from agent.api.processes import Endpoint
from agent.runtime import EndpointTaken, GuestFailed, local_address
from agent.supervisor.event_loop import Loop
from agent.supervisor.listener import Listener, family_of, kind_of
from agent.supervisor.place import HOST, PROBE_MARK, Place
from agent.supervisor.selector import Order, Steer, attach, selector_program

if TYPE_CHECKING:
    from agent.supervisor.network.namespace import Namespace

MIN_BACKLOG: Final = 1024
MAX_BACKLOG: Final = 4096
TURNED_AWAY_PER_TURN: Final = 64
MAX_STEERED: Final = 32
"""Sources at once: a longer program would be asked for every connection of the endpoint."""

Moves: TypeAlias = "Mapping[Endpoint, tuple[Namespace, int] | None]"
"""Endpoints, and to which port of which namespace what is new goes; None for the host's own sockets."""


class Group:
    """All sockets on one endpoint. See the module's head."""

    def __init__(
        self,
        endpoint: Endpoint,
        process: str,
        move: Callable[[Moves], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self.process = process
        self.family = family_of(endpoint)
        self.kind = kind_of(endpoint)
        self.is_stream = self.kind == socket.SOCK_STREAM
        self.users: set[str] = set()
        """Guests whose order names this endpoint and that are not forgotten."""
        self.serving: Listener | None = None
        self._move = move
        self._order: Order[Listener] = Order()
        """Those on the host."""
        self._inside: list[Listener] = []
        """Those in namespaces."""
        self._selected: Listener | None = None
        """Which of those on the host served last."""
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
            self._reserved = self._new_reservation()

    def listener_for(
        self, guest: str, sock: socket.socket | None = None, *, namespace: Namespace | None = None
    ) -> Listener:
        """The socket that a guest gets when it binds: the one it had, or that of a serving guest that died, with what
        waits in it, or a new one. `sock`: for UDP the guest's own, which joins at once. `namespace`: the guest's, if
        it has one. Raises OSError."""
        for listener in [*self._members(), *self._opening]:
            if listener.guest == guest and not listener.dead:
                return listener
        if sock is not None:
            return self._join_datagram(guest, sock, namespace)
        if self.serving is not None and self.serving.dead:
            self.serving.dead = self.serving.listening = False
            self.serving.guest = guest
            return self.serving
        if namespace is not None:
            fresh = self._new_inside(namespace)
        else:
            fresh, self._reserved = self._reserved or self._new_member(), None
            fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener = Listener(fresh, guest, namespace)
        self._opening.append(listener)
        return listener

    def adopt(self, guest: str, sock: socket.socket, namespace: Namespace | None) -> Listener:
        """Begin with the serving listener of a guest that is alone on this endpoint."""
        listener = Listener(sock, guest, namespace)
        listener.listening = True
        self._joined(listener)
        return listener

    def opened(self, listener: Listener, backlog: int) -> None:
        """The guest listens. Raises OSError."""
        listener.listening = True
        if listener in self._members():
            return
        listener.sock.listen(min(max(backlog, MIN_BACKLOG), MAX_BACKLOG))
        self._opening.remove(listener)
        self._joined(listener)

    def is_open(self, guest: str) -> bool:
        """The guest has a listener here, and has asked for connections."""
        return any(one.guest == guest and one.listening for one in self._members() if not one.dead)

    def is_waited_for(self) -> bool:
        """Is a living guest about to listen here?"""
        return any(not one.dead for one in [*self._opening, *self._members()])

    def listener_of(self, guest: str) -> Listener | None:
        """The open listener of a guest that lives."""
        return next((one for one in self._members() if one.guest == guest and not one.dead), None)

    def flip(self, guest: str) -> None:
        """This guest's listener gets what is new from here on, in one step."""
        listener = self.listener_of(guest)
        if listener is None:
            raise GuestFailed(f"{self.process} has not opened {self.endpoint}")
        before = self.serving
        if before is listener:
            return
        listener.flipped_at = None
        self._give_way(before, listener)
        self._stop_turning_away()
        self._sweep()

    def _give_way(self, before: Listener | None, listener: Listener) -> None:
        self.serving = listener
        self._attach()
        if before is not None and before is not listener:
            before.flipped_at = self._clock()
            if self.is_stream:
                before.half_open = before.half_open_peers()

    def retire(self, guest: str) -> None:
        """The guest has ended. A serving listener stays, with what waits in it."""
        for listener in [*self._members(), *self._opening]:
            if listener.guest == guest:
                listener.dead = True
        for listener in [one for one in self._opening if one.dead]:
            self._opening.remove(listener)
            listener.close()
        self._sweep()

    def keep(self) -> None:
        """The serving guest is to finish what it has, and end before its successor begins: new connections wait until
        that listens. Should the guest serve again after all (`flip`), those that wait are lost."""
        before = self.serving
        if not self.is_stream or before is None or before.dead:
            return
        listener = Listener(self._new_member(), before.guest)
        listener.dead = True  # nobody accepts from it, as where a serving guest has died
        listener.sock.listen(MAX_BACKLOG)
        self._order.join(listener)
        self._give_way(before, listener)

    def turn_away(self, loop: Loop) -> None:
        """Nobody is to serve here any more, although the serving guest still finishes what it has: new connections are
        closed at once."""
        if not self.is_stream or self._turning_away is not None:
            return
        listener = Listener(self._new_member(), None)
        listener.sock.listen(MIN_BACKLOG)
        before = self.serving
        self._joined(listener)
        self._give_way(before, listener)
        self._turning_away = (loop, listener)
        loop.watch(listener.sock.fileno(), lambda: self._turn_some_away(listener))

    @contextlib.contextmanager
    def steered(self, sock: socket.socket, guest: str) -> Iterator[None]:
        """While this lasts, what this socket sends, which is bound, reaches the guest's listener, also while that is
        dark. One in a namespace needs nothing for it: there only it is reached. Raises OSError."""
        listener = self.listener_of(guest)
        if listener is None or len(self._steered) >= MAX_STEERED:
            raise OSError(errno.EBUSY, "too many probes are under way")
        if listener.namespace is not None:
            yield
            return
        if self.serving is not None and self.serving.namespace is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PROBE_MARK)
        address, port = sock.getsockname()[:2]
        source = (local_address(self.endpoint) if ipaddress.ip_address(address).is_unspecified else address, port)
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
        self._move({self.endpoint: None})
        for listener in [*self._members(), *self._opening]:
            listener.close()
        self._give_address_up()
        self._order = Order()
        self._inside.clear()
        self._opening.clear()
        self.serving = None

    def _members(self) -> list[Listener]:
        return [*self._order.members, *self._inside]

    # --- sockets ----------------------------------------------------------------------------------------------------

    def _new_socket(self, place: Place = HOST) -> socket.socket:
        fresh = place.socket(self.family, self.kind | socket.SOCK_NONBLOCK)
        if self.family == socket.AF_INET6:
            fresh.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return fresh

    def _new_reservation(self) -> socket.socket:
        """A member that does not listen. Without SO_REUSEADDR it keeps everybody else from listening even so; where
        connections of before are in the way of that, it has to be an ordinary one."""
        try:
            return self._new_member(reuse_address=False)
        except EndpointTaken:
            return self._new_member()

    def _new_member(self, *, reuse_address: bool = True) -> socket.socket:
        fresh = self._new_socket()
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._bind(fresh)
        return fresh

    def _new_inside(self, namespace: Namespace) -> socket.socket:
        fresh = self._new_socket(namespace)
        self._bind_inside(fresh, namespace)
        return fresh

    def _join_datagram(self, guest: str, sock: socket.socket, namespace: Namespace | None) -> Listener:
        if namespace is not None:
            self._bind_inside(sock, namespace)
        else:
            self._give_address_up()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._bind(sock)
        listener = Listener(sock, guest, namespace)
        listener.listening = True
        self._joined(listener)
        return listener

    def _bind_inside(self, sock: socket.socket, namespace: Namespace) -> None:
        """All addresses of a namespace are the guest's, so which one it is does not matter."""
        try:
            sock.bind(("::" if self.family == socket.AF_INET6 else "0.0.0.0", namespace.ports[self.endpoint]))
        except OSError:
            sock.close()
            raise

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

    def _keep_address(self) -> None:
        """Nobody else is to listen where rules lead everything into a namespace."""
        on_host = len(self._order) or any(one.namespace is None for one in self._opening)
        if self._inside and self._reserved is None and not on_host:
            with contextlib.suppress(GuestFailed):
                self._reserved = self._new_reservation()

    def _give_address_up(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    # --- who gets what is new ---------------------------------------------------------------------------------------

    def _joined(self, listener: Listener) -> None:
        if listener.namespace is None:
            self._order.join(listener)
        else:
            self._inside.append(listener)
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
        if serving in self._order:
            self._selected = serving
        self._select()
        self._move({self.endpoint: (serving.namespace, serving.port) if serving.namespace is not None else None})

    def _select(self) -> None:
        """Of the sockets on the host. What comes to them while a namespace serves are probes, and what was on its way
        before."""
        if not len(self._order):
            return
        last = self._selected
        selected = last if last is not None and last in self._order else self._order.members[0]
        steers = [Steer(*source, self._order.index(to)) for source, to in self._steered.items() if to in self._order]
        attach(selected.sock, selector_program(self.family, self._order.index(selected), steers))

    def _sweep(self) -> None:
        """Close what nobody needs, as far as no index changes meaning by it."""
        for goes in [one for one in self._inside if one.dead and one is not self.serving]:
            self._inside.remove(goes)
            goes.close()
        while self.serving is not None:
            serving = self.serving
            leaves = next((m for m in self._order.members if m.dead and self._order.may_leave(m, serving)), None)
            if leaves is None:
                break
            self._order.leave(leaves)
            leaves.close()
            self._attach()
        self._keep_address()

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
