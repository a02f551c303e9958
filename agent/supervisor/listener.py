"""One version's socket on an endpoint, on the host or in a guest's network namespace, as the supervisor holds it."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
from typing import TYPE_CHECKING, Final

from agent.api.processes import Endpoint
from agent.runtime import local_address
from agent.supervisor import sockdiag
from agent.supervisor.place import HOST, Place

if TYPE_CHECKING:
    from agent.supervisor.network.namespace import Namespace

LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def family_of(endpoint: Endpoint) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET


def kind_of(endpoint: Endpoint) -> socket.SocketKind:
    return socket.SOCK_DGRAM if endpoint.protocol == "udp" else socket.SOCK_STREAM


class Listener:
    """One version's socket on an endpoint: our duplicate of what the guest has."""

    def __init__(self, sock: socket.socket, guest: str | None, namespace: Namespace | None = None) -> None:
        self.sock = sock
        self.guest = guest
        """Whose it is; None for the one that turns connections away."""
        self.namespace = namespace.hold() if namespace is not None else None
        self.place: Place = namespace or HOST
        self.port: int = sock.getsockname()[1]
        """There; on the host it is the endpoint's."""
        self.inode = os.fstat(sock.fileno()).st_ino
        self.listening = False
        """Its guest has asked for connections."""
        self.dead = False
        """Its guest has ended."""
        self.half_open: set[tuple[bytes, int]] = set()
        """Who was in the middle of a handshake with it when it stopped serving."""
        self.flipped_at: float | None = None

    def close(self) -> None:
        self.sock.close()
        if self.namespace is not None:
            self.namespace.let_go()

    def near_address(self, endpoint: Endpoint) -> str:
        """Where it is reached from its own place; in a namespace it listens on every address."""
        return local_address(endpoint) if self.namespace is None else LOOPBACK[self.sock.family]

    def half_open_peers(self) -> set[tuple[bytes, int]]:
        """Who is in the middle of a handshake with its port."""
        return sockdiag.half_open_peers(self.sock.family, self.port, self.place)

    def waiting(self) -> int:
        """Connections or datagrams that its guest has not taken yet."""
        if self.sock.type == socket.SOCK_STREAM:
            return sockdiag.waiting_in(self.sock)
        answer = bytearray(4)
        fcntl.ioctl(self.sock, termios.FIONREAD, answer)
        return int.from_bytes(answer, sys.byteorder)
