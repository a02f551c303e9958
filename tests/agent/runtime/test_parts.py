"""The small parts: event loop, frames, output files, filters' tables, readiness's judgement, addresses."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.processes import Endpoint
from agent.runtime import GuestFailed, local_address
from agent.sandbox import bpf, seccomp
from agent.sandbox.guest import address_text, variable_of
from agent.supervisor.event_loop import Loop, Signal, Task, Wait
from agent.supervisor.notify import Refused, SocketAddress, declared_listener, is_declared_connection, parse_address
from agent.supervisor.output_pipe import OutputFile
from agent.supervisor.readiness import judge_status, request_for
from agent.supervisor.wire import MAX_MESSAGE_BYTES, FrameReader, Hello, frame

# --- event loop -----------------------------------------------------------------------------------------------------


def test_a_task_goes_on_when_its_descriptor_signal_or_time_comes() -> None:
    now = [0.0]
    loop, given_signal = Loop(clock=lambda: now[0]), Signal()
    reading, writing = os.pipe()
    seen: list[object] = []

    def task() -> Task[str]:
        seen.append((yield Wait(100, descriptor=reading)))
        seen.append((yield Wait(100, signal=given_signal)))
        seen.append((yield Wait(5)))
        return "done"

    loop.start(task(), done=seen.append, failed=seen.append)
    os.write(writing, b"x")
    loop.run_once()
    assert seen == [True]
    given_signal.notify()
    assert seen == [True]
    loop.run_once()
    assert seen == [True, True]
    now[0] = 6.0
    loop.run_once()
    assert seen == [True, True, False, "done"]
    os.close(reading)
    os.close(writing)


def test_a_task_that_fails_tells_and_a_cancelled_one_cleans_up() -> None:
    loop, seen = Loop(), list[object]()

    def failing() -> Task[None]:
        yield Wait(0)
        raise GuestFailed("no")

    def waiting() -> Task[None]:
        try:
            yield Wait(loop.clock() + 1000)
        finally:
            seen.append("cleaned up")

    loop.start(failing(), done=seen.append, failed=lambda error: seen.append(str(error)))
    loop.run_once()
    loop.start(waiting(), done=seen.append, failed=seen.append).cancel()
    assert seen == ["no", "cleaned up"]


def test_a_callback_that_raises_is_reported_and_the_loop_goes_on() -> None:
    errors: list[BaseException] = []
    loop = Loop(on_error=errors.append)
    loop.after(0, lambda: 1 // 0)  # type: ignore[arg-type]
    loop.after(0, loop.stop)
    loop.run()
    assert [type(error) for error in errors] == [ZeroDivisionError]


# --- frames ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_they_are_cut(bodies: list[bytes], piece: int) -> None:
    stream = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    reader = FrameReader()
    assert [b for i in range(0, len(stream), piece) for b in reader.feed(stream[i : i + piece])] == bodies


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="announced"):
        FrameReader().feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"))
    assert frame(Hello(1, 2))[:4] == (len(frame(Hello(1, 2))) - 4).to_bytes(4, "little")


# --- output ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=40))
def test_the_newest_output_is_kept_in_order_and_bounded(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("out") / "log"
    file = OutputFile(str(path), file_bytes=100, files=3)
    for piece in pieces:
        file.append(piece)
    file.close()
    parts = [p.read_bytes() for p in (path.with_name("log.2"), path.with_name("log.1"), path) if p.exists()]
    assert b"".join(pieces).endswith(b"".join(parts))
    assert all(len(part) <= 100 for part in parts)
    assert len(list(path.parent.iterdir())) <= 3
    if sum(map(len, pieces)) <= 100:
        assert path.read_bytes() == b"".join(pieces)


def test_output_is_appended_to_what_is_there_and_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before ")
    file = OutputFile(str(tmp_path / "log"))
    file.append(b"after")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"before after"
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        OutputFile(str(tmp_path / "link"))


# --- filters --------------------------------------------------------------------------------------------------------

HEADERS = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), r"#define __NR_(\w+) (\d+)"),
    "aarch64": (Path("/usr/include/asm-generic/unistd.h"), r"#define __NR(?:3264)?_(\w+) (\d+)"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_system_calls_numbers_are_the_kernels(machine: str) -> None:
    header, pattern = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"no kernel headers for {machine} here")
    numbers = dict(re.findall(pattern, header.read_text()))
    numbers.setdefault("newfstatat", numbers.get("fstatat", ""))
    arch = seccomp.architecture(machine)
    names = [
        name for name, columns in {**seccomp._ALLOWED, **seccomp._CHECKED}.items() if columns[arch.column] is not None
    ]
    assert {name: str(seccomp.number_of(name, arch)) for name in names} == {name: numbers[name] for name in names}


@pytest.mark.parametrize("machine", HEADERS)
@pytest.mark.parametrize("network", [(False, False, False), (True, False, False), (True, True, True)])
def test_the_filters_assemble_for_every_architecture(machine: str, network: tuple[bool, bool, bool]) -> None:
    arch = seccomp.architecture(machine)
    assert bpf.assemble(seccomp.allow_filter(arch, 1, seccomp.NetworkRights(*network)))
    assert bpf.assemble(seccomp.question_filter(arch))


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(seccomp.SandboxUnavailable, match="riscv64"):
        seccomp.architecture("riscv64")


# --- addresses ------------------------------------------------------------------------------------------------------


def test_socket_addresses_are_read_as_the_kernel_writes_them() -> None:
    v4 = b"\x02\x00\x1f\x90\x7f\x00\x00\x01" + bytes(8)
    v6 = b"\x0a\x00\x1f\x90" + bytes(4) + bytes(15) + b"\x01" + bytes(4)
    assert parse_address(v4) == SocketAddress(2, "127.0.0.1", 8080)
    assert parse_address(v6) == SocketAddress(10, "::1", 8080)
    for wrong in (b"", b"\x02", v4[:6], v6[:20], b"\x01\x00/path"):
        with pytest.raises(Refused):
            parse_address(wrong)


@settings(max_examples=100)
@given(st.binary(max_size=40))
def test_any_bytes_are_an_address_or_refused(raw: bytes) -> None:
    with contextlib.suppress(Refused):
        parse_address(raw)


def test_a_bind_means_the_declared_listener_of_that_port_protocol_and_family() -> None:
    listen = {
        "a": Endpoint("127.0.0.1", 80),
        "b": Endpoint("127.0.0.2", 80),
        "c": Endpoint("::", 80),
        "d": Endpoint("0.0.0.0", 53, "udp"),
    }
    assert declared_listener(listen, SocketAddress(2, "127.0.0.2", 80), "tcp") == listen["b"]
    assert declared_listener(listen, SocketAddress(2, "0.0.0.0", 80), "tcp") == listen["a"]
    assert declared_listener(listen, SocketAddress(10, "::1", 80), "tcp") == listen["c"]
    assert declared_listener(listen, SocketAddress(2, "127.0.0.1", 53), "tcp") is None
    assert declared_listener(listen, SocketAddress(2, "127.0.0.1", 53), "udp") == listen["d"]


def test_a_connection_is_declared_only_exactly() -> None:
    connect = {"kv": Endpoint("fd00::2", 6379)}
    assert is_declared_connection(connect, SocketAddress(10, "fd00:0::2", 6379), "tcp")
    assert not is_declared_connection(connect, SocketAddress(10, "fd00::2", 6380), "tcp")
    assert not is_declared_connection(connect, SocketAddress(10, "fd00::2", 6379), "udp")
    assert not is_declared_connection(connect, SocketAddress(10, "fd00::3", 6379), "tcp")


def test_a_guest_finds_its_endpoints_in_its_environment() -> None:
    assert variable_of("CONNECT", "kv-main") == "LOWCLOUD_CONNECT_KV_MAIN"
    assert address_text(Endpoint("::1", 80)) == "[::1]:80"
    assert address_text(Endpoint("10.0.0.1", 80)) == "10.0.0.1:80"


# --- readiness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"HTTP/1.1 200 OK\r", ""),
        (b"HTTP/1.0 399 Odd", ""),
        (b"HTTP/1.1 404 Not Found", "it answered GET /x with 404"),
        (b"HTTP/1.1 503", "it answered GET /x with 503"),
        (b"SSH-2.0-OpenSSH", "it answered GET /x with something that is not HTTP"),
        (b"", "it answered GET /x with something that is not HTTP"),
    ],
)
def test_an_answer_below_400_is_ready(line: bytes, problem: str) -> None:
    assert judge_status(line, "/x") == problem


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\r\nHost: else", "/" + "x" * 5000])
def test_a_path_that_is_no_request_target_is_refused(path: str) -> None:
    with pytest.raises(GuestFailed, match="must begin with /"):
        request_for(Endpoint("::1", 80), path)


def test_a_wildcard_is_probed_over_loopback() -> None:
    assert local_address(Endpoint("0.0.0.0", 1)) == "127.0.0.1"
    assert local_address(Endpoint("::", 1)) == "::1"
    assert local_address(Endpoint("10.1.2.3", 1)) == "10.1.2.3"
