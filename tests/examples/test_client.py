"""The calling process, and the test guests, under a real engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.examples.guest import Guest, connected, run
from tests.ports import free_port

Built = Callable[[str], Path]


def server(built: Built, port: int, volume: Path) -> Guest:
    guest = Guest(built("kv"), "--port", str(port), directories=[(volume, "/data", True)])
    guest.wait_output("listens on")
    return guest


def test_it_writes_and_reads_through_the_address_in_its_environment(built: Built, tmp_path: Path) -> None:
    port = free_port()
    with server(built, port, tmp_path):
        env = {"LOWCLOUD_CONNECT_KV": f"127.0.0.1:{port}"}
        status, output = run(built("client"), "--count", "3", "--interval-ms", "1", env=env)
    assert status == 0
    lines = [f"client: connected to 127.0.0.1:{port}", *(f"client: got VALUE hello {i}" for i in (1, 2, 3))]
    assert output.splitlines() == lines


def test_it_connects_again_when_the_server_comes_back(built: Built, tmp_path: Path) -> None:
    port = free_port()
    env = {"LOWCLOUD_CONNECT_KV": f"127.0.0.1:{port}"}
    with Guest(built("client"), "--interval-ms", "10", env=env) as client:
        client.wait_output("client: cannot connect: connection-refused")
        with server(built, port, tmp_path):
            client.wait_output("client: got VALUE hello 2\n")
        client.wait_output("client: lost the connection to ")
        seen = client.text().count("got VALUE")
        with server(built, port, tmp_path):
            client.wait_output(f"client: got VALUE hello {seen + 2}\n")


@pytest.mark.parametrize("value", [None, "", "kv:6379", "127.0.0.1", "127.0.0.1:99999", "::1:80", "1.2.3:1"])
def test_without_an_address_it_ends_with_the_reason(built: Built, value: str | None) -> None:
    status, output = run(built("client"), env={} if value is None else {"LOWCLOUD_CONNECT_KV": value})
    assert status == 1
    assert "LOWCLOUD_CONNECT_KV is not address:port" in output


@pytest.mark.parametrize(
    ("args", "status", "output"),
    [
        (("exit", "0"), 0, ""),
        (("exit", "7"), 1, ""),
        (("args", "a", "b c"), 0, "guest\nargs\na\nb c\n"),
        (("env",), 0, "A=b\n"),
        (("write", "/data/x", "text"), 0, "write ok\n"),
        (("read", "/data/there"), 0, "read ok\nbytes"),
        (("read", "/etc/passwd"), 1, "read denied no-entry\n"),
        (("read", "/data/../../etc/passwd"), 1, "read denied not-permitted\n"),
        (("list", "/data"), 0, "list ok\nthere\n"),
        (("alloc", "4"), 0, "ok MiB 4\n"),
        (("alloc", "1000"), 1, "denied MiB 63\n"),
        (("connect", "127.0.0.1", "1"), 1, "connect denied connection-refused\n"),
        (("resolve", "localhost"), 1, "resolve denied permanent-resolver-failure\n"),
        (("dance",), 1, "guest: unknown mode: dance\n"),
    ],
)
def test_the_probe_does_one_thing(
    built: Built, tmp_path: Path, args: tuple[str, ...], status: int, output: str
) -> None:
    (tmp_path / "there").write_text("bytes")
    assert run(built("probe"), *args, env={"A": "b"}, directories=[(tmp_path, "/data", True)]) == (status, output)


@pytest.mark.parametrize(
    ("args", "reason"), [(("trap",), "unreachable"), (("recurse",), "out of bounds memory access")]
)
def test_the_probe_traps(built: Built, args: tuple[str, ...], reason: str) -> None:
    status, output = run(built("probe"), *args)
    assert status == 134
    assert reason in output


def test_the_probe_talks_udp(built: Built) -> None:
    port = free_port()
    with Guest(built("probe"), "udp-echo", str(port)) as echo:
        echo.wait_output("bind ok")
        status, output = run(built("probe"), "udp-send", "127.0.0.1", str(port), "hello")
    assert (status, output) == (0, "bind ok\nsend ok\nreceive ok\ngot hello\n")


def test_the_probe_serves_and_connects(built: Built) -> None:
    port = free_port()
    with Guest(built("probe"), "http500", str(port)) as serving:
        serving.wait_output("listen ok")
        status, output = run(built("probe"), "connect", "127.0.0.1", str(port))
        with connected(port) as connection:
            connection.sendall(b"x")
            assert connection.recv(64).startswith(b"HTTP/1.1 500")
    assert status == 0
    assert output.startswith("connect ok\nHTTP/1.1 500 ")


@pytest.mark.parametrize(
    ("args", "status", "output"),
    [
        (("exit", "7"), 7, ""),
        (("args", "a"), 0, "guest\nargs\na\n"),
        (("write", "/data/x", "text"), 0, "ok\n"),
        (("read", "/data/there"), 0, "bytes"),
        (("print", "2"), 0, "line 0\nline 1\n"),
    ],
)
def test_the_core_probe_does_one_thing(
    built: Built, tmp_path: Path, args: tuple[str, ...], status: int, output: str
) -> None:
    (tmp_path / "there").write_text("bytes")
    assert run(built("core"), *args, directories=[(tmp_path, "/data", True)]) == (status, output)
