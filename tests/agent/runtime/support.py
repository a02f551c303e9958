"""What the tests of the runtime share: compiled guests, orders, a supervisor of one's own that leaves nothing
behind."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agent.api.processes import Endpoint, Ready
from agent.daemon import networking
from agent.runtime import GuestOrder, Network, Preopen
from agent.sandbox import engine
from agent.supervisor.client import SupervisorClient, connect
from benchmarks import swap
from tests import guests as test_guests
from tests.ports import free_port
from tools import guests

DEADLINE_S = 60.0
"""For what comes soon; on a busy machine it comes later."""
LOAD_RATE = 200.0
IS_ROOT = os.geteuid() == 0
OTHER_UID = 1_800_000_000 + os.getpid()
"""Of this process alone: what a user may have of threads is counted over the whole machine."""


class Networks:
    """How guests are connected whose order does not say it."""

    default: Network = "listeners"


networks = Networks()


@pytest.fixture(params=["listeners", "namespace"])
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Network:
    """Runs a test with guests in the host's network, and once more with each in a namespace of its own."""
    if request.param == "namespace" and networking.why_not():
        pytest.skip(f"network namespaces: {networking.why_not()}")
    monkeypatch.setattr(networks, "default", request.param)
    found: Network = request.param
    return found


needs_namespaces = pytest.mark.skipif(bool(networking.why_not()), reason=f"network namespaces: {networking.why_not()}")
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root: gives a guest a uid of its own")


@functools.cache
def _code_dir() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="lowcloud-test-code-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def code_of(name: str) -> tuple[Path, engine.CodeKind]:
    """Compiled code of a test guest (`probe`, `core`) or of an example (`web-1`, …)."""
    source = test_guests.path(name) if name in test_guests.NAMES else guests.path(name)
    kind, code = engine.compile_binary(source.read_bytes())
    path = _code_dir() / f"{name}.code"
    path.write_bytes(code)
    return path, kind


def order(
    directory: Path,
    guest: str,
    program: str,
    *args: str,
    listen: dict[str, Endpoint] | None = None,
    connect_to: dict[str, Endpoint] | None = None,
    env: dict[str, str] | None = None,
    preopens: tuple[Preopen, ...] = (),
    memory_bytes: int = 64 << 20,
    cpus: tuple[int, ...] = (),
    uid: int | None = None,
    network: Network | None = None,
) -> GuestOrder:
    """`guest` is `<process>-<number>`; its output goes to `<guest>.log` in the directory."""
    path, kind = code_of(program)
    return GuestOrder(
        guest=guest,
        process=guest.rpartition("-")[0],
        code_path=str(path),
        code_kind=kind,
        args=args,
        env=env or {},
        preopens=preopens,
        listen=listen or {},
        connect=connect_to or {},
        memory_bytes=memory_bytes,
        cpus=cpus,
        output_path=str(output_path(directory, guest)),
        uid=uid,
        network=network or networks.default,
    )


def output_path(directory: Path, guest: str) -> Path:
    return directory / f"{guest}.log"


def output_of(directory: Path, guest: str) -> str:
    return output_path(directory, guest).read_text()


@contextlib.asynccontextmanager
async def supervisor(state_dir: Path) -> AsyncIterator[SupervisorClient]:
    """A supervisor of one's own. Afterwards it and every process below it must be gone."""
    client = await connect(state_dir)
    pid = client.supervisor_pid
    try:
        yield client
    finally:
        below = descendants(pid)
        await client.shut_down()
        await until(lambda: not any(is_alive(one) for one in [pid, *below]), "the supervisor's processes are gone")


def descendants(pid: int) -> list[int]:
    """Of those that end meanwhile perhaps not all."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for something to become true, looking again every few milliseconds."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.005)


def http_get(endpoint: Endpoint, path: str = "/", *, source: str | None = None) -> str:
    """Body of one request on a connection of its own. Raises OSError."""
    target = (endpoint.address, endpoint.port)
    with socket.create_connection(target, DEADLINE_S, (source, 0) if source else None) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return answer.partition(b"\r\n\r\n")[2].decode()


@contextlib.asynccontextmanager
async def loaded(endpoint: Endpoint) -> AsyncIterator[asyncio.subprocess.Process]:
    """A load generator that has begun; whatever happens, it has ended afterwards."""
    load = await swap.start_load(endpoint.address, endpoint.port, LOAD_RATE, swap.MAX_LOAD_S)
    try:
        yield load
    finally:
        if load.returncode is None:
            load.kill()
            await load.wait()


def swap_under_load(directory: Path, network_of: Callable[[int], Network | None]) -> None:
    """Twelve swaps of a web server, of which no client may notice anything. `network_of` says how each version is
    connected."""
    endpoint = Endpoint("127.0.0.1", free_port())
    swaps, gap_s = 12, 0.2

    def version(number: int) -> GuestOrder:
        program, listen = f"web-{1 + number % 2}", {"http": endpoint}
        return order(directory, f"web-{number}", program, listen=listen, network=network_of(number))

    async def scenario() -> None:
        async with supervisor(directory) as client:
            await client.spawn(version(0))
            await client.wait_ready("web-0", Ready("http", "/"), deadline_s=DEADLINE_S)
            async with loaded(endpoint) as load:
                took = await swap.swap_often(client, version, swaps, gap_s)
                load.terminate()
                seen = await swap.end_load(load)
            assert seen.errors == {}
            assert seen.failed == 0
            assert seen.served > 500
            assert len(seen.versions) == 2
            assert took.not_drained == 0

    asyncio.run(scenario())
