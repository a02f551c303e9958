"""A network between a client and a server that can lose what it carries, once and on purpose."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Literal

from tests.ports import free_port

ADDRESS = "127.0.0.1"
Fate = Literal["deliver", "lose-request", "lose-answer"]


class Proxy:
    """Forwards one request for each connection, as `EtcdClient` makes them. `decide` is asked for each request, which
    it is given; `before_answer` runs once the server has answered and before the client learns of it."""

    def __init__(
        self, port: int, *, decide: Callable[[bytes], Fate], before_answer: Callable[[], None] = lambda: None
    ) -> None:
        self._to = port
        self._decide = decide
        self._before_answer = before_answer
        self.port = free_port()
        self._listener = socket.create_server((ADDRESS, self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # otherwise whoever waits in `accept` gets one more
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            request = _one_request(client)
            if not request:
                return
            fate = self._decide(request)
            if fate == "lose-request":
                return
            with socket.create_connection((ADDRESS, self._to)) as server:
                server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                answer = b""
                while part := server.recv(1 << 16):
                    answer += part
            if fate == "lose-answer":
                self._before_answer()
                return
            client.sendall(answer)


def _one_request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(1 << 16)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    [length] = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < length:
        part = client.recv(1 << 16)
        if not part:
            return b""
        body += part
    return head + b"\r\n\r\n" + body


def once(fate: Fate, *, path: bytes) -> Callable[[bytes], Fate]:
    """The first request to a path has this fate, all others are delivered."""
    done = threading.Event()

    def decide(request: bytes) -> Fate:
        if request.startswith(b"POST " + path + b" ") and not done.is_set():
            done.set()
            return fate
        return "deliver"

    return decide
