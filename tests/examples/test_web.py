"""The web server under a real engine and real sockets: HTTP/1.1 by RFC 9112, and nothing lost at the edges."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import build
from tests.examples.guest import DEADLINE_S, Guest, connected, receive_all, run
from tests.ports import free_port

Built = Callable[[str], Path]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
GET_AND_CLOSE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BODY = b"hello from web 1.0\n"
BODY_2 = b"hello from web 2.0\n"
MANY = 1000
SOURCE = build.HERE / "web.c"


@pytest.fixture(scope="module")
def port(built: Built) -> Iterator[int]:
    """A version 1 that all tests of this module share: what one of them does must not harm the others."""
    number = free_port()
    with Guest(built("web-1"), "--port", str(number), name="web") as guest:
        guest.wait_output("listens on")
        yield number


class Reader:
    """Reads whole responses off a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.file = connection.makefile("rb")

    def response(self, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        status = int(line.split(b" ")[1])
        headers = {key.lower(): value for key, value in http.client.parse_headers(self.file).items()}
        length = 0 if head_only or status == 100 else int(headers["content-length"])
        return status, headers, self.file.read(length)

    def at_end(self) -> bool:
        return self.file.read(1) == b""


def exchange(port: int, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    with connected(port) as connection:
        connection.sendall(sent)
        return Reader(connection).response()


def test_a_page_names_the_version_and_the_greeting(port: int) -> None:
    status, headers, body = exchange(port, GET)
    assert (status, body) == (200, BODY)
    assert "connection" not in headers


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        ("GET /healthz HTTP/1.1", 200, b"ok\n"),
        ("GET /version HTTP/1.1", 200, b"1.0\n"),
        ("GET /?a=b HTTP/1.1", 200, BODY),
        ("GET /stats HTTP/1.1", 404, b"404 Not Found\n"),
        ("GET /nothing HTTP/1.1", 404, b"404 Not Found\n"),
        ("POST / HTTP/1.1", 405, b"405 Method Not Allowed\n"),
        ("GET / HTTP/2.0", 505, b"505 HTTP Version Not Supported\n"),
        ("GET  HTTP/1.1", 400, b"400 Bad Request\n"),
        ("G@T / HTTP/1.1", 400, b"400 Bad Request\n"),
        ("GET /\x7f HTTP/1.1", 400, b"400 Bad Request\n"),
    ],
)
def test_each_request_line_has_its_status(port: int, request_line: str, status: int, body: bytes) -> None:
    found = exchange(port, f"{request_line}\r\nHost: x\r\n\r\n".encode())
    assert (found[0], found[2]) == (status, body)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("", 400),
        ("Host: x\r\nHost: y\r\n", 400),
        ("Host: x\r\nbad name: y\r\n", 400),
        ("Host: x\r\n folded\r\n", 400),
        ("Host: x\nA: b\r\n", 400),
        ("Host: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n", 400),
        ("Host: x\r\nContent-Length: -1\r\n", 400),
        ("Host: x\r\nContent-Length: 99999999999999999999999\r\n", 400),
        ("Host: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Host: x\r\nTransfer-Encoding: gzip\r\n", 501),
        ("Host: x\r\nContent-Length: 1048577\r\n", 413),
        ("Host: x\r\n" + "".join(f"A{i}: b\r\n" for i in range(100)), 431),
        ("Host: x\r\nA: " + "a" * 8200 + "\r\n", 431),
    ],
)
def test_a_head_that_is_wrong_is_refused_and_ends_the_connection(port: int, headers: str, status: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + headers.encode() + b"\r\n")
        reader = Reader(connection)
        found, answer_headers, _ = reader.response()
        assert found == status
        assert answer_headers["connection"] == "close"
        assert reader.at_end()


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\n", b"hello\r\n", b"\x00" * 9000, b"GET / HTTP/1.1\n\n"]
)
def test_garbage_gets_an_answer_and_the_end_of_the_connection(port: int, garbage: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(garbage)
        assert receive_all(connection).split(b" ")[1] in (b"400", b"431")


def test_a_connection_serves_many_requests(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    for _ in range(200):
        connection.request("GET", "/")
        assert connection.getresponse().read() == BODY
    connection.close()


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    paths = ["/", "/version", "/healthz", "/none"] * 100
    with connected(port) as connection:
        connection.sendall("".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths).encode())
        reader = Reader(connection)
        bodies = [reader.response()[2] for _ in paths]
    assert bodies == [BODY, b"1.0\n", b"ok\n", b"404 Not Found\n"] * 100


def test_a_request_may_arrive_byte_by_byte(port: int) -> None:
    with connected(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(GET)):
            connection.sendall(GET[at : at + 1])
        assert Reader(connection).response()[2] == BODY


CHUNKS = b"3;a=b\r\nabc\r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
REQUESTS = {
    b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n": (200, b"1.0\n"),
    b"\r\nGET /none HTTP/1.1\r\nHost: x\r\n\r\n": (404, b"404 Not Found\n"),
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /": (405, b"405 Method Not Allowed\n"),
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS: (200, BODY),
    b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n": (200, b"ok\n"),
}


@settings(max_examples=40)
@given(st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_however_a_stream_of_requests_is_cut_the_answers_are_the_same(
    port: int, requests: list[bytes], random: Random
) -> None:
    stream = b"".join(requests)
    cuts = sorted(random.sample(range(len(stream) + 1), min(8, len(stream))))
    with connected(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            connection.sendall(stream[begin:end])
        reader = Reader(connection)
        found = [reader.response() for _ in requests]
        connection.shutdown(socket.SHUT_WR)
        assert reader.at_end()
    assert [(status, body) for status, _, body in found] == [REQUESTS[request] for request in requests]


def test_a_client_that_waits_for_100_continue_gets_it(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        reader = Reader(connection)
        assert reader.response()[0] == 100
        connection.sendall(b"abc" + GET)
        assert [reader.response()[0] for _ in range(2)] == [200, 200]


def test_a_head_request_has_the_length_and_no_body(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        reader = Reader(connection)
        assert reader.response(head_only=True)[1]["content-length"] == str(len(BODY))
        assert reader.response()[2] == BODY


def test_http_1_0_closes_after_the_answer(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert receive_all(connection).endswith(BODY)


def test_a_close_never_resets_what_is_under_way(port: int) -> None:
    """More bytes follow the request that closes: a socket closed with unread bytes would be reset."""
    for _ in range(20):
        with connected(port) as connection:
            connection.sendall(GET_AND_CLOSE + b"x" * 20000)
            assert receive_all(connection).endswith(BODY)


def test_a_client_that_ends_its_direction_still_gets_all_answers(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(GET * 300)
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection).count(BODY) == 300


def test_a_slow_reader_holds_the_sender_back_and_loses_nothing(port: int) -> None:
    count = 100_000
    with connected(port) as connection:
        sender = threading.Thread(target=connection.sendall, args=(GET * count,))
        sender.start()
        received, needed = 0, count * BODY.count(b"\n")
        tail = b""
        while received < needed:
            chunk = connection.recv(1 << 20)
            assert chunk
            received += (tail + chunk).count(BODY) - tail.count(BODY)
            tail = (tail + chunk)[-len(BODY) + 1 :]
        sender.join()
    assert received == needed


def test_connections_that_are_reset_harm_nobody(port: int) -> None:
    for at in range(0, len(GET) + 1, 3):
        with connected(port) as connection:
            connection.sendall(GET[:at])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in range(50):
        with connected(port) as connection:
            connection.sendall(GET * 200)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert exchange(port, GET)[2] == BODY


@pytest.fixture(scope="module")
def impatient_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server that waits for half a second instead of 75: long enough for a client to ask, on a busy machine too."""
    directory = tmp_path_factory.mktemp("impatient")
    defines = ["VERSION=2", "IDLE_NS=500000000ull"]
    build.build_component(SOURCE, directory / "web.wasm", defines=defines, cache=directory / "cache")
    number = free_port()
    with Guest(directory / "web.wasm", "--port", str(number)) as guest:
        guest.wait_output("listens on")
        yield number


def test_a_connection_that_is_idle_is_ended_without_a_reset(impatient_port: int) -> None:
    with connected(impatient_port) as connection:
        connection.sendall(GET)
        assert receive_all(connection).endswith(BODY_2)


def test_who_sends_a_request_byte_by_byte_does_not_hold_the_connection(impatient_port: int) -> None:
    with connected(impatient_port) as connection:
        connection.settimeout(0.02)
        sent = 0
        while True:
            connection.sendall(b"GET /" if not sent else b"x")
            sent += 1
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                break
            assert sent < 1000


def test_who_takes_no_answer_holds_nobody_up_and_is_forgotten_when_gone(impatient_port: int) -> None:
    with connected(impatient_port) as stubborn:
        stubborn.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                stubborn.sendall(GET * 1000)
        for _ in range(3):  # each takes longer than the server's patience
            with connected(impatient_port) as connection:
                connection.sendall(GET)
                assert receive_all(connection).endswith(BODY_2)
        stubborn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    while open_connections(impatient_port) > 1:
        assert exchange(impatient_port, GET)[0] == 200


def open_connections(port: int) -> int:
    body = exchange(port, b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[2].decode()
    return int(dict(line.split() for line in body.splitlines())["open"])


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_connections_are_open_at_once(built: Built) -> None:
    number = free_port()
    with Guest(built("web-1"), "--port", str(number)) as guest:
        guest.wait_output("listens on")
        connections = [socket.create_connection(("127.0.0.1", number), timeout=DEADLINE_S) for _ in range(MANY)]
        for _ in range(2):
            for connection in connections:
                connection.sendall(GET)
            assert all(Reader(connection).response()[2] == BODY for connection in connections)
        for connection in connections:
            connection.close()
        assert exchange(number, GET)[2] == BODY


def test_without_free_descriptors_it_waits_and_goes_on_when_there_are_some(built: Built) -> None:
    number = free_port()
    with Guest(built("web-1"), "--port", str(number)) as guest:
        guest.wait_output("listens on")
        resource.prlimit(guest.process.pid, resource.RLIMIT_NOFILE, (48, 48))
        connections = [socket.create_connection(("127.0.0.1", number), timeout=DEADLINE_S) for _ in range(100)]
        for connection in connections:
            connection.sendall(GET_AND_CLOSE)
        for connection in connections:
            assert receive_all(connection).endswith(BODY)
            connection.close()


def test_the_configuration_file_sets_the_greeting(built: Built, tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_text('# a comment\n\n  greeting = "good morning"  # why not\n')
    number = free_port()
    env = {"LOWCLOUD_LISTEN_HTTP": f"127.0.0.1:{number}"}
    with Guest(built("web-2"), env=env, directories=[(tmp_path, "/etc", False)]) as guest:
        assert f'web 2.0 listens on 127.0.0.1:{number}, greeting "good morning"\n' in guest.wait_output("listens on")
        assert exchange(number, GET)[2] == b"good morning from web 2.0\n"
        status, _, body = exchange(number, b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 200
        assert body.startswith(b"requests 2\nconnections 2\nopen 1\nuptime_s ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("greeting", "/etc/web.toml: not a line of the form"),
        ('farewell = "x"', "/etc/web.toml: unknown key: farewell"),
        ('greeting = "' + "x" * 600 + '"', "/etc/web.toml: too long: greeting"),
        ("#" * 5000, "/etc/web.toml: file-too-large"),
    ],
)
def test_a_wrong_configuration_ends_it_with_the_reason(built: Built, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "web.toml").write_text(text)
    status, output = run(built("web-1"), directories=[(tmp_path, "/etc", False)])
    assert status == 1
    assert message in output


def test_a_taken_port_ends_it_with_the_reason(port: int, built: Built) -> None:
    status, output = run(built("web-1"), "--port", str(port))
    assert (status, output) == (1, "guest: cannot listen: address-in-use\n")


def test_it_listens_on_ipv6_or_says_that_there_is_none(built: Built) -> None:
    number = free_port()
    with Guest(built("web-1"), "--address", "[::1]", "--port", str(number)) as guest:
        if not ipv6_is_there():
            guest.wait_output("cannot listen: address-not-bindable")
            return
        guest.wait_output("listens on [0:0:0:0:0:0:0:1]:")
        with connected(number, "::1") as connection:
            connection.sendall(GET_AND_CLOSE)
            assert receive_all(connection).endswith(BODY)


def ipv6_is_there() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
