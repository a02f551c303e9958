"""While a call may still change what a host runs, the host says so: from the call's first bytes until it is decided."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from agent.api.answers import Outcome
from agent.api.calls import Call, CreateVolume, Envelope, Replace, Start
from agent.api.routes import Routes
from agent.client.connections import Connections
from agent.daemon.volumes import Volumes
from tests.agent.service.support import HOST, Cloud, host, put, run, spec_digest, until, wasm, web


async def undecided(cloud: Cloud) -> tuple[str, ...]:
    told = (await cloud.client.report()).undecided
    return () if told is UNSET else told


def test_a_call_on_a_process_is_decided_when_its_new_guest_serves() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        async with host(tmp / "state") as cloud:
            calls: tuple[Call, ...] = (Start(web(one)), Replace(web(two), expect=spec_digest(web(one))))
            for call in calls:
                assert await undecided(cloud) == ()
                go = cloud.runtime.stop_at("ready")
                calling = asyncio.create_task(cloud.ask(call))
                await cloud.runtime.reached["ready"].wait()
                assert await undecided(cloud) == ("process web",)
                drained = cloud.runtime.stop_at("drain")
                go.set()
                if isinstance(call, Replace):
                    await cloud.runtime.reached["drain"].wait()
                    assert await undecided(cloud) == ()
                    assert not calling.done()
                drained.set()
                await calling

    run(work)


def test_a_call_that_has_begun_to_arrive_is_told_of() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        go = asyncio.Event()
        body = msgspec.msgpack.encode(Envelope(Start(web(one))))

        async def in_two_parts() -> AsyncIterator[bytes]:
            yield body[:10]
            await go.wait()
            yield body[10:]

        async with host(tmp / "state") as cloud:
            another = Connections(HOST, cloud.client.address, tmp / "operator")
            await another.open()
            calling = asyncio.create_task(another.ask("POST", Routes.CALL, Outcome, stream=in_two_parts()))
            await until(lambda: undecided(cloud))
            assert await undecided(cloud) == ("a call that is arriving",)
            go.set()
            assert (await calling).changed
            assert await undecided(cloud) == ()
            await another.close()

    run(work)


def test_a_volume_that_is_being_made_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    makes, go = threading.Event(), threading.Event()
    create = Volumes.create

    def slowly(volumes: Volumes, volume: str, size_bytes: int) -> None:
        makes.set()
        assert go.wait(60)
        create(volumes, volume, size_bytes)

    async def work(tmp: Path) -> None:
        async with host(tmp / "state") as cloud:
            calling = asyncio.create_task(cloud.ask(CreateVolume("data", 1 << 20)))
            await until(makes.is_set)
            assert await undecided(cloud) == ("volume data",)
            go.set()
            await calling
            assert await undecided(cloud) == ()

    monkeypatch.setattr(Volumes, "create", slowly)
    run(work)
