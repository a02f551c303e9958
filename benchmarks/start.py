"""How long from the call to a guest's first reply, and how much memory a guest costs.

    python -m benchmarks.start [--starts 50] [--guests 50]

Compiled code is cached, the supervisor runs: what a restart of a process pays. Three clocks start with the call:
`spawned` (the call returned: the sandbox is closed), `ready` (a probe was answered), `replied` (our own first request
was). Beside it a fresh interpreter that loads the same compiled code, as a start without a zygote would.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.api import Endpoint, Ready
from agent.runtime import GuestOrder, Runtime
from agent.sandbox import engine
from agent.supervisor.client import connect
from tools import guests

FIRST_PORT = 18500
READY_S = 20.0
COLD_STARTS = 5


def order_of(directory: Path, code: Path, number: int, port: int) -> GuestOrder:
    return GuestOrder(
        guest=f"web{number}-1",
        process=f"web{number}",
        code_path=str(code),
        code_kind="component",
        args=("--port", str(port)),
        env={},
        preopens=(),
        listen={"http": Endpoint("127.0.0.1", port)},
        connect={},
        memory_bytes=64 << 20,
        cpus=(),
        output_path=str(directory / "web.log"),
    )


async def first_reply(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def time_starts(runtime: Runtime, directory: Path, code: Path, starts: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"spawned": [], "ready": [], "replied": []}
    for number in range(starts):
        order = order_of(directory, code, number, FIRST_PORT)
        begun = time.perf_counter()
        await runtime.spawn(order)
        times["spawned"].append((time.perf_counter() - begun) * 1e3)
        await runtime.wait_ready(order.guest, Ready("http", "/"), deadline_s=READY_S)
        times["ready"].append((time.perf_counter() - begun) * 1e3)
        await first_reply(FIRST_PORT)
        times["replied"].append((time.perf_counter() - begun) * 1e3)
        await runtime.kill(order.guest)
        await runtime.forget(order.guest)
    return times


async def memory_of_many(runtime: Runtime, directory: Path, code: Path, count: int) -> list[int]:
    """Private memory of each of so many guests that run at once, in KiB."""
    orders = [order_of(directory, code, 1000 + number, FIRST_PORT + 1 + number) for number in range(count)]
    pids = []
    for order in orders:
        state = await runtime.spawn(order)
        await runtime.wait_ready(order.guest, Ready("http", "/"), deadline_s=READY_S)
        pids.append(state.pid)
    private = [private_kib(pid) for pid in pids]
    for order in orders:
        await runtime.kill(order.guest)
        await runtime.forget(order.guest)
    return private


def private_kib(pid: int) -> int:
    fields = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(f[1]) for f in fields if f[0] in ("Private_Clean:", "Private_Dirty:"))


def time_cold_starts(code: Path) -> list[float]:
    """A fresh interpreter each: imports, engine, code, and an empty run of it."""
    program = f"""
from agent.sandbox.engine import Engine, Program
engine = Engine()
program = Program(("web", "--help"), {{}}, (), 1 << 26, False, False)
engine.prepare(engine.load({str(code)!r}, "component"), program).run(lambda: None)
"""
    times = []
    for _ in range(COLD_STARTS):
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        times.append((time.perf_counter() - begun) * 1e3)
    return times


async def benchmark(starts: int, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lowcloud-start-") as name:
        directory = Path(name)
        code = directory / "web.code"
        code.write_bytes(engine.compile_binary(guests.path("web-1").read_bytes())[1])
        runtime = await connect(directory)
        try:
            await time_starts(runtime, directory, code, 2)
            times = await time_starts(runtime, directory, code, starts)
            private = await memory_of_many(runtime, directory, code, count)
        finally:
            await runtime.shut_down()
        cold = await asyncio.to_thread(time_cold_starts, code)
    summary = {step: {"median": median(values), "p95": percentile(values, 0.95)} for step, values in times.items()}
    return {
        "starts": starts,
        "ms": summary,
        "cold_interpreter_ms": median(cold),
        "guests_at_once": count,
        "private_kib_per_guest": {"median": median([float(kib) for kib in private]), "max": max(private)},
    }


def median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def percentile(values: list[float], part: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * part))], 2)


def main() -> int:
    parser = argparse.ArgumentParser(description="start to first reply")
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--guests", type=int, default=50, help="how many at once for the memory of each")
    options = parser.parse_args()
    sys.stdout.write(json.dumps(asyncio.run(benchmark(options.starts, options.guests)), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
