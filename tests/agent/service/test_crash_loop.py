"""Crash loops: counted across everything that may happen to the agent, told to whoever looks, and ended by a limit."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from agent.api.calls import Replace, Resize, Restart, Start
from agent.api.facts import ProcessState, ProcessStatus
from agent.api.journal import Event
from agent.api.processes import ProcessSpec, spec_digest
from agent.daemon import host as host_facts
from agent.daemon.backoff import GOOD_RUN_S
from agent.daemon.crash_loop import failed, given_up, gives_up, since_boot, told
from agent.daemon.metrics import exposition
from agent.daemon.state import Record, Version
from tests.agent.service.support import Cloud, MemoryRuntime, changed, host, put, run, until, wasm, web

NOBODY = "b3:" + 64 * "0"
LIMIT = 3


@given(st.lists(st.sampled_from([0.0, 1.0, GOOD_RUN_S])), st.integers(1, 5))
def test_it_gives_up_after_exactly_so_many_starts_without_a_good_run(runs: list[float], limit: int) -> None:
    record = Record("web", current=Version(web(NOBODY, restart_limit=limit)))
    bad = 0
    for ran_s in runs:
        record = failed(record, "it ended", ran_s=ran_s, exit_code=1, now_unix=1.0, boot="a")
        bad = 0 if ran_s >= GOOD_RUN_S else bad + 1
        assert gives_up(record) == (bad >= limit)
        assert since_boot(record, "a") == record
        assert not gives_up(since_boot(record, "b"))


def test_without_a_limit_it_never_gives_up() -> None:
    record = Record("web", current=Version(web(NOBODY)))
    for _ in range(100):
        record = failed(record, "it ended", now_unix=1.0, boot="a")
    assert not gives_up(record)
    assert web(NOBODY, restart_limit=0) == web(NOBODY)
    assert spec_digest(web(NOBODY, restart_limit=0)) == spec_digest(web(NOBODY))


def test_what_was_given_up_before_the_machine_restarted_is_started_again() -> None:
    record = Record("web", current=Version(web(NOBODY, restart_limit=1)))
    record = given_up(failed(record, "it ended with exit code 7", exit_code=7, now_unix=1.0, boot="a"))
    assert record.finished is not None
    assert since_boot(record, "a").finished == record.finished
    assert since_boot(record, "b") == Record("web", current=record.current)
    assert "given up after 1 start " in told(record)


async def dies(cloud: Cloud, exit_code: int) -> None:
    """The guest that runs, or the next one that does, ends by itself."""
    [guest] = await until(lambda: [state.guest for state in cloud.runtime.serving("web")])
    cloud.runtime.ends(guest, exit_code)


async def shown(cloud: Cloud, state: ProcessState, *, starts: int | None = None) -> ProcessStatus:
    """What is told of it, once it is in this state, after so many starts in a row."""

    async def found() -> ProcessStatus | None:
        status = await cloud.status("web")
        if status is None or status.state is not state:
            return None
        told_of = status.troubles.starts if status.troubles is not UNSET else 0
        return status if starts in (None, told_of) else None

    status = await until(found)
    assert isinstance(status, ProcessStatus)
    return status


async def given_up_at(cloud: Cloud, spec: ProcessSpec) -> ProcessStatus:
    await cloud.ask(Start(spec))
    for _ in range(LIMIT):
        await dies(cloud, 7)
    return await shown(cloud, ProcessState.FAILED)


def test_a_crash_loop_is_told_while_it_lasts() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one)))
            assert (await shown(cloud, ProcessState.RUNNING)).troubles is UNSET
            for _ in range(4):
                await dies(cloud, 7)
            waits = await shown(cloud, ProcessState.BACKOFF, starts=4)
            assert waits.next_start_unix is not UNSET
            assert waits.next_start_unix > waits.since_unix
            runs = await shown(cloud, ProcessState.RUNNING, starts=4)
            for status in (waits, runs):
                assert status.troubles is not UNSET
                assert (status.troubles.starts, status.troubles.exit_code) == (4, 7)
                assert "exit code 7" in status.reason
                assert "4 starts in a row" in status.reason
            assert runs.next_start_unix is UNSET
            text = exposition(cloud.agent.facts(), [waits], [])
            assert 'lowcloud_process_starts_in_a_row{process="web"} 4' in text
            assert 'lowcloud_process_last_exit_code{process="web"} 7' in text
            assert 'lowcloud_process_next_start_seconds{process="web"} 1' in text

    run(work)


def test_a_process_at_its_limit_stays_down_with_its_agent_restarted_too_until_a_restart() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        spec = web(one, restart_limit=LIMIT)
        async with host(tmp / "state", runtime) as cloud:
            status = await given_up_at(cloud, spec)
            assert status.given_up is True
            assert f"given up after {LIMIT} starts" in status.reason
            assert runtime.alive() == []
            exits = await cloud.events(Event.EXITED)
            assert len(exits) == LIMIT
            assert "given up" in exits[-1].detail
        async with host(tmp / "state", runtime) as cloud:
            again = await shown(cloud, ProcessState.FAILED)
            assert (again.given_up, again.troubles) == (True, status.troubles)
            assert runtime.alive() == []
            assert 'lowcloud_process_given_up{process="web"} 1' in exposition(cloud.agent.facts(), [again], [])
            await cloud.ask(Restart("web", expect=spec_digest(spec), nonce="12345678"))
            runs = await shown(cloud, ProcessState.RUNNING)
            assert (runs.given_up, runs.troubles) == (UNSET, UNSET)

    run(work)


def test_the_count_goes_on_with_the_next_agent() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(web(one, restart_limit=LIMIT)))
            await dies(cloud, 7)
            await shown(cloud, ProcessState.RUNNING, starts=1)
        [guest] = [state.guest for state in runtime.serving("web")]
        runtime.ends(guest, 7)
        async with host(tmp / "state", runtime) as cloud:
            await shown(cloud, ProcessState.RUNNING, starts=2)
            await dies(cloud, 7)
            await shown(cloud, ProcessState.FAILED, starts=LIMIT)

    run(work)


def test_a_restart_of_the_machine_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        async with host(tmp / "state", runtime) as cloud:
            await given_up_at(cloud, web(one, restart_limit=LIMIT))
        runtime.lose_everything()
        monkeypatch.setattr(host_facts, "boot", lambda: "another")
        async with host(tmp / "state", runtime) as cloud:
            assert (await shown(cloud, ProcessState.RUNNING)).troubles is UNSET

    run(work)


def test_a_version_that_does_not_become_ready_any_more_counts_and_another_version_begins_anew() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        runtime = MemoryRuntime()
        spec = web(one, restart_limit=LIMIT)
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(spec))
            runtime.failing = True
            await dies(cloud, 7)
            status = await shown(cloud, ProcessState.FAILED, starts=LIMIT)
            assert status.given_up is True
            assert status.troubles is not UNSET
            assert status.troubles.exit_code is None
            assert "could not be instantiated" in status.reason
            assert [e.detail[:8] for e in await cloud.events(Event.ENDED)] == ["given up"]
            runtime.failing = False
            await cloud.ask(Replace(changed(spec, binary=two), expect=spec_digest(spec)))
            await shown(cloud, ProcessState.RUNNING, starts=0)

    run(work)


def test_a_higher_limit_lets_it_go_on_and_other_rules_do_not() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        spec = web(one, restart_limit=LIMIT)
        async with host(tmp / "state") as cloud:
            await given_up_at(cloud, spec)
            slower = changed(spec, cores_milli=500)
            await cloud.ask(Resize(slower, expect=spec_digest(spec)))
            assert (await shown(cloud, ProcessState.FAILED)).given_up is True
            await cloud.ask(Resize(changed(slower, restart_limit=LIMIT + 1), expect=spec_digest(slower)))
            await shown(cloud, ProcessState.RUNNING)
            await dies(cloud, 7)
            assert (await shown(cloud, ProcessState.FAILED)).given_up is True

    run(work)


def test_a_guest_that_has_run_well_has_no_troubles_left() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(web(one, restart_limit=2)))
            await dies(cloud, 7)
            await shown(cloud, ProcessState.RUNNING, starts=1)
            lifecycle = cloud.agent.processes.get("web")
            assert lifecycle is not None
            [runs] = cloud.runtime.serving("web")
            long_ago = msgspec.structs.replace(runs, started_unix=runs.started_unix - GOOD_RUN_S)
            lifecycle.standing.running = cloud.runtime.states[runs.guest] = long_ago
            await shown(cloud, ProcessState.RUNNING, starts=0)
            await dies(cloud, 7)
            await dies(cloud, 7)
            await shown(cloud, ProcessState.RUNNING, starts=1)

    run(work)
