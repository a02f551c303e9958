"""How a check reaches the guest that it checks, while that guest is dark: as a probe does, by the selector or from
inside its network namespace.

A check (`GuestOrder.checks`) is a guest that runs to its end and says by its exit code whether another guest is ready.
It has no listeners and is never a version of its process. It is in the network that this guest is in; where that is a
namespace, it connects to the guest's own port there. On the host, where it connects to a listener of the guest that it
checks, its socket is bound first, and the group's selector sends what comes from exactly there to that guest's
listener.

Of a TCP connection the selector decides once, with its first packet, so the source is let go once it is established: a
port that the check has closed may soon be another program's. Datagrams are decided one by one; their socket is kept as
long as the check lives, and with it the port.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Final

from agent.api.processes import Endpoint
from agent.runtime import Checked, local_address
from agent.supervisor.endpoints import Endpoints
from agent.supervisor.event_loop import POLLOUT, Loop
from agent.supervisor.group import Group
from agent.supervisor.guest_record import Guest

ESTABLISHED_WITHIN_S: Final = 5.0


class Reaching:
    """The connections of one check to the guest that it checks."""

    def __init__(self, loop: Loop, endpoints: Endpoints, check: Guest, checked: Checked) -> None:
        self._check = check
        self._loop = loop
        self._endpoints = endpoints
        self._checked = checked
        self._held: dict[int, Callable[[], None]] = {}
        """By descriptor of our duplicate: what lets it and its source go."""
        self._steered: set[tuple[Endpoint, int]] = set()
        """Listener and source port."""

    def listener_at(self, address: str, port: int, protocol: str) -> Endpoint | None:
        """The listener of the guest that is reached there."""
        for endpoint in self._checked.listen.values():
            same = (endpoint.port, endpoint.protocol) == (port, protocol) and address
            if same and ipaddress.ip_address(local_address(endpoint)) == ipaddress.ip_address(address):
                return endpoint
        return None

    def lead(self, theirs: socket.socket, endpoint: Endpoint) -> tuple[str, int]:
        """Where this socket is to connect to, so that it reaches the guest's own listener. Raises OSError."""
        group = self._endpoints.get(endpoint)
        listener = group.listener_of(self._checked.guest) if group is not None else None
        if group is None or listener is None:
            raise OSError(errno.ECONNREFUSED, f"the guest does not listen on {endpoint}")
        if listener.namespace is not self._check.namespace:
            # The guest has taken it over from one that died, so it serves, and is reached like by anybody.
            return self._check.outside(local_address(endpoint)), endpoint.port
        if listener.namespace is None:
            self._steer(theirs, endpoint, group)
        return listener.near_address(endpoint), listener.port

    def _steer(self, theirs: socket.socket, endpoint: Endpoint, group: Group) -> None:
        if not theirs.getsockname()[1]:
            theirs.bind((local_address(endpoint), 0))
        port = theirs.getsockname()[1]
        if (endpoint, port) in self._steered:
            return
        hold = contextlib.ExitStack()
        hold.enter_context(group.steered(theirs, self._checked.guest))
        self._steered.add((endpoint, port))
        hold.callback(self._steered.discard, (endpoint, port))
        descriptor = os.dup(theirs.fileno())  # `socket.dup` would make the guest's socket a blocking one
        hold.callback(os.close, descriptor)
        if theirs.type == socket.SOCK_STREAM:
            self._until_established(descriptor, hold)
        else:
            self._held[descriptor] = hold.close

    def close(self) -> None:
        """The check has ended."""
        for let_go in list(self._held.values()):
            let_go()
        self._held.clear()

    def _until_established(self, descriptor: int, hold: contextlib.ExitStack) -> None:
        def let_go() -> None:
            if self._held.pop(descriptor, None) is not None:
                timer.cancel()
                self._loop.unwatch(descriptor)
                hold.close()

        timer = self._loop.after(ESTABLISHED_WITHIN_S, let_go)
        self._held[descriptor] = let_go
        self._loop.watch(descriptor, let_go, events=POLLOUT)
