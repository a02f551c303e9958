"""The endpoints of a host, and which process and guests use them: all its groups (`agent.supervisor.group`)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from agent.api.processes import Endpoint
from agent.runtime import EndpointTaken, GuestFailed
from agent.supervisor.group import Group, Moves
from agent.supervisor.listener import Listener

if TYPE_CHECKING:
    from agent.supervisor.network.namespace import Namespace


class Endpoints:
    """All groups of a host. `move` tells the rules which namespace serves what."""

    def __init__(self, move: Callable[[Moves], None] = lambda _: None) -> None:
        self._move = move
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
                    group = Group(endpoint, process, self._move)
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

    def adopt(
        self, guest: str, process: str, endpoint: Endpoint, sock: socket.socket, namespace: Namespace | None
    ) -> Listener:
        """A group that a supervisor before has made, with the one guest that serves there. Raises OSError."""
        if endpoint in self._groups:
            raise EndpointTaken(f"{endpoint} belongs to the process {self._groups[endpoint].process}")
        group = self._groups[endpoint] = Group(endpoint, process, self._move)
        group.users.add(guest)
        return group.adopt(guest, sock, namespace)

    def flip(self, groups: Iterable[Group], guest: str) -> None:
        """This guest gets what is new at all these endpoints; those in its namespace in one step."""
        found = [(group, group.listener_of(guest)) for group in groups]
        self._move(
            {
                group.endpoint: (listener.namespace, listener.port)
                for group, listener in found
                if listener is not None and listener.namespace is not None
            }
        )
        for group, _ in found:
            group.flip(guest)

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
