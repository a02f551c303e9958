"""Swap a web server again and again under load, and count what clients notice: it must be nothing.

    python -m benchmarks.swap [--network both] [--swaps 200] [--rate 300] [--python FILE] [--js FILE] [--wrk FILE]

The load comes from a process of its own: new connections at a fixed rate, whether or not earlier ones have been
answered (open loop), and clients that keep their connection for a while and send request after request. A failure is a
connection that is refused, reset or closed before its answer, an answer that is not 200, or a kept connection that
changes its version. The same load without swaps comes first, for comparison; with `--wrk`, the throughput of each guest
as a ratio to the bare one (`throughput`). All of it with listeners on the host, and with network namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.api.processes import Ready
from agent.runtime import GuestOrder, Network, Runtime
from agent.supervisor.client import connect
from benchmarks import served, throughput
from benchmarks.served import Served
from benchmarks.start import summary

KEPT_CONNECTIONS = 8
KEPT_FOR_S = 0.8
KEPT_PAUSE_S = 0.01
ANSWER_WITHIN_S = 10.0
DRAIN_S = 10.0
READY_S = 20.0
PORT = 18471
CALM_S = 5.0
MAX_LOAD_S = 300.0
BEGUN = b"begun\n"


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


async def put_load(address: str, port: int, rate: float, seconds: float, begun: Callable[[], object]) -> Load:
    """Load one server for a time, or until the signal TERM. `begun` is called before the first request, when that
    signal is listened to."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    load, errors, versions = Load(), Counter[str](), Counter[str]()
    begun()
    end = time.monotonic() + seconds
    kept = [
        asyncio.create_task(_keep_asking(address, port, end, load, errors, versions)) for _ in range(KEPT_CONNECTIONS)
    ]
    single: set[asyncio.Task[None]] = set()
    start, number = time.monotonic(), 0
    while time.monotonic() < end and not stopped.is_set():
        task = asyncio.create_task(_ask_once(address, port, load, errors, versions))
        single.add(task)
        task.add_done_callback(single.discard)
        number += 1
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
    if stopped.is_set():
        for one in kept:
            one.cancel()
    await asyncio.gather(*single)
    await asyncio.gather(*kept, return_exceptions=True)
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


async def start_load(address: str, port: int, rate: float, seconds: float) -> asyncio.subprocess.Process:
    """`put_load` in a process of its own, which has begun."""
    arguments = ["--load", f"{address},{port}", "--rate", str(rate), "--seconds", str(seconds)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.swap", *arguments, stdout=asyncio.subprocess.PIPE
    )
    if process.stdout is None or await process.stdout.readline() != BEGUN:
        raise RuntimeError("the load generator did not begin")
    return process


def _say_begun() -> None:
    sys.stdout.buffer.write(BEGUN)
    sys.stdout.buffer.flush()


async def end_load(process: asyncio.subprocess.Process) -> Load:
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load generator ended with code {process.returncode}")
    return msgspec.json.decode(said, type=Load)


async def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything in a directory of its own, program after program."""
    with tempfile.TemporaryDirectory(prefix="lowcloud-swap-") as name:
        directory = Path(name)
        programs = served.compile_all(options, directory)
        runtime = await connect(directory)
        try:
            found = {}
            for network, program in itertools.product(served.networks_of(options), programs):
                swaps = options.swaps if program.name == "c" else options.swaps_of_others
                numbers = await swap_one(runtime, directory, program, network, swaps, options.rate, options.gap)
                if options.wrk:
                    numbers["throughput"] = await throughput.compare(runtime, directory, program, network, options.wrk)
                found[f"{program.name} {network}"] = numbers
            return found
        finally:
            await runtime.shut_down()


async def swap_one(
    runtime: Runtime, directory: Path, program: Served, network: Network, swaps: int, rate: float, gap_s: float
) -> dict[str, Any]:
    def order(number: int) -> GuestOrder:
        return program.order(directory, number, PORT, network)

    first = order(0)
    await runtime.spawn(first)
    await runtime.wait_ready(first.guest, Ready("http", program.path), deadline_s=READY_S)
    calm = await end_load(await start_load("127.0.0.1", PORT, rate, CALM_S))
    loading = await start_load("127.0.0.1", PORT, rate, MAX_LOAD_S)
    took = await swap_often(runtime, order, swaps, gap_s, program.path)
    loading.terminate()
    load = await end_load(loading)
    await runtime.kill(order(swaps).guest)
    await runtime.forget(order(swaps).guest)
    steps = {step: summary(getattr(took, step)) for step in ("spawn", "ready", "flip", "drain")}
    return {
        "swaps": swaps,
        "served": load.served,
        "failed": load.failed + calm.failed,
        "errors": load.errors | calm.errors,
        "kept_connections": load.kept_connections,
        "not_drained": took.not_drained,
        "ms": steps,
        "p99_ms": {"calm": percentile(calm.latencies_ms, 0.99), "swapping": percentile(load.latencies_ms, 0.99)},
        "median_ms": {"calm": percentile(calm.latencies_ms, 0.5), "swapping": percentile(load.latencies_ms, 0.5)},
    }


def percentile(values: list[float], part: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * part))], 2)


def main() -> int:
    parser = argparse.ArgumentParser(description="swaps under load")
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--swaps-of-others", type=int, default=40, help="of the guests in Python and JavaScript")
    served.add_options(parser)
    served.add_network(parser)
    parser.add_argument("--wrk", help="the command wrk: measures throughput as well")
    parser.add_argument("--rate", type=float, default=300.0, help="new connections per second")
    parser.add_argument("--gap", type=float, default=0.2, help="seconds between swaps")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=CALM_S, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        address, _, port = options.load.partition(",")
        load = asyncio.run(put_load(address, int(port), options.rate, options.seconds, _say_begun))
        sys.stdout.write(msgspec.json.encode(load).decode())
        return 0
    result = asyncio.run(benchmark(options))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return int(any(of["failed"] for of in result.values()))


if __name__ == "__main__":
    sys.exit(main())
