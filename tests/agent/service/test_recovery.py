"""An agent that ends at any moment, and the next one: exactly the old or exactly the new version, and nothing left
over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.calls import Call, CreateVolume, Replace, Restart, Start, Stop
from agent.api.facts import ProcessState
from agent.api.journal import Event, JournalEntry
from agent.api.processes import Update, spec_digest
from agent.daemon.recovery import recover
from agent.daemon.state import Finished, Pending, Record, Retiring, Version
from agent.runtime import GuestState, Runtime, RuntimeUnavailable
from cas.digest import digest_of
from tests.agent.service.support import Cloud, MemoryRuntime, changed, host, put, run, until, wasm, web

ACTS = ["spawn", "ready", "flip", "drain", "kill", "forget"]


async def interrupt(state_dir: Path, runtime: MemoryRuntime, call: Call, act: str) -> None:
    """Begin a call, and end the agent where the call reaches `act` for the first time."""
    async with host(state_dir, runtime) as cloud:
        runtime.stop_at(act)
        asking = asyncio.create_task(cloud.ask(call))
        reached = asyncio.create_task(runtime.reached[act].wait())
        await asyncio.wait({asking, reached}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        asking.cancel()
        await asyncio.gather(asking, reached, return_exceptions=True)
        await cloud.agent.close()
    runtime.hold.clear()
    runtime.reached.clear()


async def at_rest(cloud: Cloud) -> None:
    """Every process runs, with one guest each, and no guest is left over."""

    async def resting() -> bool:
        statuses = await cloud.client.processes()
        guests = list(cloud.runtime.states.values())
        return (
            all(status.state is ProcessState.RUNNING for status in statuses)
            and sorted(status.pid or 0 for status in statuses) == sorted(guest.pid for guest in guests)
            and all(guest.serving and guest.exit_code is None for guest in guests)
        )

    await until(resting)


@pytest.mark.parametrize("order", ["start-first", "stop-first"])
@pytest.mark.parametrize("act", ACTS)
def test_a_swap_that_is_cut_short_ends_as_exactly_the_old_or_the_new_version(act: str, order: str) -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        old = web(one, update=Update(order="stop-first" if order == "stop-first" else "start-first", drain_s=0.2))
        new = changed(old, binary=two)
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(old))
        await interrupt(tmp / "state", runtime, Replace(new, expect=spec_digest(old)), act)
        async with host(tmp / "state", runtime) as cloud:
            await at_rest(cloud)
            (status,) = await cloud.client.processes()
            took_over = act in ("drain", "kill", "forget") and order == "start-first"
            flipping = act == "flip" or (act == "forget" and order == "stop-first")
            assert status.spec_digest == spec_digest(new if took_over or flipping else old)
            expect = spec_digest(old if status.spec_digest == spec_digest(old) else new)
            await cloud.ask(Restart("web", expect=expect, nonce="after the crash"))
            await at_rest(cloud)
            check_one_story(await cloud.events())

    run(work)


def check_one_story(entries: list[JournalEntry]) -> None:
    """Each guest serves at most once and then ends, and at most two versions serve at any time."""
    serving: set[str] = set()
    served: set[str] = set()
    for entry in entries:
        if entry.event is Event.SERVING:
            assert entry.guest not in served
            serving.add(entry.guest)
            served.add(entry.guest)
        elif entry.event in (Event.ENDED, Event.EXITED):
            serving.remove(entry.guest)
        assert len(serving) <= 2
    assert len(serving) == 1


@pytest.mark.parametrize("act", ["spawn", "ready", "flip"])
def test_a_start_that_is_cut_short_is_undone_or_done(act: str) -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm("one"))
        runtime = MemoryRuntime()
        await interrupt(tmp / "state", runtime, Start(web(one)), act)
        async with host(tmp / "state", runtime) as cloud:
            await at_rest(cloud)
            assert len(await cloud.client.processes()) == (1 if act == "flip" else 0)
            assert (await cloud.ask(Start(web(one)))).changed == (act != "flip")
            await at_rest(cloud)

    run(work)


@pytest.mark.parametrize("act", ["drain", "kill", "forget"])
def test_a_stop_that_is_cut_short_is_finished(act: str) -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm("one"))
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
        await interrupt(tmp / "state", runtime, Stop("web", expect=spec_digest(web(one))), act)
        async with host(tmp / "state", runtime) as cloud:
            await until(lambda: not runtime.states)
            assert await until(lambda: not list((tmp / "state" / "processes").iterdir()))

            async def nothing_left() -> bool:
                return await cloud.client.processes() == ()

            await until(nothing_left)
            assert (await cloud.events(Event.ENDED, Event.EXITED)) != []

    run(work)


def test_an_agent_that_starts_finds_its_guests_running() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
        guests = dict(runtime.states)
        async with host(tmp / "state", runtime) as cloud:
            await at_rest(cloud)
            assert runtime.states == guests
            assert len(await cloud.events(Event.SPAWNED)) == 1
            assert len(await cloud.events(Event.SERVING)) == 1

    run(work)


def test_a_guest_that_died_while_no_agent_was_there_is_started_again() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
            await cloud.ask(Start(changed(web(one), name="job", listen={}, ready=None, restart="on-failure")))
        for state in list(runtime.states.values()):
            runtime.ends(state.guest, 0)
        async with host(tmp / "state", runtime) as cloud:
            await until(lambda: runtime.serving("web"))

            async def finished() -> bool:
                job = await cloud.status("job")
                return job is not None and job.state is ProcessState.EXITED

            await until(finished)
            assert [entry.process for entry in await cloud.events(Event.EXITED)].count("web") == 1
            assert (status := await cloud.status("web"))
            assert status.restarts == 1
        async with host(tmp / "state", runtime) as cloud:
            job = await cloud.status("job")
            assert job is not None
            assert job.pid is None

    run(work)


def test_after_a_reboot_everything_comes_back_with_no_deployer_in_reach() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
            await cloud.ask(Start(changed(web(one, port=9090), name="other")))
        runtime.lose_everything()
        async with host(tmp / "state", runtime) as cloud:
            await until(lambda: len(runtime.alive()) == 2)
            await at_rest(cloud)
            assert len(await cloud.events(Event.EXITED)) == 2

    run(work)


def test_a_supervisor_that_goes_away_is_found_again_and_its_guests_started_anew() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
            (state,) = runtime.alive()
            runtime.links[-1].sever()
            await until(lambda: len(runtime.links) == 2 and cloud.agent.processes.linked.is_set())
            assert runtime.alive() == [state]
            runtime.lose_everything()
            await until(lambda: runtime.alive())
            await at_rest(cloud)

    run(work)


def test_guests_that_no_record_knows_are_ended() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
        (record,) = (tmp / "state" / "processes").iterdir()
        record.unlink()
        async with host(tmp / "state", runtime):
            await until(lambda: not runtime.states)

    run(work)


def test_a_damaged_record_is_set_aside_its_guest_ended_and_the_others_run() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
            await cloud.ask(Start(changed(web(one, port=9090), name="other")))
        record = tmp / "state" / "processes" / "web"
        damaged = bytearray(record.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        record.write_bytes(damaged)
        async with host(tmp / "state", runtime) as cloud:
            assert [status.process for status in await cloud.client.processes()] == ["other"]
            await until(lambda: not runtime.alive("web"))
            await until(lambda: cloud.events(Event.ENDED))
            assert (await cloud.ask(Start(web(one)))).changed
            await until(lambda: len(runtime.alive("web")) == 1)
            await at_rest(cloud)
        runtime.lose_everything()
        record.write_bytes(b"nothing")
        async with host(tmp / "state", runtime) as cloud:
            await until(lambda: runtime.alive("other"))
            assert [entry.process for entry in await cloud.events(Event.ENDED)] == ["web", "web"]
            assert len(list(record.parent.glob("web.damaged-*"))) == 2

    run(work)


def test_what_is_foreign_in_the_state_directory_is_set_aside_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(CreateVolume("data", 1 << 20))
            await cloud.ask(Start(web(one)))
        for name in ("processes/other", "processes/lost+found", "volumes/lost+found"):
            (tmp / "state" / name).mkdir()
        (tmp / "state" / "processes" / "nowhere").symlink_to("/nonexistent")
        for name in ("processes/notes.txt", "volumes/v"):
            (tmp / "state" / name).write_text("mine")
        async with host(tmp / "state", runtime) as cloud:
            assert [status.process for status in await cloud.client.processes()] == ["web"]
            assert [volume.volume for volume in (await cloud.client.host()).volumes] == ["data"]
            said = caplog.text
            assert (await cloud.ask(CreateVolume("v", 1 << 20))).changed
            assert (await cloud.ask(Start(changed(web(one, port=9090), name="other")))).changed
            await at_rest(cloud)
        for name in ("processes/other", "lost+found", "volumes/lost+found", "nowhere", "notes.txt", "volumes/v"):
            assert name in said
        assert (tmp / "state" / "volumes" / "v.damaged-1").read_text() == "mine"

    run(work)


def test_a_shutdown_ends_the_guests_and_the_next_agent_brings_them_back() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
            await cloud.client.shut_down(guests=True)
            await cloud.agent.ended.wait()
        assert runtime.states == {}
        async with host(tmp / "state", runtime) as cloud:
            await until(lambda: runtime.alive("web"))
            await at_rest(cloud)
            assert len(await cloud.events(Event.ENDED)) == 1
            assert (status := await cloud.status("web"))
            assert status.restarts == 0

    run(work)


# --- the decision itself ---------------------------------------------------------------------------------------------


def version(name: str) -> Version:
    return Version(spec=web(digest_of(name.encode())), guest=name)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Record, dict[str, GuestState]]:
    current = draw(st.sampled_from([None, version("old")]))
    pending = draw(st.sampled_from([None, Pending(version("new"), "starting"), Pending(version("new"), "flipping")]))
    gone = tuple(Retiring(version(name), 0.0) for name in draw(st.sets(st.sampled_from(["x", "y"]))))
    finished = draw(st.sampled_from([None, Finished(0, "", 0.0)]))
    record = Record(
        process="web",
        current=current,
        pending=pending,
        retiring=gone,
        stopping=draw(st.booleans()),
        finished=finished if current else None,
    )
    known = draw(st.sets(st.sampled_from(sorted(record.guests() | {"stray"}))))
    states = {
        name: GuestState(
            guest=name,
            process="web",
            pid=1,
            started_unix=0.0,
            listening=True,
            serving=draw(st.booleans()),
            exit_code=draw(st.sampled_from([None, None, 1])),
        )
        for name in sorted(known)
    }
    return record, states


@settings(max_examples=300)
@given(situations())
def test_what_is_decided_leaves_no_pending_version_and_forgets_no_living_guest(
    situation: tuple[Record, dict[str, GuestState]],
) -> None:
    record, states = situation
    decided = recover(record, states, now_unix=1.0)
    if decided.stop:
        assert record.stopping or decided.record.current is None
        return
    assert decided.record.pending is None
    assert decided.record.current in (record.current, record.pending.version if record.pending else None)
    alive = {name for name, state in states.items() if state.exit_code is None}
    left = (record.guests() & alive) - decided.record.guests()
    assert left <= {decided.undone}
    assert not (decided.start and decided.adopt)
    if decided.adopt:
        assert decided.record.current is not None
        assert decided.adopt in alive
        assert decided.adopt == decided.record.current.guest
    again = recover(decided.record, states, now_unix=2.0)
    assert again.record == decided.record


def test_a_shut_down_ends_the_guests_also_while_the_link_to_the_supervisor_is_made_anew() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        memory = MemoryRuntime()
        lost = False

        async def connect() -> Runtime:
            if lost:
                raise RuntimeUnavailable("not yet")
            return await memory.connect()

        async with host(tmp / "state", memory, connect=connect) as cloud:
            await cloud.ask(Start(web(one)))
            lost = True
            memory.links[-1].sever()
            await until(lambda: not cloud.agent.processes.linked.is_set())
            lost = False
            await cloud.agent.processes.shut_down_guests("operator:alice")
            assert memory.states == {}

    run(work)
