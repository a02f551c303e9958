"""How many requests a guest serves under the supervisor, as a ratio to the same guest without it.

The load is `wrk` (Debian has it). The bare guest is the same compiled code in a Python of its own: no supervisor, no
filter, no selector. Both take turns, because the machine has other work; beside requests per second stand requests per
second of the server's own CPU, which other work does not change.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from agent.api.processes import Ready
from agent.runtime import Network
from agent.supervisor.client import SupervisorClient
from benchmarks import start_peers
from benchmarks.served import Served
from benchmarks.start import cpu_ms

CONNECTIONS = 16
ROUND_S = 1
ROUNDS = 8
READY_S = 20.0
BARE_PORT = 18481
PORT = 18482
CLOSE = ("-H", "Connection: close")


class Rate(NamedTuple):
    per_s: float
    per_cpu_s: float


async def compare(
    runtime: SupervisorClient, directory: Path, program: Served, network: Network, wrk: str
) -> dict[str, dict[str, float]]:
    """Ratios, supervised to bare; connections kept, and (where the server closes when asked) one per request."""
    order = program.order(directory, 0, PORT, network)
    state = await runtime.spawn(order)
    await runtime.wait_ready(order.guest, Ready("http", program.path), deadline_s=READY_S)
    command = start_peers.cold_interpreter(program).command(BARE_PORT)
    nothing = asyncio.subprocess.DEVNULL
    bare = await asyncio.create_subprocess_exec(*command, stdout=nothing, stderr=nothing, start_new_session=True)
    try:
        await asyncio.to_thread(start_peers.wait_reply, BARE_PORT)
        found = {"kept": await _compare(wrk, (), (PORT, state.pid), (BARE_PORT, bare.pid))}
        if program.closes:
            found["one request each"] = await _compare(wrk, CLOSE, (PORT, state.pid), (BARE_PORT, bare.pid))
    finally:
        bare.kill()
        await bare.wait()
        await runtime.kill(order.guest)
        await runtime.forget(order.guest)
    return found


async def _compare(wrk: str, options: Sequence[str], ours: tuple[int, int], bare: tuple[int, int]) -> dict[str, float]:
    rates: list[tuple[Rate, Rate]] = []
    for number in range(ROUNDS):
        turns = (ours, bare) if number % 2 else (bare, ours)
        first, second = [await asyncio.to_thread(measure, wrk, options, *turn) for turn in turns]
        rates.append((first, second) if number % 2 else (second, first))

    def ratio(of: Callable[[Rate], float]) -> float:
        return round(statistics.median(of(a) / of(b) for a, b in rates), 3)

    return {
        "ratio": ratio(lambda rate: rate.per_s),
        "ratio by CPU": ratio(lambda rate: rate.per_cpu_s),
        "requests_s": round(statistics.median(rate.per_s for rate, _ in rates)),
    }


def measure(wrk: str, options: Sequence[str], port: int, pid: int) -> Rate:
    """Load one server for a round. Raises RuntimeError where a request failed."""
    before = cpu_ms(pid)
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S}s", *options, f"http://127.0.0.1:{port}/"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used_s = (cpu_ms(pid) - before) / 1e3
    if "Socket errors" in said or "Non-2xx" in said:
        raise RuntimeError(f"requests failed:\n{said}")
    counted = re.search(r"(\d+) requests in ([\d.]+)s", said)
    if counted is None:
        raise RuntimeError(f"wrk says nothing of requests:\n{said}")
    return Rate(int(counted[1]) / float(counted[2]), int(counted[1]) / used_s)
