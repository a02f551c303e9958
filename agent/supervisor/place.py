"""Where a socket is made: on the host, or in a guest's network namespace. It stays there, whoever holds it later."""

from __future__ import annotations

import socket
from typing import Final, Protocol


class Place(Protocol):
    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Raises OSError."""
        ...


class Host:
    """The network that this process is in."""

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)


HOST: Final = Host()

PROBE_MARK: Final = 0x6C63
"""Of packets that prove a listener on the host while one in a namespace serves: no rule leads them there."""
