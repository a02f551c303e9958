"""Versions on probation: they are gone back from when they fail in that time, whatever else happens; and files that are
put under a running guest."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from agent.api.answers import Reason
from agent.api.calls import Configure, Replace, Start
from agent.api.facts import ProcessState
from agent.api.journal import Event
from agent.api.processes import ProcessSpec, Ready, Update, spec_digest
from agent.client.errors import CallRefused
from tests import guests as test_guests
from tests.agent.service.daemon import READY_S, fetch, needs_guests
from tests.agent.service.support import Cloud, MemoryRuntime, changed, host, put, real, run, until, wasm, web
from tests.ports import free_port
from tools import guests

LONG = Update(drain_s=0.1, probation_s=600.0)
SHORT = Update(drain_s=0.1, probation_s=0.3)


async def runs(cloud: Cloud, spec: ProcessSpec) -> bool:
    """Does this specification serve, with one guest and nothing else?"""
    status = await cloud.status(spec.name)
    alone = len(cloud.runtime.alive(spec.name)) == 1 == len(cloud.runtime.serving(spec.name))
    return (
        status is not None
        and status.state is ProcessState.RUNNING
        and status.spec_digest == spec_digest(spec)
        and alone
    )


async def on_probation(cloud: Cloud, spec: ProcessSpec) -> str:
    """The guest of this specification, once it serves on probation."""

    async def found() -> str:
        entries = [e for e in await cloud.events(Event.PROBATION) if e.spec == spec_digest(spec)]
        return entries[-1].guest if entries else ""

    return str(await until(found))


async def told(cloud: Cloud) -> list[str]:
    return [e.detail.partition(",")[0] for e in await cloud.events(Event.PROBATION)]


@pytest.mark.parametrize("order", ["start-first", "stop-first"])
@pytest.mark.parametrize("how", ["it ends", "it is unready"])
def test_a_version_that_fails_in_its_probation_gives_way_to_the_one_before(order: str, how: str) -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        first = web(one, ready=Ready("http", within_s=0.2))
        second = changed(first, binary=two, update=msgspec.structs.replace(LONG, order=order))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(first), release=one)
            asking = asyncio.create_task(cloud.ask(Replace(second, expect=spec_digest(first)), release=two))
            guest = await on_probation(cloud, second)
            if how == "it ends":
                cloud.runtime.ends(guest, 1)
            else:
                cloud.runtime.states[guest] = msgspec.structs.replace(cloud.runtime.states[guest], listening=False)
            with pytest.raises(CallRefused) as caught:
                await asking
            assert caught.value.refusal.reason is Reason.NOT_READY
            assert "probation" in caught.value.refusal.message
            assert "hello" in caught.value.refusal.output_tail
            await until(lambda: runs(cloud, first))
            status = await cloud.status("web")
            assert status is not None
            assert (status.release, status.restarts) == (one, 0)
            assert "failed its probation" in status.reason
            assert await told(cloud) == ["begins", "failed"]
            assert len(await cloud.events(Event.CALL_FAILED)) == 1

    run(work)


def test_a_version_that_stands_its_probation_stays_whatever_happens_later() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        first = web(one)
        second = changed(first, binary=two, update=SHORT)
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(first))
            outcome = await cloud.ask(Replace(second, expect=spec_digest(first)))
            assert "probation" in outcome.steps
            assert await told(cloud) == ["begins", "stood"]
            cloud.runtime.ends(cloud.runtime.alive("web")[0].guest, 1)

            async def again() -> bool:
                status = await cloud.status("web")
                return await runs(cloud, second) and status is not None and status.restarts == 1

            await until(again)
            status = await cloud.status("web")
            assert status is not None
            assert "exit code 1" in status.reason

    run(work)


def test_another_call_ends_a_probation_and_the_way_back_has_none() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        first, second = web(one, update=LONG), web(two, update=LONG)
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(first))
            asking = asyncio.create_task(cloud.ask(Replace(second, expect=spec_digest(first))))
            await on_probation(cloud, second)
            await cloud.ask(Replace(first, expect=spec_digest(second)))
            assert (await asking).changed
            assert await runs(cloud, first)
            assert await told(cloud) == ["begins"]

    run(work)


@pytest.mark.parametrize("when", ["while no agent was there", "with the whole host"])
def test_a_probation_outlives_its_agent(when: str) -> None:
    async def work(tmp: Path) -> None:
        one, two, runtime = *put(tmp / "state", wasm("one"), wasm("two")), MemoryRuntime()
        first, second = web(one), web(two, update=LONG)
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(first))
            asking = asyncio.create_task(cloud.ask(Replace(second, expect=spec_digest(first))))
            guest = await on_probation(cloud, second)
        await asyncio.gather(asking, return_exceptions=True)
        if when == "with the whole host":
            runtime.lose_everything()
        else:
            runtime.ends(guest, 1)
        async with host(tmp / "state", runtime) as cloud:
            if when == "with the whole host":  # which is not the version's fault
                await until(lambda: runs(cloud, second))
                runtime.ends(runtime.alive("web")[0].guest, 1)
            await until(lambda: runs(cloud, first))
            assert (await told(cloud))[-1] == "failed"

    run(work)


def test_a_field_that_is_not_used_changes_no_digest() -> None:
    spec = web("b3:" + 64 * "0")
    same = changed(spec, update=Update(drain_s=spec.update.drain_s, probation_s=0.0, config="restart"))
    assert spec_digest(same) == spec_digest(spec)
    assert msgspec.msgpack.encode(same) == msgspec.msgpack.encode(spec)


@needs_guests
def test_a_real_guest_that_ends_in_its_probation_gives_way_and_new_connections_find_the_one_before() -> None:
    async def work(tmp: Path) -> None:
        port = free_port()
        one, probe = put(tmp / "state", *(path.read_bytes() for path in (guests.path("web-1"), probe_path())))
        first = web(one, port=port, ready=Ready("http", within_s=READY_S))
        second = changed(first, binary=probe, args=("listen", str(port)), update=LONG)
        async with real(tmp) as cloud:
            await cloud.ask(Start(first))
            asking = asyncio.create_task(cloud.ask(Replace(second, expect=spec_digest(first))))
            guest = await on_probation(cloud, second)
            os.kill((await cloud.agent.processes.known_guests())[guest].pid, signal.SIGKILL)
            with pytest.raises(CallRefused) as caught:
                await asking
            assert "probation" in caught.value.refusal.message
            assert b"1.0" in await asyncio.to_thread(fetch, port)

    run(work)


@needs_guests
def test_files_are_put_under_a_real_guest_that_rereads_them_and_taken_back_where_it_ends_by_them() -> None:
    async def work(tmp: Path) -> None:
        port = free_port()
        files = (b"one", b"two", b"bad")
        probe, *contents = put(tmp / "state", probe_path().read_bytes(), *files)
        spec = web(
            probe,
            port=port,
            args=("serve-file", str(port), "/etc/app/text"),
            config={"/etc/app/text": contents[0]},
            update=Update(drain_s=0.5, config="reload", probation_s=0.3),
            ready=Ready("http", path="/", within_s=READY_S),
        )
        async with real(tmp) as cloud:
            await cloud.ask(Start(spec))
            before = await cloud.status("web")
            assert (await asyncio.to_thread(fetch, port)).endswith(b"one")
            outcome = await cloud.ask(Configure("web", {"/etc/app/text": contents[1]}, expect=spec_digest(spec)))
            assert set(outcome.steps) == {"reload", "probation"}
            assert (await asyncio.to_thread(fetch, port)).endswith(b"two")
            after = await cloud.status("web")
            assert before is not None
            assert after is not None
            assert after.pid == before.pid
            with pytest.raises(CallRefused):
                await cloud.ask(Configure("web", {"/etc/app/text": contents[2]}, expect=after.spec_digest))

            async def back() -> bool:
                status = await cloud.status("web")
                return status is not None and status.state is ProcessState.RUNNING and status.spec == after.spec

            await until(back)
            assert (await asyncio.to_thread(fetch, port)).endswith(b"two")
            served = [(e.guest, e.config["/etc/app/text"]) for e in await cloud.events(Event.SERVING)]
            first, last = served[0][0], served[-1][0]
            assert served == [*((first, content) for content in contents), (last, contents[1])]
            assert first != last

    run(work)


def test_files_are_made_good_where_a_crash_came_before_them() -> None:
    async def work(tmp: Path) -> None:
        one, moin, hello = put(tmp / "state", wasm("one"), b"moin", b"hello")
        runtime = MemoryRuntime()
        spec = web(one, config={"/etc/app/text": moin}, update=Update(config="reload"))
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(spec))
            await cloud.ask(Configure("web", {"/etc/app/text": hello}, expect=spec_digest(spec)))
        seen = Path(next(iter(runtime.orders.values())).preopens[0].host_path) / "text"
        assert seen.read_bytes() == b"hello"
        seen.write_bytes(b"moin")
        async with host(tmp / "state", runtime):
            await until(lambda: seen.read_bytes() == b"hello")

    run(work)


def probe_path() -> Path:
    return test_guests.path("probe")
