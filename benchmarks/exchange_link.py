"""How much of a link the agent's own server and client get out of it: one large blob, and very many small ones.

    python -m benchmarks.exchange_link [--rounds N] [--large-only]

An agent runs as its users run it, with certificates of a cloud made for this. A blob of 64 MiB that cannot be
compressed is uploaded (verified and durable before it is acknowledged) and downloaded (read from the store and verified
by the agent, verified again by the client; as a whole, and as a stream, as one host takes it from another), beside a
bare TLS socket of the same protocol, cipher and certificates, and a plain one, each from one process to another over
loopback. Then one such blob, and 16 at once, go up while the agent's memory is watched; and 100,000 small blobs go up
in one stream, beside a request each over the same connections. Wall and CPU time (of both ends), medians of rounds that
take turns, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from agent import tls
from agent.api.blobs import BlobQuery
from agent.client.client import AgentClient
from cas.digest import Digest, from_raw
from cas.exchange import frames
from cas.store import Store
from tests.ports import free_port

BLOB_BYTES = 64 << 20
BUFFER_BYTES = 256 << 10
SMALL_BLOBS = 100_000
SMALL_BYTES = 100
REQUESTS = 2_000
"""So many of the small blobs are sent with a request each; the time for all is in proportion."""
AT_ONCE = 16
WATCHED_EVERY_S = 0.005
HOST = "bench"
DEFINITION = """\
name = "bench"
[region.here]
[host.bench]
region = "here"
address = "127.0.0.1:{port}"
cores = 1
memory = "1GiB"
disk = "8GiB"
"""


class Took(NamedTuple):
    wall_s: float
    cpu_s: float


class Cloud(NamedTuple):
    operator: Path
    host: Path
    address: str
    client: AgentClient
    pid: int


# --- an agent as its users run it -----------------------------------------------------------------------------------


def lowcloud(*words: str | Path, cwd: Path) -> None:
    subprocess.run(
        [sys.executable, "-P", "-m", "tools.main", *map(str, words)], cwd=cwd, check=True, stdout=subprocess.DEVNULL
    )


@contextlib.asynccontextmanager
async def running(scratch: Path) -> AsyncIterator[Cloud]:
    port = free_port()
    cloud, state = scratch / "cloud", scratch / "state"
    lowcloud("init", cloud, cwd=scratch)
    (cloud / "cloud.toml").write_text(DEFINITION.format(port=port))
    lowcloud("host", "add", HOST, "-o", scratch / "host", cwd=cloud)
    lowcloud("host", "enroll", scratch / "host", "--state", state, cwd=cloud)
    command = [sys.executable, "-P", "-m", "tools.main", "agent", "--state", str(state), "--shared"]
    agent = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE)
    try:
        assert agent.stdout is not None
        pid = json.loads(agent.stdout.readline())["pid"]
        operator, address = cloud / ".lowcloud" / "operator", f"127.0.0.1:{port}"
        async with AgentClient(HOST, address, operator) as client:
            yield Cloud(operator, state / "credentials", address, client, pid)
            await client.shut_down(guests=True)
    finally:
        agent.terminate()
        agent.wait(30)


def cpu_of(pid: int) -> float:
    """Seconds that the threads of a process have run."""
    times = [(task / "schedstat").read_text().split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(map(int, times)) / 1e9


async def timed(cloud: Cloud, work: Callable[[], Awaitable[object]]) -> Took:
    mine, theirs, began = time.process_time(), cpu_of(cloud.pid), time.perf_counter()
    await work()
    wall_s = time.perf_counter() - began
    return Took(wall_s, time.process_time() - mine + cpu_of(cloud.pid) - theirs)


# --- sockets alone --------------------------------------------------------------------------------------------------


def through_socket(cloud: Cloud | None) -> Took:
    """64 MiB from a child to this process; with TLS where a cloud's certificates are given. Handshakes do not count."""
    data = os.urandom(BLOB_BYTES)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        child = os.fork()
        if not child:
            try:
                _send(data, listener.getsockname(), cloud)
            finally:
                os._exit(0)
        accepted, _ = listener.accept()
    if cloud is not None:
        accepted = tls.server_context(cloud.host).wrap_socket(accepted, server_side=True)
    with accepted:
        buffer = bytearray(BUFFER_BYTES)
        mine, began, left = time.process_time(), time.perf_counter(), BLOB_BYTES
        accepted.sendall(b"!")
        while left:
            left -= accepted.recv_into(buffer, min(left, BUFFER_BYTES))
        took, cpu = time.perf_counter() - began, time.process_time() - mine
        theirs = float(accepted.recv(32))
    os.waitpid(child, 0)
    return Took(took, cpu + theirs)


def _send(data: bytes, address: tuple[str, int], cloud: Cloud | None) -> None:
    made = socket.create_connection(address)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if cloud is not None:
        made = tls.client_context(cloud.operator).wrap_socket(made, server_hostname=tls.server_name(HOST))
    made.recv(1)
    view, began = memoryview(data), time.process_time()
    for start in range(0, len(data), BUFFER_BYTES):
        made.sendall(view[start : start + BUFFER_BYTES])
    made.sendall(b"%-32.6f" % (time.process_time() - began))
    made.recv(1)


# --- the comparisons ------------------------------------------------------------------------------------------------


async def large(cloud: Cloud, store: Store, rounds: int) -> dict[str, list[Took]]:
    took: dict[str, list[Took]] = {}
    for _ in range(rounds):
        digest = store.put(os.urandom(BLOB_BYTES)).digest
        took.setdefault("plain socket", []).append(through_socket(None))
        took.setdefault("TLS socket", []).append(through_socket(cloud))
        up = await timed(cloud, partial(_upload, cloud.client, store, digest))
        took.setdefault("agent, upload", []).append(up)
        down = await timed(cloud, partial(cloud.client.blob, digest))
        took.setdefault("agent, download", []).append(down)
        streamed = await timed(cloud, partial(_stream, cloud.client, digest))
        took.setdefault("agent, download as a stream", []).append(streamed)
    return took


async def _upload(client: AgentClient, store: Store, digest: Digest) -> None:
    await client.send_blobs(frames(store, [digest]))


async def _stream(client: AgentClient, digest: Digest) -> None:
    """As one host takes a blob from another: verified as it comes, and handed on without being held as a whole."""
    hasher = blake3()
    async for piece in client.blob_of_peer(digest):
        hasher.update(piece)
    if from_raw(hasher.digest()) != digest:
        raise RuntimeError("the agent sent other bytes")


async def memory(cloud: Cloud, store: Store, streams: int) -> int:
    """The most memory that the agent holds, beyond what it held before, while so many large blobs go up at once."""
    digests = [store.put(os.urandom(BLOB_BYTES)).digest for _ in range(streams)]
    before = most = held_bytes(cloud.pid)
    async with contextlib.AsyncExitStack() as stack:
        # A client has 16 connections, and one blob goes over each.
        client = await stack.enter_async_context(AgentClient(HOST, cloud.address, cloud.operator))
        sending = [asyncio.create_task(_upload(client, store, digest)) for digest in digests]
        while not all(task.done() for task in sending):
            most = max(most, held_bytes(cloud.pid))
            await asyncio.sleep(WATCHED_EVERY_S)
        await asyncio.gather(*sending)
    return most - before


def held_bytes(pid: int) -> int:
    """What a process holds itself; pages of the mapped store are the kernel's to take back."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


async def small(cloud: Cloud, store: Store) -> dict[str, Took]:
    def some(count: int) -> list[Digest]:
        return [one.digest for one in store.put_many(random.randbytes(SMALL_BYTES) for _ in range(count))]

    async def query_and_send(digests: list[Digest]) -> None:
        for start in range(0, len(digests), 20_000):
            await cloud.client.query(BlobQuery(want=tuple(digests[start : start + 20_000]), bases=()))
        await cloud.client.send_blobs(frames(store, digests))

    async def each(digests: list[Digest], one: Callable[[Digest], Awaitable[object]]) -> None:
        waiting = iter(digests)

        async def worker() -> None:
            for digest in waiting:
                await one(digest)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    every, more = some(SMALL_BLOBS), some(REQUESTS)
    found = {"one stream up": await timed(cloud, lambda: query_and_send(every))}
    posts = await timed(cloud, lambda: each(more, lambda digest: cloud.client.send_blobs(frames(store, [digest]))))
    gets = await timed(cloud, lambda: each(every[:REQUESTS], cloud.client.blob))
    scale = SMALL_BLOBS / REQUESTS
    found["a request each, up"] = Took(posts.wall_s * scale, posts.cpu_s * scale)
    found["a request each, down"] = Took(gets.wall_s * scale, gets.cpu_s * scale)
    return found


def table(took: dict[str, list[Took]]) -> Iterator[str]:
    tls_socket, plain = took["TLS socket"], took["plain socket"]
    yield "| 64 MiB | MB/s | CPU s, both ends | of the TLS socket: speed | by CPU | of a plain socket: speed |"
    yield "|---|---|---|---|---|---|"
    for name, rounds in took.items():
        wall = statistics.median(one.wall_s for one in rounds)
        cpu = statistics.median(one.cpu_s for one in rounds)
        ratios = [
            statistics.median(peer.wall_s / one.wall_s for peer, one in zip(tls_socket, rounds, strict=True)),
            statistics.median(peer.cpu_s / one.cpu_s for peer, one in zip(tls_socket, rounds, strict=True)),
            statistics.median(peer.wall_s / one.wall_s for peer, one in zip(plain, rounds, strict=True)),
        ]
        yield f"| {name} | {BLOB_BYTES / wall / 1e6:.0f} | {cpu:.3f} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |"


async def main() -> None:
    parser = argparse.ArgumentParser(description="the agent's transfers beside bare sockets")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        async with running(scratch) as cloud:
            with Store.open(scratch / "store") as store:
                print("\n".join(table(await large(cloud, store, arguments.rounds))), flush=True)
                for streams in (1, AT_ONCE):
                    held = await memory(cloud, store, streams)
                    print(f"{streams} large blobs up at once: the agent holds {held >> 20} MiB for them", flush=True)
                if arguments.large_only:
                    return
                found = await small(cloud, store)
        stream = found["one stream up"]
        for name, took in found.items():
            times, by_cpu = took.wall_s / stream.wall_s, took.cpu_s / stream.cpu_s
            print(
                f"{SMALL_BLOBS} blobs, {name}: {took.wall_s:.2f} s, CPU {took.cpu_s:.2f} s; "
                f"{times:.1f}x, CPU {by_cpu:.1f}x"
            )


if __name__ == "__main__":
    asyncio.run(main())
