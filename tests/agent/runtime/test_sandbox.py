"""What native code inside a guest's process can do: nothing that the order does not grant.

The process is a real guest in all but its program (see `hostile.py`), and the supervisor's own code answers its calls.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agent.api.processes import Endpoint
from agent.daemon import host
from agent.runtime import GuestOrder, Preopen, kernel_name
from agent.sandbox import landlock, linux
from agent.supervisor.endpoints import Endpoints
from agent.supervisor.event_loop import Loop
from agent.supervisor.guest_record import Guest
from agent.supervisor.network.networks import Networks
from agent.supervisor.notify import Notifications
from tests.agent.runtime import support
from tests.agent.runtime.hostile import LIMIT_ADDRESS
from tests.agent.runtime.support import DEADLINE_S, OTHER_UID, needs_namespaces, needs_root, network
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent.parent

pytestmark = pytest.mark.skipif(linux.machine() != "x86_64", reason="the attempts' raw calls are those of x86-64")


both_networks = pytest.mark.usefixtures(network.__name__)


def attempt(
    directory: Path,
    *attempts: str,
    listen: dict[str, Endpoint] | None = None,
    connect_to: dict[str, Endpoint] | None = None,
    preopens: tuple[Preopen, ...] = (),
    memory_bytes: int = 64 << 20,
    uid: int | None = None,
    cpus: tuple[int, ...] = (),
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Run the attempts in one guest; what came of each. `meanwhile` runs in a thread beside it."""
    order = GuestOrder(
        guest="hostile-1", process="hostile", code_path="", code_kind="component", args=attempts, env={},
        preopens=preopens, listen=listen or {}, connect=connect_to or {}, memory_bytes=memory_bytes, cpus=cpus,
        output_path=str(directory / "hostile.log"), uid=uid, network=support.networks.default,
    )  # fmt: skip
    loop = Loop()
    networks = Networks(kernel_name(directory), loop, print) if order.network == "namespace" else None
    endpoints = Endpoints(networks.move) if networks is not None else Endpoints()
    answers: list[Notifications] = []

    def sandboxed(guest: Guest, notifications: int | None) -> None:
        if notifications is not None:
            answering = Notifications(guest, notifications, endpoints, on_listening=lambda: None)
            answers.append(answering)
            loop.watch(notifications, lambda: answer(answering))

    def answer(answering: Notifications) -> None:
        if not answering.answer_one():
            loop.unwatch(answering.descriptor)

    endpoints.acquire(order.guest, order.process, order.listen.values())
    namespace = networks.make(order) if networks is not None else None
    guest = Guest(order, loop, on_sandboxed=sandboxed, on_ended=lambda _: None, namespace=namespace)
    order_file = os.memfd_create("order")
    os.write(order_file, msgspec.msgpack.encode(order))
    descriptors = [order_file, *guest.far_descriptors()]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.agent.runtime.hostile", *map(str, descriptors)],
        pass_fds=descriptors,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]},
    )
    guest.close_far_descriptors()
    os.close(order_file)
    beside = threading.Thread(target=meanwhile, daemon=True)
    beside.start()
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        loop.after(0.01, lambda: None)
        loop.run_once()
    process.kill()
    process.wait()
    beside.join(DEADLINE_S)
    guest.note_exit(process.returncode)
    for one in answers:
        loop.unwatch(one.descriptor)
        one.close()
    endpoints.close()
    if networks is not None:
        networks.close()
        assert networks.block is None
    output = (directory / "hostile.log").read_text()
    assert guest.sandboxed, guest.exit_reason
    said = dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
    said["refusals"] = "\n".join(guest.refusals)
    said["limit address"] = str(guest.limit_address)
    return said


@contextmanager
def listening(answer: bytes = b"welcome") -> Iterator[int]:
    """The port of a server that says this."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.sendall(answer)
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    with server:
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)  # whoever waits in `accept` ends


def test_no_system_call_outside_the_list_succeeds(tmp_path: Path) -> None:
    refused = ["fork", "exec", "executable-memory", "limits", "affinity"]
    refused += ["signal-parent", f"signal-any,{os.getpid()}"]
    refused += ["become-root", "unix-socket", "netlink-socket", "raw-socket", "ptrace", "process-memory", "mount"]
    refused += ["unshare", "bpf", "io-uring", "keys", "user-faults", "other-numbers", "tcp-socket", "udp-socket"]
    said = attempt(tmp_path, *refused)
    assert {name: said[name] for name in refused} == dict.fromkeys(refused, "EPERM")


def test_where_the_limit_of_memory_is_was_said_before_and_nothing_later_is_listened_to(tmp_path: Path) -> None:
    said = attempt(tmp_path, "say-where,4096")
    assert said["say-where,4096"] == "ok"
    assert said["limit address"] == str(LIMIT_ADDRESS)


@both_networks
def test_with_a_network_only_tcp_over_ip_is_there(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    tried = ["tcp-socket", "unix-socket", "netlink-socket", "raw-socket", "multipath-socket", "udp-socket"]
    said = attempt(tmp_path, *tried, "answer-itself", listen={"http": endpoint})
    assert said["tcp-socket"] == "ok"
    assert said["udp-socket"] == "EPERM"
    assert {said[name] for name in tried[1:5]} == {"EPERM"}
    assert said["answer-itself"] != "ok"


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
def test_no_file_outside_its_directories_can_be_read_or_written(tmp_path: Path) -> None:
    volume, config, secret = tmp_path / "volume", tmp_path / "config", tmp_path / "secret"
    for directory in (volume, config):
        directory.mkdir()
    secret.write_text("secret")
    (config / "file").write_text("settings\n")
    (volume / "way-out").symlink_to(secret)
    preopens = (Preopen(str(volume), "/data", True), Preopen(str(config), "/etc", False))
    denied = [
        "read,/etc/passwd", f"read,{secret}", f"read,{volume}/way-out", f"read,{volume}/../secret",
        f"read,/proc/self/root{secret}", "read,/proc/self/environ", f"read,/proc/{os.getpid()}/mem",
        f"write,{secret}", f"write,{config}/file", f"write,{config}/new",
        "write,/tmp/lowcloud-escaped", "read,/dev/zero",
    ]  # fmt: skip
    allowed = {f"read,{config}/file": "settings", f"write,{volume}/file": "ok"}
    said = attempt(tmp_path, *denied, *allowed, preopens=preopens)
    assert {name: said[name] for name in denied} == dict.fromkeys(denied, "EACCES")
    assert {name: said[name] for name in allowed} == allowed
    assert secret.read_text() == "secret"


@both_networks
def test_only_declared_listeners_can_be_bound(tmp_path: Path) -> None:
    declared, other = Endpoint("127.0.0.1", free_port()), free_port()
    tried = [f"bind,127.0.0.1,{other}", f"bind,0.0.0.0,{other}", "bind,0.0.0.0,0", "listen-unbound"]
    wildcard = f"bind,0.0.0.0,{declared.port}"
    said = attempt(tmp_path, *tried, wildcard, listen={"http": declared})
    assert {said[name] for name in tried} == {"EACCES"}
    assert said[wildcard] == "ok"
    assert f"127.0.0.1:{other}/tcp, which its definition does not name" in said["refusals"]


@both_networks
def test_a_listener_cannot_change_who_gets_connections(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    said = attempt(tmp_path, f"take-over,{endpoint.port}", listen={"http": endpoint})
    assert said[f"take-over,{endpoint.port}"] == "EPERM"


@both_networks
def test_only_declared_connections_can_be_made(tmp_path: Path) -> None:
    with listening() as port, listening() as other_port:
        ok, elsewhere = f"connect,127.0.0.1,{port}", f"connect,127.0.0.1,{other_port}"
        tried = [
            elsewhere,
            f"connect,127.0.0.2,{port}",
            f"fast-open,127.0.0.1,{other_port}",
            f"blocking-connect,127.0.0.1,{port}",
        ]
        said = attempt(tmp_path, ok, *tried, connect_to={"kv": Endpoint("127.0.0.1", port)})
    assert said[ok] == "welcome"
    assert said[elsewhere] == said[f"connect,127.0.0.2,{port}"] == "EACCES"
    assert said[f"fast-open,127.0.0.1,{other_port}"] == "EPERM"
    assert said[f"blocking-connect,127.0.0.1,{port}"] == "ENOTSUP"


@both_networks
def test_a_refused_connection_is_told_to_the_guest(tmp_path: Path) -> None:
    closed = free_port()
    name = f"connect,127.0.0.1,{closed}"
    said = attempt(tmp_path, name, connect_to={"kv": Endpoint("127.0.0.1", closed)})
    assert said[name] == "ECONNREFUSED"


@both_networks
def test_a_socket_pair_can_be_emulated_over_loopback(tmp_path: Path) -> None:
    said = attempt(tmp_path, "pair", connect_to={"kv": Endpoint("127.0.0.1", 1)})
    assert said["pair"] == "through the pair"


@both_networks
def test_the_port_of_an_emulated_pair_leads_to_that_pair_only(tmp_path: Path) -> None:
    """On another address, or later, it may be somebody else's."""
    said = attempt(tmp_path, "own-port-elsewhere", "own-port-closed", connect_to={"kv": Endpoint("127.0.0.1", 1)})
    assert said["own-port-elsewhere"] == said["own-port-closed"] == "EACCES"


@both_networks
def test_a_declared_udp_listener_receives_and_answers(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port(), "udp")
    answers: list[bytes] = []

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.05)
            deadline = time.monotonic() + DEADLINE_S
            while not answers and time.monotonic() < deadline:
                client.sendto(b"hello", (endpoint.address, endpoint.port))
                try:
                    answers.append(client.recv(100))
                except OSError:
                    continue

    said = attempt(tmp_path, f"udp-echo,{endpoint.port}", listen={"dns": endpoint}, meanwhile=ask)
    assert said[f"udp-echo,{endpoint.port}"] == "answered hello"
    assert answers == [b"HELLO"]


@both_networks
def test_a_declared_udp_connection_reaches_its_peer_and_nobody_else(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(DEADLINE_S)
        port = server.getsockname()[1]
        connected, elsewhere = f"udp-connected,127.0.0.1,{port}", f"udp-connected,127.0.0.1,{port + 1}"
        anyone = f"udp-to-anyone,127.0.0.1,{port}"

        def answer() -> None:
            _, peer = server.recvfrom(100)
            server.sendto(b"told", peer)

        to = {"dns": Endpoint("127.0.0.1", port, "udp")}
        said = attempt(tmp_path, connected, elsewhere, anyone, connect_to=to, meanwhile=answer)
    assert said[connected] == "told"
    assert said[elsewhere] == "EACCES"
    assert said[anyone] == "EPERM"


@needs_namespaces
def test_from_its_namespace_a_udp_listener_sends_to_declared_peers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support.networks, "default", "namespace")
    own = Endpoint("0.0.0.0", free_port(), "udp")
    with bound(host_address()) as declared, bound("127.0.0.1") as loopback, bound(host_address()) as other:
        peer = Endpoint(host_address(), declared.getsockname()[1], "udp")
        alias = ("241.0.0.1", loopback.getsockname()[1])
        tried = [loopback.getsockname(), alias, other.getsockname(), declared.getsockname()]
        name = ",".join(["udp-from-listener", str(own.port), *(f"{address}/{port}" for address, port in tried)])
        said = attempt(tmp_path, name, listen={"dns": own}, connect_to={"peer": peer})
        assert said[name] == "ok"  # to the guest all of them are on their way
        declared.settimeout(DEADLINE_S)
        assert declared.recvfrom(100)[0] == b"out"
        for unreached in (loopback, other):
            unreached.setblocking(False)
            with pytest.raises(BlockingIOError):
                unreached.recvfrom(100)


@needs_namespaces
def test_a_loopback_peer_has_another_name_in_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.networks, "default", "namespace")
    with listening() as port, listening() as other_port:
        by_name, by_alias = f"connect,127.0.0.1,{port}", f"connect,241.0.0.1,{port}"
        elsewhere = f"connect,241.0.0.1,{other_port}"
        said = attempt(tmp_path, by_name, by_alias, elsewhere, connect_to={"kv": Endpoint("127.0.0.1", port)})
    assert said[by_name] == said[by_alias] == "welcome"
    assert said[elsewhere] == "EACCES"
    assert f"127.0.0.1:{other_port}/tcp, which its definition does not name" in said["refusals"]


def bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    return sock


def host_address() -> str:
    """One of this machine that is not loopback, where there is any."""
    return next((found for found in host.addresses() if ":" not in found), "127.0.0.1")


def test_memory_of_the_whole_process_has_a_ceiling(tmp_path: Path) -> None:
    said = attempt(tmp_path, "memory,32", "memory,400", memory_bytes=64 << 20)
    assert said["memory,32"] == "ok"
    assert said["memory,400"] == "MemoryError"


@needs_root
def test_with_a_uid_of_its_own_everything_still_holds(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    tmp_path.chmod(0o755)
    tried = ["become-root", "fork", "signal-parent", "read,/etc/shadow", f"bind,127.0.0.1,{endpoint.port}", "pair"]
    said = attempt(tmp_path, *tried, listen={"http": endpoint}, uid=OTHER_UID)
    assert {name: said[name] for name in tried[:3]} == dict.fromkeys(tried[:3], "EPERM")
    assert said["read,/etc/shadow"] == "EACCES"
    assert said[f"bind,127.0.0.1,{endpoint.port}"] == "ok"
    assert said["pair"] == "through the pair"


@needs_root
def test_a_guest_with_a_uid_of_its_own_has_only_so_many_threads(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    said = attempt(tmp_path, "threads,1000", uid=OTHER_UID, memory_bytes=1 << 30)
    assert said["threads,1000"] in ("stopped before 500", "stopped before 600")
