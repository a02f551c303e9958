"""The load generator counts every failure, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.tools.shop import wait_until
from tools.load import Load, LoadProcess, Report

BODY = r"(?P<config>\w+) from web (?P<version>\d)\n"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\nhello from web 1\n"
Reply = Callable[[int], bytes]
"""The bytes that answer the n-th request; nothing means a closed connection."""


@contextmanager
def server(reply: Reply) -> Iterator[tuple[str, list[int]]]:
    """A server whose every answer the test decides, and the number of requests so far."""
    asked = [0]
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        with connection:
            while b"\r\n\r\n" in connection.recv(4096):
                with lock:
                    number, asked[0] = asked[0], asked[0] + 1
                answer = reply(number)
                if not answer:
                    return
                connection.sendall(answer)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)


def loaded(target: str, asked: list[int], *, requests: int = 200, opening: int = 2, keeping: int = 1) -> Report:
    """Load until the server has been asked so often."""
    load = Load(targets=(target,), expect=BODY, opening=opening, keeping=keeping, seconds=30)
    with LoadProcess(load) as process:
        wait_until(lambda: asked[0] >= requests, "the requests have come")
        return process.report()


def test_good_answers_are_served_and_nothing_failed() -> None:
    with server(lambda _: GOOD) as (target, asked):
        report = loaded(target, asked)
    assert report.failed == 0, report.reasons
    assert report.served >= 200
    assert 0 < report.connections <= report.served
    [seen] = report.seen
    assert (seen.version, seen.config, seen.requests) == ("1", "hello", report.served)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "IncompleteReadError"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "status 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nboo\n", "unexpected body"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "no usable content-length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n", "no usable content-length"),
    ],
)
def test_each_bad_answer_is_one_failure(bad: bytes, reason: str) -> None:
    with server(lambda number: bad if number == 50 else GOOD) as (target, asked):
        report = loaded(target, asked)
    assert report.failed == 1, report.reasons
    [(why, count)] = report.reasons.items()
    assert why.startswith(reason)
    assert count == 1


def test_two_versions_on_one_connection_are_a_failure() -> None:
    other = GOOD.replace(b"web 1", b"web 2")
    with server(lambda number: GOOD if number % 2 else other) as (target, asked):
        report = loaded(target, asked, opening=0, requests=20)
    assert "one connection answered with two versions" in report.reasons


def test_a_target_that_refuses_is_a_failure_each_time() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        load = Load(targets=(f"127.0.0.1:{unused.getsockname()[1]}",), expect=BODY, seconds=0.3)
        with LoadProcess(load) as process:
            report = process.report()
    assert report.served == 0
    assert report.failed > 0
    assert all("ConnectionRefusedError" in reason for reason in report.reasons)
