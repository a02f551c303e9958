"""The sockets of one client: how they are made, and how much of what went into them the other side has acknowledged.

What a program has written is no measure of how fast a link is: megabytes of it may wait in buffers. The kernel knows
what has arrived.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import weakref
from typing import Any, Final

_ACKNOWLEDGED: Final = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` of Linux' `struct tcp_info` (linux/tcp.h, since 4.2)."""

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
        if sys.platform != "linux":
            return None
        found = 0
        for made in list(self._made):
            if made.fileno() < 0:
                continue
            try:
                told = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
                found += _ACKNOWLEDGED.unpack(told)[0]
            except (OSError, struct.error):
                return None
        return found
