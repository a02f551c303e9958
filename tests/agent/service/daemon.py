"""The daemon as it is installed: a process of its own with a real supervisor, real guests and real connections."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import agent
from agent.api.facts import ProcessStatus
from agent.api.processes import Endpoint, ProcessSpec, Ready, Update
from agent.client.client import AgentClient
from agent.client.errors import HostUnreachable
from agent.daemon import networking
from agent.daemon.networking import DEFAULT, Mode
from cas.digest import Digest
from tests.agent.service import support
from tests.agent.service.support import HOST, WAIT_S, prepare, until
from tests.ports import free_port

ROOT = Path(agent.__file__).parent.parent
GUESTS = ROOT / "tools" / "guests"
READY_S = 60.0
ANSWER_S = 30.0
"""Until the next bytes of an answer come, or a connection is made."""

needs_guests = pytest.mark.skipif(
    not (GUESTS / "web-1.wasm").exists(), reason="the example programs are not built (pip install -e . builds them)"
)
both_networks = pytest.mark.parametrize(
    "network",
    [
        "listeners",
        pytest.param(
            "namespaces",
            marks=pytest.mark.skipif(bool(networking.why_not()), reason=f"network namespaces: {networking.why_not()}"),
        ),
    ],
)
"""Once with guests in the host's network, once with each in a network namespace."""


class Daemon:
    """One host's agent process. `start` may be called again after it ended or was killed."""

    def __init__(self, state_dir: Path, before: tuple[str, ...] = (), network: Mode = DEFAULT) -> None:
        self.state_dir = state_dir
        self._network = network
        self._before = before
        """A command that runs the daemon, such as `setpriv` with its options."""
        self.credentials, self.operator = prepare(state_dir)
        self.address = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = (
            "from pathlib import Path; from agent.main import run; from agent.daemon.capacity import Limits; "
            f"run({HOST!r}, {self.address!r}, Path({str(self.state_dir)!r}), "
            f"limits=Limits(8000, 4 << 30, 4 << 30), pin=False, network={self._network!r})"
        )
        with (self.state_dir / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._before, sys.executable, "-P", "-c", program],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self.state_dir / "log").read_text()
        said = json.loads(line)
        assert (said["host"], said["address"], said["pid"]) == (HOST, self.address, self._process.pid)

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._process.wait(WAIT_S)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self) -> AgentClient:
        return AgentClient(HOST, self.address, self.operator)

    async def status(self, process: str = "web") -> ProcessStatus | None:
        async with self.client() as client:
            return next((s for s in await client.processes() if s.process == process), None)


@asynccontextmanager
async def daemon(tmp: Path, before: tuple[str, ...] = (), network: Mode = DEFAULT) -> AsyncIterator[Daemon]:
    """A daemon that runs; in the end it is shut down with everything that it runs, whatever happened."""
    host = Daemon(tmp / "state", before, network)
    await asyncio.to_thread(host.start)
    try:
        yield host
    finally:
        if not host.running:
            await asyncio.to_thread(host.start)
        try:
            async with host.client() as client:
                await client.shut_down(guests=True)
        except HostUnreachable:
            host.end()
        await until(lambda: not host.running)


def web(binary: Digest, port: int, **fields: Any) -> ProcessSpec:
    return support.web(
        binary,
        **{
            "listen": {"http": Endpoint("127.0.0.1", port)},
            "ready": Ready("http", path="/", within_s=READY_S),
            "update": Update(drain_s=2.0),
            "cores_milli": 100,
            **fields,
        },
    )


def fetch(port: int, path: str = "/") -> bytes:
    """One HTTP request over a connection of its own; the whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def fetch_often(port: int, times: int, pause_s: float) -> bytes:
    """So many requests over one connection; the last answer. Raises OSError where the connection ends before."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        for _ in range(times):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = _one_answer(connection)
            time.sleep(pause_s)
    return answer


def _one_answer(connection: socket.socket) -> bytes:
    held = b""
    while True:
        head, separator, body = held.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0)
        if separator and len(body) >= length:
            return held
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("the connection was closed before the answer")
        held += piece


class Load:
    """Requests one after the other, each over a new connection, until told to stop; every failure is kept. With
    `long_lived` each connection carries requests for half a second."""

    def __init__(self, port: int, *, long_lived: bool = False) -> None:
        self._ask = (lambda: fetch_often(port, 20, 0.025)) if long_lived else (lambda: fetch(port))
        self.served = 0
        self.failures: list[str] = []
        self.versions: set[bytes] = set()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = await asyncio.to_thread(self._ask)
            except OSError as error:
                self.failures.append(f"{time.time():.3f} {error!r}")
                continue
            if answer.startswith(b"HTTP/1.1 200 "):
                self.served += 1
                self.versions.add(answer.rpartition(b"\r\n\r\n")[2])
            else:
                self.failures.append(f"{time.time():.3f} {answer[:200]!r}")

    def stop(self) -> None:
        self._stop.set()


@asynccontextmanager
async def load(port: int, *, long_lived: bool = False) -> AsyncIterator[Load]:
    requests = Load(port, long_lived=long_lived)
    task = asyncio.create_task(requests.run())
    try:
        yield requests
    finally:
        requests.stop()
        await task


@contextmanager
def no_process_left(state_dir: Path) -> Iterator[None]:
    """Afterwards no process has this state directory in its command line."""
    yield
    assert processes_of(state_dir) == []


def processes_of(state_dir: Path, module: bytes = b"") -> list[int]:
    """Processes that name this state directory, and `module`, in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
            if str(state_dir).encode() in line and module in line:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
