"""A load generator that counts every failure: it shows whether a swap really drops nothing.

Run as a process of its own (`python -P -m tools.load`), so that its work and the deployer's do not wait for each other.
One line of JSON on stdin says what to do (`Load`); one line on stdout says that every worker has had its first answer;
when stdin closes, or after `Load.seconds`, the last line on stdout is the `Report`.

Two kinds of worker: one opens a new connection for every request, as fast as it can; the other keeps a connection for
`KEPT_CONNECTION_S` and sends requests over it, as browsers and proxies do. A request fails if it cannot connect, is
reset, waits longer than `REQUEST_TIMEOUT_S`, or gets an answer other than a complete HTTP 200 whose body matches
`Load.expect`; and if one kept connection ever answers with two versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import IO, Annotated

import msgspec
from msgspec import Meta

REQUEST_TIMEOUT_S = 10.0
KEPT_CONNECTION_S = 1.0
KEPT_PAUSE_S = 0.005
AFTER_FAILURE_S = 0.01
STOP_TIMEOUT_S = 30.0
MAX_HEAD_BYTES = 16 << 10
MAX_BODY_BYTES = 1 << 20
MAX_LATENCIES = 200_000
IP_BIND_ADDRESS_NO_PORT = 24
"""<linux/in.h>: choose the port at `connect`, where it may be one that another destination uses too."""

Monotonic = Callable[[], float]


class LoadFailed(Exception):
    """The load generator itself did not work."""

    hint = "this says nothing about the servers"


class Load(msgspec.Struct, frozen=True):
    """What to do."""

    targets: Annotated[tuple[str, ...], Meta(min_length=1)]
    """address:port, IPv4."""
    expect: str
    """A regular expression that the whole body must match; its groups `version` and `config` tell answers apart."""
    path: str = "/"
    opening: Annotated[int, Meta(ge=0, le=256)] = 4
    """Workers per target that open a connection for each request."""
    keeping: Annotated[int, Meta(ge=0, le=256)] = 2
    """Workers per target that keep their connection."""
    seconds: Annotated[float, Meta(gt=0, le=3600)] = 60.0


class Seen(msgspec.Struct, frozen=True):
    """One kind of answer from one target, and when (seconds since the load began)."""

    target: str
    version: str
    config: str
    requests: int
    first_s: float
    last_s: float


class Report(msgspec.Struct, frozen=True):
    """What came of it."""

    served: int
    failed: int
    reasons: dict[str, int]
    connections: int
    seconds: float
    latency_ms: dict[str, float]
    """`p50`, `p99`, `max`."""
    seen: tuple[Seen, ...]


class BadReply(Exception):
    """An answer that counts as a failure."""


# --- running it as a process ----------------------------------------------------------------------------------------


class LoadProcess:
    """A load generator that runs until it is asked for its report. Use as a context manager; leaving it ends it."""

    def __init__(self, load: Load) -> None:
        command = [sys.executable, "-P", "-m", "tools.load"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        try:
            self._send(load)
            self._line()
        except BaseException:
            self._end()
            raise

    def report(self) -> Report:
        """Stop the load and say what came of it. Raises LoadFailed."""
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        return msgspec.json.decode(self._line(), type=Report)

    def __enter__(self) -> LoadProcess:
        return self

    def __exit__(self, *details: object) -> None:
        self._end()

    def _send(self, load: Load) -> None:
        stdin = _pipe(self._process.stdin)
        stdin.write(msgspec.json.encode(load) + b"\n")
        stdin.flush()

    def _line(self) -> bytes:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise LoadFailed(f"the load generator ended with {self._process.wait(STOP_TIMEOUT_S)}")
        return line

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise LoadFailed("the load generator has no pipes")
    return pipe


# --- the load -------------------------------------------------------------------------------------------------------


class Tally:
    """Counts, and when each kind of answer was first and last seen."""

    def __init__(self, expect: str, workers: int, monotonic: Monotonic = time.monotonic) -> None:
        self._expect = re.compile(expect, re.DOTALL)
        self._monotonic = monotonic
        self._began = monotonic()
        self._seen: dict[tuple[str, str, str], list[float]] = {}
        self._latencies: list[float] = []
        self.served = 0
        self.connections = 0
        self.reasons: Counter[str] = Counter()
        self.warm = asyncio.Event()
        """Every worker has had an answer, or something has failed."""
        self._cold = set(range(workers))

    def warmed(self, worker: int) -> None:
        self._cold.discard(worker)
        if not self._cold:
            self.warm.set()

    def fail(self, reason: str) -> None:
        self.reasons[reason] += 1
        self.warm.set()

    def serve(self, target: str, body: str, took_s: float) -> tuple[str, str]:
        """Count an answer; its version and configuration. Raises BadReply for a body that is not expected."""
        match = self._expect.fullmatch(body)
        if match is None:
            raise BadReply(f"unexpected body {body[:80]!r}")
        groups = match.groupdict()
        key = (target, groups.get("version") or "", groups.get("config") or "")
        now = self._monotonic() - self._began
        count, first, _ = self._seen.get(key, (0.0, now, now))
        self._seen[key] = [count + 1, first, now]
        self.served += 1
        if len(self._latencies) < MAX_LATENCIES:
            self._latencies.append(took_s)
        return key[1], key[2]

    def report(self) -> Report:
        ordered = sorted(self._latencies) or [0.0]

        def at(share: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3)

        return Report(
            served=self.served,
            failed=self.reasons.total(),
            reasons=dict(self.reasons),
            connections=self.connections,
            seconds=round(self._monotonic() - self._began, 3),
            latency_ms={"p50": at(0.5), "p99": at(0.99), "max": at(1.0)},
            seen=tuple(
                Seen(*key, int(count), round(first, 3), round(last, 3))
                for key, (count, first, last) in sorted(self._seen.items(), key=lambda item: item[1][1])
            ),
        )


class Worker:
    """One client of one target."""

    def __init__(self, number: int, target: str, load: Load, tally: Tally, *, keeps: bool) -> None:
        host, _, port = target.rpartition(":")
        self._address = (host, int(port))
        self._source = f"127.77.{number // 250}.{number % 250 + 1}" if host.startswith("127.") else None
        self._number = number
        self._target = target
        self._tally = tally
        self._keeps = keeps
        closing = "" if keeps else "Connection: close\r\n"
        self._request = f"GET {load.path} HTTP/1.1\r\nHost: {target}\r\n{closing}\r\n".encode()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._connection(stop)
            except (OSError, EOFError, ValueError, BadReply, asyncio.LimitOverrunError) as error:
                self._tally.fail(_reason(error))
                await asyncio.sleep(AFTER_FAILURE_S)

    async def _connection(self, stop: asyncio.Event) -> None:
        """One connection: one request, or many until it is old."""
        began = asked = time.monotonic()
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            reader, writer = await self._connect()
        self._tally.connections += 1
        try:
            first = None
            while True:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    body = await self._ask(reader, writer)
                now = time.monotonic()
                answer = self._tally.serve(self._target, body, now - asked)
                self._tally.warmed(self._number)
                if first not in (None, answer):
                    raise BadReply("one connection answered with two versions")
                first = answer
                if not self._keeps or stop.is_set() or now - began > KEPT_CONNECTION_S:
                    return
                await asyncio.sleep(KEPT_PAUSE_S)
                asked = time.monotonic()
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Each worker of a loopback target has a source address of its own, so that ports never run out."""
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._source:
                made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                made.bind((self._source, 0))
            await asyncio.get_running_loop().sock_connect(made, self._address)
            return await asyncio.open_connection(sock=made, limit=MAX_HEAD_BYTES)
        except BaseException:
            made.close()
            raise

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = head.split(" ", 2)[1:2]
        if status != ["200"]:
            raise BadReply(f"status {' '.join(status) or 'missing'}")
        length = re.search(r"\r\ncontent-length: *(\d{1,9})\r\n", head)
        if length is None or int(length[1]) > MAX_BODY_BYTES:
            raise BadReply("no usable content-length")
        return (await reader.readexactly(int(length[1]))).decode(errors="replace")


def _reason(error: BaseException) -> str:
    if isinstance(error, BadReply):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def generate(load: Load, stop: asyncio.Event, on_ready: Callable[[], None]) -> Report:
    """Put load on the targets until `stop`, or for `load.seconds`."""
    kinds = [False] * load.opening + [True] * load.keeping
    tally = Tally(load.expect, len(kinds) * len(load.targets))
    numbers = itertools.count()
    workers = [Worker(next(numbers), target, load, tally, keeps=keeps) for target in load.targets for keeps in kinds]
    tasks = [asyncio.create_task(worker.run(stop)) for worker in workers]
    announced = asyncio.create_task(_announce(tally, on_ready))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), load.seconds)
    stop.set()
    await asyncio.gather(*tasks)
    tally.warm.set()
    await announced
    return tally.report()


async def _announce(tally: Tally, on_ready: Callable[[], None]) -> None:
    await tally.warm.wait()
    on_ready()


# --- the process ----------------------------------------------------------------------------------------------------


async def _main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.readline(), type=Load)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), stop.set)  # anything more on stdin, or its end
    report = await generate(load, stop, lambda: _say(b'{"ready":true}'))
    loop.remove_reader(sys.stdin.fileno())
    _say(msgspec.json.encode(report))


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(_main())
