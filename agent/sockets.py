"""The sockets of one client: how they are made, and what has arrived, here and on the other side.

What a program has written is no measure of how fast a link is: megabytes of it may wait in buffers. Nor is what it has
read: TLS hands over whole records. The kernel knows what has arrived.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

_COUNTED: Final = struct.Struct("=120xQQ")
"""`tcpi_bytes_acked` and `tcpi_bytes_received` of Linux' `struct tcp_info` (linux/tcp.h, since 4.2)."""

_TCP_RTO_MAX_MS: Final = 44
"""Of linux/tcp.h, since 6.15."""
RESENT_AFTER_MS: Final = 2000
"""What is lost is sent again so late at most: where a border was cut for 10 s, the system would wait for up to 6 s more
after it has healed."""
_AT_ONCE: Final = struct.pack("ii", 1, 0)


class Sockets:
    """Those that are open. `make` is a socket factory as aiohttp wants it."""

    def __init__(self) -> None:
        self._made: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def make(self, address: tuple[Any, ...]) -> socket.socket:
        """One that notices within half a minute when the other machine is gone."""
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        if sys.platform == "linux":  # elsewhere the number may mean something else
            with contextlib.suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, RESENT_AFTER_MS)
        if hasattr(socket, "TCP_QUICKACK"):  # what is acknowledged goes with the next question, from the greeting on
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        self._made.add(made)
        return made

    def forget_unsent(self) -> None:
        """What was written and has not been sent is not to be sent any more once they are closed."""
        for made in list(self._made):
            with contextlib.suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)

    def acknowledged_bytes(self) -> int | None:
        """Of all that was written to those that are open; None where the system does not say."""
        return self._sum(acknowledged_bytes)

    def received_bytes(self) -> int | None:
        """Of all that has arrived for those that are open; None where the system does not say."""
        return self._sum(received_bytes)

    def _sum(self, of: Callable[[Asked], int | None]) -> int | None:
        told = [of(made) for made in list(self._made) if made.fileno() >= 0]
        return sum(one for one in told if one is not None) if None not in told else None


class Asked(Protocol):
    """A socket, also as asyncio shows it."""

    def getsockopt(self, level: int, name: int, size: int, /) -> bytes: ...


def acknowledged_bytes(made: Asked) -> int | None:
    """Of all that was written to a socket; None where the system does not say."""
    counted = _counted(made)
    return None if counted is None else counted[0]


def received_bytes(made: Asked) -> int | None:
    """Of all that has arrived for a socket, taken from it or not; None where the system does not say."""
    counted = _counted(made)
    return None if counted is None else counted[1]


def _counted(made: Asked) -> tuple[int, int] | None:
    if sys.platform != "linux":
        return None
    try:
        acknowledged, received = _COUNTED.unpack(made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTED.size))
    except (OSError, struct.error):
        return None
    return acknowledged, received
