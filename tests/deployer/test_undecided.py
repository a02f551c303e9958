"""Who plans, or says how a plan has ended, waits for a host that is in the middle of somebody's call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.api.calls import Replace, Start
from deployer.applying import observe
from deployer.applying.fleet import Fleet
from deployer.applying.observe import observe_decided
from deployer.applying.progress import Phase, Quiet
from tests.agent.service.support import HOST, Cloud, host, put, run, spec_digest, wasm, web


class Listening(Quiet):
    def __init__(self) -> None:
        self.waits = asyncio.Event()

    def phase(self, phase: Phase, hosts: int) -> None:
        if (phase, hosts) == ("undecided", 1):
            self.waits.set()


@asynccontextmanager
async def a_host_that_replaces(tmp: Path) -> AsyncIterator[tuple[Cloud, Fleet, asyncio.Event, str]]:
    """Until the event is set, the new guest is not ready. Last the name of what it will run then."""
    one, two = put(tmp / "state", wasm("one"), wasm("two"))
    async with host(tmp / "state") as cloud, Fleet({HOST: cloud.client.address}, tmp / "operator") as fleet:
        await cloud.ask(Start(web(one)))
        go = cloud.runtime.stop_at("ready")
        calling = asyncio.create_task(cloud.ask(Replace(web(two), expect=spec_digest(web(one)))))
        await cloud.runtime.reached["ready"].wait()
        yield cloud, fleet, go, spec_digest(web(two))
        go.set()
        await calling


def test_what_is_looked_at_is_what_the_call_has_led_to() -> None:
    async def work(tmp: Path) -> None:
        progress = Listening()
        async with a_host_that_replaces(tmp) as (_, fleet, go, will_run):
            looking = asyncio.create_task(observe_decided(fleet, {HOST}, progress))
            await progress.waits.wait()
            assert not looking.done()
            go.set()
            observed = await looking
            assert observed.state() == {HOST: {"web": will_run}}
            assert (observed.undecided, observed.unreachable) == ({}, {})

    run(work)


def test_a_host_that_stays_in_a_call_counts_as_unreachable_and_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "UNDECIDED_S", 0.5)

    async def work(tmp: Path) -> None:
        async with a_host_that_replaces(tmp) as (_, fleet, _, _):
            observed = await observe_decided(fleet, {HOST}, Quiet())
            assert not (observed.hosts or observed.facts or observed.statuses)
            assert "in the middle of an earlier call" in observed.unreachable[HOST]
            assert "process web" in observed.unreachable[HOST]

    run(work)
