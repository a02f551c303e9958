"""A host whose disk is full: calls are refused, what serves goes on, and with space again the same call succeeds."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.api.answers import Reason
from agent.api.blobs import BlobQuery
from agent.api.calls import Replace, Start
from agent.api.facts import ProcessState
from agent.api.processes import spec_digest
from agent.client.errors import CallRefused
from cas.exchange import frames
from cas.store import Store
from tests.agent.service.support import MemoryRuntime, host, put, run, until, wasm, web


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "none", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    with path.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small tmpfs")
def test_a_full_disk_stops_calls_and_nothing_else() -> None:
    async def work(tmp: Path) -> None:
        with small_disk(tmp / "disk"):
            state_dir = tmp / "disk" / "state"
            one, two = put(state_dir, wasm("one"), wasm("two"))
            runtime = MemoryRuntime()
            async with host(state_dir, runtime) as cloud:
                await cloud.ask(Start(web(one)))
                serving = runtime.serving("web")
                call = Replace(web(two), expect=spec_digest(web(one)))
                await asyncio.to_thread(fill, tmp / "disk" / "filler")
                with pytest.raises(CallRefused) as caught:
                    await cloud.ask(call)
                assert caught.value.refusal.reason in (Reason.NO_ROOM, Reason.INTERNAL)
                assert runtime.serving("web") == serving
                (tmp / "disk" / "filler").unlink()

                async def swapped() -> bool:
                    try:
                        return (await cloud.ask(call)).changed
                    except CallRefused:
                        return False

                await until(swapped)
                status = await cloud.status("web")
                assert status is not None
                assert (status.state, status.spec_digest) == (ProcessState.RUNNING, spec_digest(web(two)))
                await until(lambda: len(runtime.states) == 1)

    run(work)


def test_a_host_whose_store_has_its_quota_takes_what_fits_and_refuses_the_rest() -> None:
    async def work(tmp: Path) -> None:
        small, large = os.urandom(1 << 20), os.urandom(16 << 20)
        with Store.open(tmp / "source") as source:
            fits, too_much = (source.put(data).digest for data in (small, large))
            async with host(tmp / "state", store_quota_bytes=8 << 20) as cloud:
                await cloud.client.send_blobs(frames(source, [fits]))
                with pytest.raises(CallRefused) as caught:
                    await cloud.client.send_blobs(frames(source, [too_much]))
                assert caught.value.refusal.reason is Reason.NO_ROOM
                assert "quota" in caught.value.refusal.message
                assert (await cloud.client.query(BlobQuery(want=(fits, too_much)))).missing == (too_much,)

    run(work)
