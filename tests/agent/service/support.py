"""An agent as it really is, with its socket, store and disk, in this process; and small WASM programs for it to run."""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import wasmtime

from agent import tls
from agent.api.answers import Outcome
from agent.api.calls import Call, Envelope
from agent.api.facts import ProcessStatus
from agent.api.journal import Event, JournalEntry
from agent.api.processes import Endpoint, ProcessSpec, Ready, Update, spec_digest
from agent.client.client import AgentClient
from agent.daemon.assembly import Agent
from agent.daemon.capacity import Limits
from agent.daemon.networking import DEFAULT, Mode
from agent.main import listening
from agent.runtime import Runtime
from agent.supervisor.client import connect
from cas.digest import Digest
from cas.store import Store
from tests.agent.service.certificates import Authority
from tests.agent.service.memory_runtime import MemoryRuntime

HOST = "fra1"
OPERATOR = "operator:alice"
WAIT_S = 60.0
"""For what comes soon; on a busy machine it comes later."""
ROUNDS = int(os.environ.get("LOWCLOUD_TEST_ROUNDS", "1"))
"""What goes by chance goes on so many times as long; by hand, 10 finds more."""
ROOM = Limits(cores_milli=8000, memory_bytes=8 << 30, disk_bytes=8 << 30)


@functools.cache
def authority() -> Authority:
    return Authority()


@functools.cache
def wasm(name: str = "a") -> bytes:
    """A program that waits for ever; each name gives other bytes."""
    text = f"""(module
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 512) "{name}")
      (func (export "_start")
        (i64.store (i32.const 24) (i64.const 1000000000000))
        (loop $again
          (drop (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256)))
          (br $again))))"""
    return bytes(wasmtime.wat2wasm(text))


class Cloud(NamedTuple):
    """One host and its operator."""

    agent: Agent
    client: AgentClient
    runtime: MemoryRuntime
    state_dir: Path

    async def ask(self, call: Call, *, release: Digest | None = None) -> Outcome:
        return await self.client.call(Envelope(call=call, release=release))

    async def status(self, process: str) -> ProcessStatus | None:
        return next((status for status in await self.client.processes() if status.process == process), None)

    async def events(self, *kinds: Event) -> list[JournalEntry]:
        return [entry for entry in await self.client.journal() if not kinds or entry.event in kinds]


def put(state_dir: Path, *blobs: bytes) -> list[Digest]:
    """Blobs into a host's store while no agent has it open in this process."""
    with Store.open(state_dir / "store") as store:
        return [store.put(blob).digest for blob in blobs]


def prepare(state_dir: Path) -> tuple[Path, Path]:
    """Credentials of the host and of its operator, and the directories that the daemon makes."""
    (state_dir / "work").mkdir(parents=True, exist_ok=True)
    return (
        authority().issue(state_dir / "credentials", f"host:{HOST}", host=HOST),
        authority().issue(state_dir.parent / "operator", OPERATOR),
    )


@asynccontextmanager
async def host(
    state_dir: Path,
    runtime: MemoryRuntime | None = None,
    *,
    limits: Limits | None = ROOM,
    connect: Callable[[], Awaitable[Runtime]] | None = None,
    store_quota_bytes: int | None = None,
    network: Mode = DEFAULT,
) -> AsyncIterator[Cloud]:
    """An agent that takes calls, and a client of it; ends like an agent that was asked to."""
    memory = runtime or MemoryRuntime()
    credentials, operator = prepare(state_dir)
    agent = await Agent.open(
        HOST,
        state_dir,
        limits=limits,
        pin=False,
        runtime=connect or memory.connect,
        store_quota_bytes=store_quota_bytes,
        network=network,
    )
    try:
        async with (
            listening(agent, tls.server_context(credentials), "127.0.0.1", 0) as address,
            AgentClient(HOST, address, operator) as client,
        ):
            async with asyncio.timeout(WAIT_S):
                await agent.processes.linked.wait()
            yield Cloud(agent, client, memory, state_dir)
    finally:
        await agent.close()


@asynccontextmanager
async def real(tmp: Path, network: Mode = DEFAULT) -> AsyncIterator[Cloud]:
    """A host with real guests, which end with it."""
    async with host(tmp / "state", connect=lambda: connect(tmp / "state"), network=network) as cloud:
        try:
            yield cloud
        finally:
            await cloud.client.shut_down(guests=True)
            await cloud.agent.ended.wait()


def run(work: Callable[[Path], Awaitable[Any]]) -> None:
    """Run a test's coroutine with a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="lc-") as directory:
        asyncio.run(_bounded(work(Path(directory))))


async def _bounded(work: Awaitable[Any]) -> None:
    async with asyncio.timeout(250 * ROUNDS):
        await work


async def until(condition: Callable[[], Awaitable[Any] | Any], *, within_s: float = WAIT_S) -> Any:
    """Wait for a condition to hold; what it returned then."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"this did not come to hold within {within_s:g} s")
        await asyncio.sleep(0.01)


def web(binary: Digest, *, port: int = 8080, **fields: Any) -> ProcessSpec:
    """A process with one listener."""
    return ProcessSpec(
        **{
            "name": "web",
            "binary": binary,
            "listen": {"http": Endpoint("127.0.0.1", port)},
            "ready": Ready("http", within_s=2.0),
            "update": Update(drain_s=0.5),
            **fields,
        }
    )


def changed(spec: ProcessSpec, **fields: Any) -> ProcessSpec:
    return msgspec.structs.replace(spec, **fields)


__all__ = [
    "HOST",
    "OPERATOR",
    "Cloud",
    "MemoryRuntime",
    "authority",
    "changed",
    "host",
    "put",
    "real",
    "run",
    "spec_digest",
    "until",
    "wasm",
    "web",
]
