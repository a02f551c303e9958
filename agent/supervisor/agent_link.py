"""One agent's connection, as the supervisor holds it: frames in, frames out, never blocking."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import msgspec

from agent.supervisor.event_loop import POLLIN, POLLOUT, Loop
from agent.supervisor.wire import FrameReader, Request, ToAgent, frame

READ_BYTES: Final = 256 << 10
MAX_WAITING_BYTES: Final = 64 << 20
"""What may wait for an agent that does not read; then it is disconnected, and asks again when it comes back."""


class AgentLink:
    def __init__(
        self,
        connection: socket.socket,
        loop: Loop,
        *,
        on_request: Callable[[AgentLink, Request], None],
        on_close: Callable[[AgentLink], None],
    ) -> None:
        self._socket = connection
        self._loop = loop
        self._on_request = on_request
        self._on_close = on_close
        self._reader = FrameReader()
        self._waiting = bytearray()
        self.closed = False
        connection.setblocking(False)
        loop.watch(connection.fileno(), self._ready)

    def send(self, message: ToAgent) -> None:
        if self.closed:
            return
        self._waiting += frame(message)
        self._write()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._on_close(self)

    def _ready(self) -> None:
        self._write()
        if self.closed:
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            requests = [msgspec.msgpack.decode(body, type=Request) for body in self._reader.feed(data)]
        except (ValueError, msgspec.DecodeError):
            # Not our protocol. Whoever it is finds the connection closed.
            self.close()
            return
        for request in requests:
            self._on_request(self, request)

    def _write(self) -> None:
        if self._waiting:
            try:
                sent = self._socket.send(self._waiting)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            del self._waiting[:sent]
        if len(self._waiting) > MAX_WAITING_BYTES:
            self.close()
            return
        self._loop.watch(self._socket.fileno(), self._ready, events=POLLIN | (POLLOUT if self._waiting else 0))
