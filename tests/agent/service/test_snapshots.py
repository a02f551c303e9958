"""Snapshots of volumes by the daemon as it is installed; the key-value server is the guest that writes meanwhile."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from agent.api.answers import Outcome, Reason, SnapshotFacts
from agent.api.blobs import BlobsWanted
from agent.api.calls import Call, CreateVolume, DeleteVolume, Envelope, RestoreVolume, SnapshotVolume, Start, Stop
from agent.api.journal import Event
from agent.api.processes import Endpoint, ProcessSpec, Ready, Update, spec_digest
from agent.client.errors import CallRefused, HostUnreachable
from agent.daemon.snapshots.kept import load, protected
from agent.daemon.snapshots.looking import TICK_NS
from cas.digest import Digest
from cas.exchange import Receiver, frames
from cas.memory import MemoryStore
from cas.store import Store
from cas.tree import blobs_of, decode_snapshot, pieces_of, read_tree
from tests.agent.runtime.support import needs_root
from tests.agent.service.daemon import ANSWER_S, GUESTS, READY_S, Daemon, daemon, needs_guests, no_process_left
from tests.agent.service.support import ROUNDS, put, run, until
from tests.ports import free_port

MIB = 1 << 20
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")

pytestmark = needs_guests


class Kv:
    """A connection to the key-value server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
        self._lines = self._socket.makefile("rb")

    def ask(self, line: str) -> str:
        self._socket.sendall(f"{line}\n".encode())
        return self._lines.readline().decode().rstrip("\n")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def kv(binary: Digest, port: int, volume: str = "kv-data") -> ProcessSpec:
    return ProcessSpec(
        name="kv",
        binary=binary,
        listen={"kv": Endpoint("127.0.0.1", port)},
        volume={"/data": volume},
        ready=Ready("kv", within_s=READY_S),
        update=Update(drain_s=1.0),
        cores_milli=100,
    )


async def ask(host: Daemon, call: Call) -> Outcome:
    async with host.client() as client:
        return await client.call(Envelope(call=call))


async def snapshot(host: Daemon, volume: str = "kv-data") -> SnapshotFacts:
    outcome = await ask(host, SnapshotVolume(volume, secrets.token_hex(8)))
    assert isinstance(outcome.snapshot, SnapshotFacts)
    return outcome.snapshot


async def refused(host: Daemon, call: Call) -> Reason:
    with pytest.raises(CallRefused) as caught:
        await ask(host, call)
    return caught.value.refusal.reason


def restoring(digest: Digest, volume: str = "kv-data", *, replace: bool = False) -> RestoreVolume:
    return RestoreVolume(volume, digest, 16 * MIB, secrets.token_hex(8), replace)


@asynccontextmanager
async def kv_host(tmp: Path, before: tuple[str, ...] = ()) -> AsyncIterator[tuple[Daemon, ProcessSpec, int]]:
    """A host that runs the key-value server on a volume."""
    (tmp / "state").mkdir(parents=True)
    (binary,) = put(tmp / "state", (GUESTS / "kv.wasm").read_bytes())
    port = free_port()
    with no_process_left(tmp / "state"):
        async with daemon(tmp, before) as host:
            spec = kv(binary, port)
            await ask(host, CreateVolume("kv-data", 16 * MIB))
            await ask(host, Start(spec))
            yield host, spec, port


def everything(port: int, names: int) -> dict[str, str]:
    client = Kv(port)
    try:
        return {f"k{n}": client.ask(f"GET k{n}") for n in range(names)}
    finally:
        client.close()


def fill(port: int, first: int, last: int) -> None:
    client = Kv(port)
    try:
        for n in range(first, last):
            assert client.ask(f"SET k{n} value {n}") == "OK"
    finally:
        client.close()


@asynccontextmanager
async def writing(port: int) -> AsyncIterator[list[int]]:
    """Writes that never stop: the list holds the numbers that were acknowledged."""
    acknowledged: list[int] = []
    ended = asyncio.Event()

    def write() -> None:
        client = Kv(port)
        try:
            for n in itertools.count():
                if ended.is_set():
                    return
                assert client.ask(f"SET k{n} value {n}") == "OK"
                acknowledged.append(n)
        finally:
            client.close()

    task = asyncio.create_task(asyncio.to_thread(write))
    try:
        yield acknowledged
    finally:
        ended.set()
        await task


def test_a_snapshot_is_one_instant_of_a_process_that_goes_on_and_answers_the_same_elsewhere() -> None:
    async def work(tmp: Path) -> None:
        async with kv_host(tmp / "one") as (one, _, port), kv_host(tmp / "two") as (two, spec, other):
            async with writing(port) as acknowledged:
                await until(lambda: len(acknowledged) > 200)
                before = len(acknowledged)
                facts = await snapshot(one)
                after = len(acknowledged)
                await until(lambda: len(acknowledged) > after + 50)  # it goes on
            assert facts.pause_ms > 0
            await carry(one, two, facts.snapshot)
            assert await refused(two, restoring(facts.snapshot)) is Reason.UNEXPECTED_STATE
            assert await refused(two, restoring(facts.snapshot, replace=True)) is Reason.IN_USE
            await ask(two, Stop("kv", expect=spec_digest(spec)))
            wish = restoring(facts.snapshot, replace=True)
            assert (await ask(two, wish)).changed
            assert not (await ask(two, wish)).changed
            await ask(two, Start(spec))
            found = await asyncio.to_thread(everything, other, after + 100)
            kept = [answer != "NONE" for answer in found.values()]
            assert before <= sum(kept) <= after + 1
            assert kept == sorted(kept, reverse=True), "what was written first is there"
            assert all(answer in (f"VALUE value {name[1:]}", "NONE") for name, answer in found.items())

            async with two.client() as client:
                told = [e.detail for e in await client.journal() if e.event is Event.VOLUME_CREATED]
            assert f"restored from {facts.snapshot}, kv-data@fra1 of " in told[-1]

    run(work)


async def carry(one: Daemon, two: Daemon, digest: Digest) -> None:
    """A snapshot's blobs from host to host, through the routes that a deployer uses."""
    store = MemoryStore()
    async with one.client() as source, two.client() as target:
        store.put(await source.blob(digest))
        head = decode_snapshot(store.read(digest))
        for wanted in (head.pages, None):
            blobs = wanted or tuple(dict.fromkeys(pieces_of(read_tree(head, store.read))))
            with Receiver(store) as receiver:
                async for part in source.take(BlobsWanted(blobs)):
                    receiver.feed(part)
                receiver.finish()
        await target.send_blobs(frames(store, list(store.digests())))


def test_the_next_snapshot_reads_and_stores_only_what_is_new() -> None:
    async def work(tmp: Path) -> None:
        async with kv_host(tmp) as (host, spec, port):
            await asyncio.to_thread(fill, port, 0, 3000)
            first = await snapshot(host)
            assert first.stored_bytes > 10_000
            await until_settled()
            second = await snapshot(host)
            third = await snapshot(host)
            assert third.read_bytes == 0, "nothing has changed, so nothing is read"
            assert third.stored_bytes < 1000
            await asyncio.to_thread(fill, port, 3000, 3010)
            fourth = await snapshot(host)
            assert 0 < fourth.stored_bytes < first.stored_bytes / 10
            assert len({one.snapshot for one in (first, second, third, fourth)}) == 4

            await ask(host, Stop("kv", expect=spec_digest(spec)))
            stopped = await snapshot(host)
            assert (stopped.pause_ms, stopped.read_bytes) == (0, 0)

            # The host keeps the last three, and a volume that is deleted keeps none.
            await collect_leaves(host, (third, fourth, stopped), gone=(first, second))
            await ask(host, DeleteVolume("kv-data"))
            await collect_leaves(host, (), gone=(stopped,))

    run(work)


async def collect_leaves(host: Daemon, kept: Iterable[SnapshotFacts], *, gone: Iterable[SnapshotFacts]) -> None:
    """A collection leaves whole what is kept, a day later, when no lease of the snapshots is left."""
    host.end(signal.SIGTERM)
    with Store.open(host.state_dir / "store", clock=lambda: time.time() + 2 * 86400) as store:
        home = host.state_dir / "volumes" / "kv-data"
        store.collect(protected(store, [one.facts.snapshot for one in load(home)]))
        for facts in kept:
            assert store.missing(blobs_of(facts.snapshot, store.read)) == []
        assert store.missing([facts.snapshot for facts in gone]) == [facts.snapshot for facts in gone]
    await asyncio.to_thread(host.start)


async def until_settled() -> None:
    """So long ago that the kernel's clock for files has ticked."""
    await asyncio.sleep(TICK_NS / 1e9)


# --- kill -9 --------------------------------------------------------------------------------------------------------


def test_an_agent_killed_at_any_moment_of_a_snapshot_leaves_its_guest_running_and_its_volume_whole() -> None:
    async def work(tmp: Path) -> None:
        chance = random.Random(11)
        async with kv_host(tmp) as (host, _, port):
            async with writing(port) as acknowledged:
                whole = (await snapshot(host)).pause_ms / 1000
                for _ in range(3 * ROUNDS):
                    call = asyncio.create_task(snapshot(host))
                    await asyncio.sleep(chance.uniform(0.1, 0.5 + whole))
                    host.end(signal.SIGKILL)
                    before = len(acknowledged)
                    await until(functools.partial(lambda served: len(acknowledged) > served + 20, before))
                    with suppress(HostUnreachable):
                        await call
                    await until(lambda: workers_of(host) == [])
                    await asyncio.to_thread(host.start)
                facts = await snapshot(host)
            assert facts.read_bytes >= 0
            found = await asyncio.to_thread(everything, port, len(acknowledged))
            assert "NONE" not in found.values()

    run(work)


def test_an_agent_killed_at_any_moment_of_a_restoring_leaves_the_old_volume_or_the_new_one() -> None:
    async def work(tmp: Path) -> None:
        chance = random.Random(12)
        async with kv_host(tmp) as (host, spec, port):
            await asyncio.to_thread(fill, port, 0, 500)
            facts = await snapshot(host)
            await asyncio.to_thread(fill, port, 500, 600)
            await ask(host, Stop("kv", expect=spec_digest(spec)))
            for _ in range(3 * ROUNDS):
                call = asyncio.create_task(ask(host, restoring(facts.snapshot, replace=True)))
                await asyncio.sleep(chance.uniform(0.05, 0.6))
                host.end(signal.SIGKILL)
                with suppress(HostUnreachable, CallRefused):
                    await call
                await asyncio.to_thread(host.start)
                assert sorted(path.name for path in (host.state_dir / "volumes").iterdir()) == ["kv-data"]
                await ask(host, Start(spec))
                found = list((await asyncio.to_thread(everything, port, 600)).values())
                assert "NONE" not in found[:500]
                assert found[500:].count("NONE") in (0, 100)
                await ask(host, Stop("kv", expect=spec_digest(spec)))

    run(work)


def workers_of(host: Daemon) -> list[int]:
    """Processes of snapshots that still work in this host's directory."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            found += [
                int(process.name) for file in open_files(process) if file.is_relative_to(host.state_dir / "store")
            ]
    return found


def open_files(process: Path) -> Iterator[Path]:
    """Of a process in /proc, which may end meanwhile. Raises OSError."""
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            yield descriptor.readlink()


# --- without privileges ---------------------------------------------------------------------------------------------


@needs_root
def test_an_agent_without_privileges_takes_and_restores_plain_directories() -> None:
    async def work(tmp: Path) -> None:
        async with kv_host(tmp, before=WITHOUT_PRIVILEGES) as (host, spec, port):
            await asyncio.to_thread(fill, port, 0, 200)
            facts = await snapshot(host)
            assert (facts.entries, facts.left_out) == (1, 0)
            await ask(host, Stop("kv", expect=spec_digest(spec)))
            await ask(host, restoring(facts.snapshot, "copy"))
            await ask(host, Start(kv(spec.binary, port, "copy")))
            found = await asyncio.to_thread(everything, port, 200)
            assert "NONE" not in found.values()

    run(work)
