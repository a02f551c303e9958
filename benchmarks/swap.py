"""Swap a web server again and again under load, and count what clients notice: it must be nothing.

    python -m benchmarks.swap [--swaps 50] [--rate 300]

The load comes from a process of its own: new connections at a fixed rate, whether or not earlier ones have been
answered (open loop), and clients that keep their connection for a while and send request after request. A failure is a
connection that is refused, reset or closed before its answer, an answer that is not 200, or a kept connection that
changes its version. The same load without swaps comes first, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.api import Endpoint, Ready
from agent.runtime import GuestOrder, Runtime
from agent.sandbox import engine
from agent.supervisor.client import connect
from tools import guests

KEPT_CONNECTIONS = 8
KEPT_FOR_S = 0.8
KEPT_PAUSE_S = 0.01
ANSWER_WITHIN_S = 10.0
DRAIN_S = 10.0
READY_S = 20.0


class Load(msgspec.Struct):
    """What the clients saw."""

    served: int = 0
    failed: int = 0
    kept_connections: int = 0
    latencies_ms: list[float] = []
    errors: dict[str, int] = {}
    versions: dict[str, int] = {}


class Swaps(msgspec.Struct):
    """Milliseconds of each step, one value per swap."""

    spawn: list[float] = []
    ready: list[float] = []
    flip: list[float] = []
    drain: list[float] = []
    not_drained: int = 0


# --- load -----------------------------------------------------------------------------------------------------------


async def put_load(address: str, port: int, rate: float, seconds: float) -> Load:
    """Load one server for a time."""
    load, errors, versions = Load(), Counter[str](), Counter[str]()
    end = time.monotonic() + seconds
    kept = [
        asyncio.create_task(_keep_asking(address, port, end, load, errors, versions)) for _ in range(KEPT_CONNECTIONS)
    ]
    single: set[asyncio.Task[None]] = set()
    start, number = time.monotonic(), 0
    while time.monotonic() < end:
        task = asyncio.create_task(_ask_once(address, port, load, errors, versions))
        single.add(task)
        task.add_done_callback(single.discard)
        number += 1
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
    await asyncio.gather(*kept, *single)
    return msgspec.structs.replace(load, errors=dict(errors), versions=dict(versions))


async def _ask_once(address: str, port: int, load: Load, errors: Counter[str], versions: Counter[str]) -> None:
    begun = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_connection(address, port)
            version = await _request(reader, writer)
            writer.close()
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        load.failed += 1
        errors[f"single: {error!r}"] += 1
    else:
        load.served += 1
        versions[version] += 1
    load.latencies_ms.append((time.monotonic() - begun) * 1e3)


async def _keep_asking(
    address: str, port: int, end: float, load: Load, errors: Counter[str], versions: Counter[str]
) -> None:
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection(address, port)
            load.kept_connections += 1
            until, first = time.monotonic() + KEPT_FOR_S, ""
            while time.monotonic() < min(until, end):
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    version = await _request(reader, writer)
                if first and version != first:
                    raise ValueError(f"a kept connection went from {first} to {version}")
                first = version
                load.served += 1
                versions[version] += 1
                await asyncio.sleep(KEPT_PAUSE_S)
            writer.close()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            load.failed += 1
            errors[f"kept: {error!r}"] += 1


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """One request; the server's version."""
    writer.write(b"GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, _, fields = head.partition("\r\n")
    if " 200 " not in status:
        raise ValueError(f"answered {status!r}")
    named = dict(line.lower().split(": ", 1) for line in fields.split("\r\n") if ": " in line)
    await reader.readexactly(int(named["content-length"]))
    return named["server"]


# --- swaps ----------------------------------------------------------------------------------------------------------


async def swap_often(
    runtime: Runtime, order: Callable[[int], GuestOrder], swaps: int, gap_s: float, path: str | None = "/"
) -> Swaps:
    """Number 0 serves; swap to 1, 2, … Each old one is drained and ended beside what follows."""
    took = Swaps([], [], [], [])
    ending: list[asyncio.Task[None]] = []

    async def end(guest: str) -> None:
        ms, done = await _timed(runtime.drain(guest, deadline_s=DRAIN_S))
        took.drain.append(ms)
        took.not_drained += not done
        await runtime.kill(guest)

    for number in range(1, swaps + 1):
        await asyncio.sleep(gap_s)
        new, old = order(number), order(number - 1).guest
        took.spawn.append((await _timed(runtime.spawn(new)))[0])
        ready = Ready(next(iter(new.listen)), path)
        took.ready.append((await _timed(runtime.wait_ready(new.guest, ready, deadline_s=READY_S)))[0])
        took.flip.append((await _timed(runtime.flip(new.guest)))[0])
        ending.append(asyncio.create_task(end(old)))
    await asyncio.gather(*ending)
    return took


async def _timed(call: Awaitable[Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = await call
    return (time.perf_counter() - begun) * 1e3, result


async def load_process(address: str, port: int, rate: float, seconds: float) -> Load:
    """`put_load` in a process of its own."""
    arguments = ["--load", f"{address},{port}", "--rate", str(rate), "--seconds", str(seconds)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.swap", *arguments, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load generator ended with code {process.returncode}")
    return msgspec.json.decode(said, type=Load)


async def benchmark(swaps: int, rate: float, gap_s: float) -> dict[str, Any]:
    """Everything in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="lowcloud-swap-") as name:
        directory = Path(name)
        codes = []
        for program in ("web-1", "web-2"):
            _, code = engine.compile_binary(guests.path(program).read_bytes())
            codes.append(directory / f"{program}.code")
            codes[-1].write_bytes(code)
        endpoint = Endpoint("127.0.0.1", 18471)

        def order(number: int) -> GuestOrder:
            return GuestOrder(
                guest=f"web-{number}",
                process="web",
                code_path=str(codes[number % 2]),
                code_kind="component",
                args=("--port", str(endpoint.port)),
                env={},
                preopens=(),
                listen={"http": endpoint},
                connect={},
                memory_bytes=64 << 20,
                cpus=(),
                output_path=str(directory / "web.log"),
            )

        runtime = await connect(directory)
        try:
            await runtime.spawn(order(0))
            await runtime.wait_ready("web-0", Ready("http", "/"), deadline_s=READY_S)
            calm = await load_process(endpoint.address, endpoint.port, rate, 5.0)
            seconds = swaps * (gap_s + 0.03) + 2.0
            loading = asyncio.create_task(load_process(endpoint.address, endpoint.port, rate, seconds))
            took = await swap_often(runtime, order, swaps, gap_s)
            load = await loading
        finally:
            await runtime.shut_down()
    return {
        "swaps": swaps,
        "served": load.served,
        "failed": load.failed + calm.failed,
        "errors": load.errors | calm.errors,
        "kept_connections": load.kept_connections,
        "not_drained": took.not_drained,
        "median_ms": {
            "spawn": round(statistics.median(took.spawn), 2),
            "ready": round(statistics.median(took.ready), 2),
            "flip": round(statistics.median(took.flip), 3),
            "drain": round(statistics.median(took.drain), 1),
        },
        "p99_ms": {"calm": percentile(calm.latencies_ms, 0.99), "swapping": percentile(load.latencies_ms, 0.99)},
    }


def percentile(values: list[float], part: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * part))], 2)


def main() -> int:
    parser = argparse.ArgumentParser(description="swaps under load")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--rate", type=float, default=300.0, help="new connections per second")
    parser.add_argument("--gap", type=float, default=0.2, help="seconds between swaps")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=5.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        address, _, port = options.load.partition(",")
        load = asyncio.run(put_load(address, int(port), options.rate, options.seconds))
        sys.stdout.write(msgspec.json.encode(load).decode())
        return 0
    result = asyncio.run(benchmark(options.swaps, options.rate, options.gap))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
