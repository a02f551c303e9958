"""Calls over a real connection: what they change, what they refuse, and that repeating one does nothing."""

from __future__ import annotations

import asyncio
import random
import zlib
from functools import partial
from pathlib import Path

import pytest

from agent.api.answers import Reason
from agent.api.calls import Call, Configure, CreateVolume, Replace, Resize, Restart, Start, Stop
from agent.api.facts import ProcessState
from agent.api.journal import Event
from agent.api.processes import Ready, Update
from agent.client.connections import _deflated
from agent.client.errors import CallRefused
from tests.agent.service.support import (
    OPERATOR,
    MemoryRuntime,
    changed,
    host,
    put,
    run,
    spec_digest,
    until,
    wasm,
    web,
)


def read(directory: str, name: str) -> bytes:
    return Path(directory, name).read_bytes()


def gone(runtime: MemoryRuntime, guest: str) -> bool:
    return guest not in [state.guest for state in runtime.serving("web")]


def test_a_started_process_serves_and_is_in_the_journal() -> None:
    async def work(tmp: Path) -> None:
        binary, config = put(tmp / "state", wasm(), b"colour = 'red'\n")
        spec = web(binary, config={"/etc/web.toml": config})
        async with host(tmp / "state") as cloud:
            outcome = await cloud.ask(Start(spec), release=binary)
            assert outcome.changed
            assert list(outcome.steps) == ["spawn", "ready", "flip", "drain"]
            status = await cloud.status("web")
            assert status is not None
            assert (status.state, status.spec_digest) == (ProcessState.RUNNING, spec_digest(spec))
            (serving,) = await cloud.events(Event.SERVING)
            assert (serving.spec, serving.binary, serving.release) == (spec_digest(spec), binary, binary)
            assert serving.config == {"/etc/web.toml": config}
            assert serving.by == OPERATOR
            order = cloud.runtime.orders[serving.guest]
            (preopen,) = order.preopens
            assert (preopen.guest_path, preopen.writable) == ("/etc", False)
            assert read(preopen.host_path, "web.toml") == b"colour = 'red'\n"
            assert order.env == {"LOWCLOUD_LISTEN_HTTP": "127.0.0.1:8080"}

    run(work)


def test_a_replaced_process_serves_before_the_old_one_ends() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            outcome = await cloud.ask(Replace(web(two), expect=spec_digest(web(one))))
            assert outcome.changed
            events = [(entry.event, entry.binary) for entry in await cloud.events()][-5:]
            assert events == [
                (Event.CALL, two),
                (Event.SPAWNED, two),
                (Event.SERVING, two),
                (Event.DRAINED, one),
                (Event.ENDED, one),
            ]
            assert len(cloud.runtime.alive("web")) == 1

    run(work)


def test_a_version_that_is_not_ready_never_serves_and_the_old_one_stays() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            (before,) = cloud.runtime.serving("web")
            silent = web(two, env={"ACT": "silent"}, ready=Ready("http", within_s=0.2))
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Replace(silent, expect=spec_digest(web(one))))
            assert caught.value.refusal.reason is Reason.NOT_READY
            assert "web says silent" in caught.value.refusal.output_tail
            assert cloud.runtime.alive("web") == [before]
            status = await cloud.status("web")
            assert status is not None
            assert status.spec_digest == spec_digest(web(one))
            assert [entry.binary for entry in await cloud.events(Event.CALL_FAILED)] == [two]

    run(work)


def test_configure_swaps_to_the_same_binary_with_other_files() -> None:
    async def work(tmp: Path) -> None:
        binary, red, blue = put(tmp / "state", wasm(), b"red", b"blue")
        spec = web(binary, config={"/etc/web.toml": red})
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(spec))
            call = Configure("web", {"/etc/web.toml": blue}, expect=spec_digest(spec))
            assert (await cloud.ask(call)).changed
            assert not (await cloud.ask(call)).changed
            status = await cloud.status("web")
            assert status is not None
            assert status.spec == changed(spec, config={"/etc/web.toml": blue})

    run(work)


def test_repeating_a_call_changes_nothing() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        async with host(tmp / "state") as cloud:
            calls: list[Call] = [
                Start(web(one)),
                Replace(web(two), expect=spec_digest(web(one))),
                Restart("web", expect=spec_digest(web(two)), nonce="a nonce of mine"),
                Stop("web", expect=spec_digest(web(two))),
            ]
            for call in calls:
                assert (await cloud.ask(call)).changed
                entries = len(await cloud.events())
                assert not (await cloud.ask(call)).changed
                assert len(await cloud.events()) == entries
            assert cloud.runtime.states == {}
            assert await cloud.client.processes() == ()

    run(work)


def test_a_call_that_expects_another_state_is_refused() -> None:
    async def work(tmp: Path) -> None:
        one, two, three = put(tmp / "state", wasm("one"), wasm("two"), wasm("three"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            wrong = spec_digest(web(two))
            for call in (
                Start(web(two)),
                Replace(web(three), expect=wrong),
                Configure("web", {"/x": one}, expect=wrong),
                Restart("web", expect=wrong, nonce="12345678"),
                Resize(web(one, cores_milli=500), expect=wrong),
                Stop("web", expect=wrong),
            ):
                with pytest.raises(CallRefused) as caught:
                    await cloud.ask(call)
                assert caught.value.refusal.reason is Reason.UNEXPECTED_STATE, call
            assert [state.exit_code for state in cloud.runtime.states.values()] == [None]

    run(work)


def test_calls_on_a_process_that_is_not_here_are_refused_but_a_stop_is_done_already() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Replace(web(one), expect=one))
            assert caught.value.refusal.reason is Reason.NOT_FOUND
            assert not (await cloud.ask(Stop("web", expect=one))).changed

    run(work)


def test_resize_keeps_the_guest_and_refuses_what_needs_a_new_one() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        spec = web(one)
        larger = changed(spec, cores_milli=2000, restart="never", update=Update(drain_s=9.0))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(spec))
            guests = set(cloud.runtime.states)
            assert (await cloud.ask(Resize(larger, expect=spec_digest(spec)), release=two)).changed
            status = await cloud.status("web")
            assert status is not None
            assert (status.spec, status.release) == (larger, two)
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Resize(changed(larger, memory_bytes=1 << 20), expect=spec_digest(larger)))
            assert caught.value.refusal.reason is Reason.BAD_REQUEST
            assert "memory_bytes" in caught.value.refusal.message
            assert set(cloud.runtime.states) == guests
            bigger = changed(larger, memory_bytes=128 << 20)
            outcome = await cloud.ask(Resize(bigger, expect=spec_digest(larger)))
            assert (outcome.changed, outcome.steps) == (True, {})
            assert set(cloud.runtime.states) == guests
            assert [order.memory_bytes for order in cloud.runtime.orders.values()] == [128 << 20]

    run(work)


def test_memory_that_cannot_grow_in_place_grows_by_a_swap() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm("one"))
        spec = web(one)
        larger = changed(spec, memory_bytes=128 << 20, cores_milli=2000)
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(spec))
            [guest] = cloud.runtime.states
            cloud.runtime.fixed_memory = True
            outcome = await cloud.ask(Resize(larger, expect=spec_digest(spec)))
            assert outcome.detail == "by a swap: where the limit is kept is not known"
            assert "flip" in outcome.steps
            [after] = cloud.runtime.states
            assert after != guest
            assert cloud.runtime.orders[after].memory_bytes == 128 << 20
            status = await cloud.status("web")
            assert status is not None
            assert status.spec == larger
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Resize(changed(larger, memory_bytes=1 << 40), expect=spec_digest(larger)))
            assert caught.value.refusal.reason is Reason.NO_ROOM

    run(work)


def test_one_call_at_a_time_and_its_repetition_joins_it() -> None:
    async def work(tmp: Path) -> None:
        one, two, three = put(tmp / "state", wasm("one"), wasm("two"), wasm("three"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            go = cloud.runtime.stop_at("ready")
            replace = Replace(web(two), expect=spec_digest(web(one)))
            first = asyncio.create_task(cloud.ask(replace))
            await cloud.runtime.reached["ready"].wait()
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Replace(web(three), expect=spec_digest(web(one))))
            assert caught.value.refusal.reason is Reason.BUSY
            again = asyncio.create_task(cloud.ask(replace))
            await asyncio.sleep(0)
            go.set()
            assert (await first).changed
            await again
            assert len(await cloud.events(Event.SPAWNED)) == 2

    run(work)


def test_a_rollback_need_not_wait_for_the_old_guest_to_drain() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            go = cloud.runtime.stop_at("drain")
            forward = asyncio.create_task(cloud.ask(Replace(web(two), expect=spec_digest(web(one)))))
            await cloud.runtime.reached["drain"].wait()
            back = asyncio.create_task(cloud.ask(Replace(web(one), expect=spec_digest(web(two)))))
            await until(lambda: [s for s in cloud.runtime.serving("web") if s.guest == cloud.runtime.flips[-1]])
            await until(lambda: len(cloud.runtime.flips) == 3)
            go.set()
            assert (await forward).changed
            assert (await back).changed
            (state,) = cloud.runtime.alive("web")
            status = await cloud.status("web")
            assert status is not None
            assert (status.pid, status.spec_digest) == (state.pid, spec_digest(web(one)))

    run(work)


def test_a_stop_first_process_hands_over_and_comes_back_where_the_new_version_fails() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        old = web(one, update=Update(order="stop-first", drain_s=0.1))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(old))
            new = changed(old, binary=two)
            await cloud.ask(Replace(new, expect=spec_digest(old)))
            assert [entry.event for entry in await cloud.events()][-4:] == [
                Event.DRAINED,
                Event.ENDED,
                Event.SPAWNED,
                Event.SERVING,
            ]
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Replace(changed(old, env={"ACT": "fail"}), expect=spec_digest(new)))
            assert caught.value.refusal.reason is Reason.NOT_READY
            assert "runs again" in caught.value.refusal.message
            (state,) = cloud.runtime.serving("web")
            status = await cloud.status("web")
            assert status is not None
            assert (status.state, status.pid) == (ProcessState.RUNNING, state.pid)
            assert status.spec_digest == spec_digest(new)
            await until(lambda: len(cloud.runtime.states) == 1)

    run(work)


def test_a_program_that_is_meant_to_end_may_do_so_at_once() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        job = changed(web(one), name="job", listen={}, ready=None, restart="on-failure", env={"ACT": "exit:0"})
        async with host(tmp / "state") as cloud:
            assert (await cloud.ask(Start(job))).changed

            async def ended() -> bool:
                status = await cloud.status("job")
                return status is not None and status.state is ProcessState.EXITED

            await until(ended)
            assert [entry.event for entry in await cloud.events()][-2:] == [Event.SERVING, Event.EXITED]
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Start(changed(job, name="bad", env={"ACT": "exit:3"})))
            assert "exit code 3" in caught.value.refusal.message

    run(work)


def test_a_guest_that_ends_is_started_again_after_growing_waits() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            for restarts in (1, 2, 3):
                (state,) = await until(lambda: cloud.runtime.serving("web"))
                cloud.runtime.ends(state.guest, 1)

                async def back(count: int = restarts) -> bool:
                    status = await cloud.status("web")
                    return status is not None and (status.restarts, status.state) == (count, ProcessState.RUNNING)

                await until(back)
            await until(lambda: len(cloud.runtime.states) == 1)
            exits = await cloud.events(Event.EXITED)
            starts = await cloud.events(Event.SPAWNED)
            waits = [s.at_unix_ns - e.at_unix_ns for e, s in zip(exits, starts[1:], strict=True)]
            assert waits[0] > 0.09e9
            assert waits[2] > 0.39e9

    run(work)


def test_a_call_interrupts_the_wait_of_a_process_that_keeps_failing() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one)))
            for _ in range(4):
                (state,) = await until(lambda: runtime.serving("web"))
                runtime.ends(state.guest, 1)
                await until(partial(gone, runtime, state.guest))
            outcome = await cloud.ask(Replace(web(two), expect=spec_digest(web(one))))
            assert outcome.changed
            status = await cloud.status("web")
            assert status is not None
            assert (status.state, status.restarts) == (ProcessState.RUNNING, 0)
            await until(lambda: len(runtime.states) == 1)

    run(work)


def test_a_call_that_fails_in_whatever_way_is_in_the_journal_as_failed_once() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            (tmp / "state" / "guests").rename(tmp / "away")
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Start(web(one)))
            assert caught.value.refusal.reason is Reason.INTERNAL
            (tmp / "state" / "volumes" / "v").write_text("in the way")
            with pytest.raises(CallRefused):
                await cloud.ask(CreateVolume("v", 1 << 20))
            failed = await cloud.events(Event.CALL_FAILED)
            assert [entry.call for entry in failed] == [entry.call for entry in await cloud.events(Event.CALL)]
            assert all("Error" in entry.detail for entry in failed)
            (tmp / "away").rename(tmp / "state" / "guests")
            assert (await cloud.ask(Start(web(one)))).changed

    run(work)


def test_a_call_that_is_half_done_when_the_supervisor_is_lost_is_finished_or_undone_once() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            go = cloud.runtime.stop_at("ready")
            asking = asyncio.create_task(cloud.ask(Start(web(one))))
            await cloud.runtime.reached["ready"].wait()
            cloud.runtime.links[-1].sever()
            go.set()
            with pytest.raises(CallRefused):
                await asking
            await until(lambda: not cloud.runtime.states)
            assert len(await until(lambda: cloud.events(Event.CALL_FAILED))) == 1

    run(work)


def test_while_a_long_question_is_deflated_everything_else_goes_on() -> None:
    async def work() -> None:
        question = random.Random(1).randbytes(1 << 20)
        deflating = asyncio.create_task(_deflated(question))
        turns = 0
        while not deflating.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 1
        assert zlib.decompress(deflating.result()) == question

    asyncio.run(work())
