"""The whole agent, with real guests: swaps under load, kills at any moment, and nothing left behind."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import resource
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.api.answers import Reason
from agent.api.calls import Configure, Envelope, Replace, Restart, Start, Stop
from agent.api.facts import ProcessState, ProcessStatus
from agent.api.journal import Event
from agent.api.processes import Endpoint, Ready, Update, spec_digest
from agent.client.client import AgentClient
from agent.client.errors import CallRefused
from agent.daemon.networking import Mode
from agent.main import AgentCannotStart, hold, parse_listen
from agent.main import run as run_agent
from tests.agent.service.daemon import (
    ANSWER_S,
    Daemon,
    both_networks,
    daemon,
    fetch,
    load,
    needs_guests,
    no_process_left,
    processes_of,
    web,
)
from tests.agent.service.support import HOST, ROUNDS, changed, prepare, put, run, until, wasm
from tests.ports import free_port
from tools import guests

KILLS = 5 * ROUNDS
"""With each kind of network. By hand, 40 rounds make 200 with each."""
SUPERVISOR_KILLS = 2 * ROUNDS


def programs(state_dir: Path) -> list[str]:
    files = [guests.path("web-1"), guests.path("web-2")]
    return put(state_dir, *(file.read_bytes() for file in files), b'greeting = "moin"\n', b"nonsense")


@needs_guests
@both_networks
def test_versions_and_configurations_are_swapped_under_load_without_a_failure(network: Mode) -> None:
    async def work(tmp: Path) -> None:
        one, two, moin, nonsense = programs(tmp / "state")
        port = free_port()
        with no_process_left(tmp / "state"):
            async with daemon(tmp, network=network) as host, host.client() as client:
                first = web(one, port)
                await client.call(Envelope(call=Start(first)))
                async with load(port) as requests:
                    await until(lambda: requests.served > 5)
                    second = web(two, port)
                    outcome = await client.call(Envelope(call=Replace(second, expect=spec_digest(first))))
                    assert set(outcome.steps) == {"spawn", "ready", "flip", "drain"}
                    await until(lambda: len(requests.versions) == 2)
                    call = Configure("web", {"/etc/web.toml": moin}, expect=spec_digest(second))
                    await client.call(Envelope(call=call))
                    await until(lambda: any(b"moin" in version for version in requests.versions))
                    third = changed(second, config={"/etc/web.toml": moin})
                    broken = Configure("web", {"/etc/web.toml": nonsense}, expect=spec_digest(third))
                    with pytest.raises(CallRefused) as caught:
                        await client.call(Envelope(call=broken))
                    assert caught.value.refusal.reason is Reason.NOT_READY
                    assert "nonsense" in caught.value.refusal.output_tail
                    await client.call(Envelope(call=Replace(first, expect=spec_digest(third))))
                    await client.call(Envelope(call=Restart("web", expect=spec_digest(first), nonce="once more")))
                assert requests.failures == []
                await client.call(Envelope(call=Stop("web", expect=spec_digest(first))))
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.to_thread(fetch, port)

    run(work)


@needs_guests
@both_networks
def test_where_the_old_version_ends_before_the_new_one_begins_connections_wait_and_none_is_lost(network: Mode) -> None:
    """Also where the new one does not begin to serve and the old one is started again."""

    async def work(tmp: Path) -> None:
        one, two, _, nonsense = programs(tmp / "state")
        port = free_port()
        rule = Update(order="stop-first", drain_s=20.0)
        first, second = web(one, port, update=rule), web(two, port, update=rule)
        async with daemon(tmp, network=network) as host, host.client() as client:
            await client.call(Envelope(call=Start(first)))
            async with load(port) as requests, load(port, long_lived=True) as long_requests:
                await until(lambda: requests.served > 5 and long_requests.served)
                await client.call(Envelope(call=Replace(second, expect=spec_digest(first))))
                await until(lambda: len(requests.versions) == 2)
                broken = Configure("web", {"/etc/web.toml": nonsense}, expect=spec_digest(second))
                with pytest.raises(CallRefused) as caught:
                    await client.call(Envelope(call=broken))
                assert "runs again" in caught.value.refusal.message
                served = requests.served
                await until(lambda: requests.served > served)
            assert requests.failures + long_requests.failures == []

    run(work)


@needs_guests
@both_networks
def test_an_agent_killed_at_any_moment_of_a_swap_leaves_the_old_or_the_new_version_and_drops_nothing(
    network: Mode,
) -> None:
    async def work(tmp: Path) -> None:
        one, two, *_ = programs(tmp / "state")
        port = free_port()
        dice = random.Random(7)
        with no_process_left(tmp / "state"):
            async with daemon(tmp, network=network) as host:
                # Longer than a connection of the load may live: none is cut.
                rule = Update(drain_s=20.0)
                runs, other = web(one, port, update=rule), web(two, port, update=rule)
                async with host.client() as client:
                    await client.call(Envelope(call=Start(runs)))
                    await client.call(Envelope(call=Replace(other, expect=spec_digest(runs))))
                    runs, other = other, runs
                async with load(port) as requests, load(port, long_lived=True) as long_requests:
                    for _ in range(KILLS):
                        async with host.client() as client:
                            call = Replace(other, expect=spec_digest(runs))
                            asking = asyncio.create_task(client.call(Envelope(call=call)))
                            await asyncio.wait({asking}, timeout=dice.uniform(0.0, 0.12))
                            host.end(signal.SIGKILL)
                            await asyncio.gather(asking, return_exceptions=True)
                        await asyncio.to_thread(host.start)
                        status = await until(lambda: at_rest(host))
                        assert status.spec_digest in (spec_digest(runs), spec_digest(other))
                        if status.spec_digest == spec_digest(other):
                            runs, other = other, runs
                        expected = b"2.0" if runs.binary == two else b"1.0"
                        assert expected in await asyncio.to_thread(fetch, port)
                assert requests.failures + long_requests.failures == []
                assert long_requests.served
                async with host.client() as client:
                    entries = await client.journal()
                assert [e.seq for e in entries] == list(range(len(entries)))
                assert sum(e.event is Event.AGENT_STARTED for e in entries) == KILLS + 1

    run(work)


async def at_rest(host: Daemon) -> ProcessStatus | None:
    """The process, if it runs with one guest and no other guest of it is left."""
    status = await host.status()
    guests = await asyncio.to_thread(os.listdir, host.state_dir / "guests")
    return status if status and status.state is ProcessState.RUNNING and len(guests) == 1 else None


@needs_guests
def test_guests_outlive_their_agent_and_a_guest_that_is_killed_comes_back() -> None:
    async def work(tmp: Path) -> None:
        one, *_ = programs(tmp / "state")
        port = free_port()
        with no_process_left(tmp / "state"):
            async with daemon(tmp) as host:
                async with host.client() as client:
                    await client.call(Envelope(call=Start(web(one, port))))
                before = await host.status()
                assert before is not None
                assert host.end(signal.SIGTERM) == 0
                assert b"200" in await asyncio.to_thread(fetch, port)
                await asyncio.to_thread(host.start)
                after = await until(lambda: at_rest(host))
                assert (after.pid, after.restarts) == (before.pid, 0)
                os.kill(after.pid, signal.SIGKILL)

                async def back(restarts: int) -> ProcessStatus | None:
                    status = await at_rest(host)
                    return status if status is not None and status.restarts == restarts else None

                status = await until(lambda: back(1))
                assert b"200" in await asyncio.to_thread(fetch, port)
                host.end(signal.SIGKILL)
                os.kill(status.pid, signal.SIGKILL)
                await asyncio.to_thread(host.start)
                await until(lambda: back(2))  # The agent may have seen the dying guest alive.
                assert b"200" in await asyncio.to_thread(fetch, port)

    run(work)


@needs_guests
def test_a_supervisor_that_is_killed_is_replaced_and_its_guests_notice_nothing() -> None:
    async def work(tmp: Path) -> None:
        one, two, *_ = programs(tmp / "state")
        port = free_port()
        with no_process_left(tmp / "state"):
            async with daemon(tmp) as host:
                first, second = web(one, port), web(two, port)
                async with host.client() as client:
                    await client.call(Envelope(call=Start(first)))
                before = await host.status()
                assert before is not None
                async with load(port) as requests, load(port, long_lived=True) as long_requests:
                    for _ in range(SUPERVISOR_KILLS):
                        await kill_supervisor(host)
                        await until(functools.partial(lambda served: requests.served > served + 5, requests.served))
                    async with host.client() as client:
                        after = await until(lambda: at_rest(host))
                        assert (after.pid, after.restarts) == (before.pid, 0)
                        replace = Replace(second, expect=spec_digest(first))
                        await until(lambda: accepted(client, Envelope(call=replace)))
                        await until(lambda: len(requests.versions) == 2)
                assert requests.failures + long_requests.failures == []
                assert long_requests.served
                # Who is taken over is watched as ever: its end is seen, and it is started again.
                await kill_supervisor(host)
                serving = await until(lambda: at_rest(host))
                os.kill(serving.pid, signal.SIGKILL)

                async def anew() -> bool:
                    status = await at_rest(host)
                    return status is not None and (status.pid, status.restarts) == (status.pid, 1)

                await until(anew)
                async with host.client() as client:
                    ended = [entry.guest for entry in await client.journal() if entry.event is Event.EXITED]
                    assert len(ended) == 1
                    await client.call(Envelope(call=Stop("web", expect=spec_digest(second))))
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.to_thread(fetch, port)

    run(work)


async def accepted(client: AgentClient, envelope: Envelope) -> bool:
    """The call is carried out; not where the agent has not found the supervisor again."""
    try:
        await client.call(envelope)
    except CallRefused as error:
        assert error.refusal.reason is Reason.INTERNAL
        return False
    return True


def supervisors(host: Daemon) -> list[int]:
    return processes_of(host.state_dir, b"agent.supervisor.main")


async def kill_supervisor(host: Daemon) -> None:
    """Kill it; returns when its successor is there."""
    await until(lambda: len(supervisors(host)) == 1)  # and not the one that starts it as well
    (pid,) = supervisors(host)
    log = host.state_dir / "supervisor.log"
    before = log.read_text().count("guests over")
    os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        return log.read_text().count("guests over") > before

    await until(replaced)


@needs_guests
def test_a_listener_gets_a_wider_address_stop_first_and_is_told_so() -> None:
    async def work(tmp: Path) -> None:
        one, *_ = programs(tmp / "state")
        port = free_port()
        narrow = web(one, port)
        wide = changed(narrow, listen={"http": Endpoint("0.0.0.0", port)})
        with no_process_left(tmp / "state"):
            async with daemon(tmp) as host, host.client() as client:
                await client.call(Envelope(call=Start(narrow)))
                with pytest.raises(CallRefused) as caught:
                    await client.call(Envelope(call=Replace(wide, expect=spec_digest(narrow))))
                assert caught.value.refusal.reason is Reason.NO_ROOM
                assert 'order = "stop-first"' in caught.value.refusal.hint
                assert "something else" not in caught.value.refusal.message
                assert b"200" in await asyncio.to_thread(fetch, port)
                for spec in (wide, narrow):
                    stop_first = changed(spec, update=Update(order="stop-first", drain_s=1.0))
                    running = (await client.processes())[0].spec_digest
                    await client.call(Envelope(call=Replace(stop_first, expect=running)))
                    assert b"200" in await asyncio.to_thread(fetch, port)

    run(work)


@needs_guests
def test_a_program_that_spins_or_ends_is_refused_with_its_output() -> None:
    async def work(tmp: Path) -> None:
        programs(tmp / "state")
        (waits,) = put(tmp / "state", wasm())
        with no_process_left(tmp / "state"):
            async with daemon(tmp) as host, host.client() as client:
                silent = web(waits, free_port(), ready=Ready("http", within_s=0.5))
                with pytest.raises(CallRefused) as caught:
                    await client.call(Envelope(call=Start(silent)))
                assert caught.value.refusal.reason is Reason.NOT_READY
                assert await client.processes() == ()
                job = changed(silent, listen={}, ready=None)
                assert (await client.call(Envelope(call=Start(job)))).changed
                (status,) = await client.processes()
                assert status.state is ProcessState.RUNNING
                assert status.memory_bytes > 0

    run(work)


def test_strangers_connections_do_not_use_up_the_agents_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs a hard limit of 4096 open files")

    async def work(tmp: Path) -> None:
        async with daemon(tmp, ("prlimit", "--nofile=256:")) as host:
            address, port = host.address.split(":")
            with ExitStack() as strangers:
                for _ in range(320):
                    strangers.enter_context(socket.create_connection((address, int(port)), timeout=ANSWER_S))
                async with asyncio.timeout(ANSWER_S), host.client() as client:
                    assert await client.processes() == ()

    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    try:
        run(work)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_agents_never_share_a_state_directory(tmp_path: Path) -> None:
    with hold(tmp_path / "state"):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
        with pytest.raises(AgentCannotStart, match="another agent"), hold(tmp_path / "state"):
            pass
    with hold(tmp_path / "state"):
        pass


def test_an_agent_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(AgentCannotStart, match=r"ca\.pem, cert\.pem, key\.pem"):
        run_agent("fra1", "127.0.0.1:0", tmp_path)
    with pytest.raises(AgentCannotStart, match="no address:port"):
        run_agent("fra1", "127.0.0.1", tmp_path)


def test_an_agent_that_cannot_listen_has_started_nothing(tmp_path: Path) -> None:
    prepare(tmp_path / "state")
    with (
        socket.create_server(("127.0.0.1", free_port())) as taken,
        pytest.raises(AgentCannotStart, match="cannot listen"),
    ):
        run_agent(HOST, f"127.0.0.1:{taken.getsockname()[1]}", tmp_path / "state")
    assert processes_of(tmp_path / "state") == []
    assert not (tmp_path / "state" / "store").exists()


def test_where_to_listen_is_an_address_and_a_port() -> None:
    assert parse_listen("127.0.0.1:7400") == ("127.0.0.1", 7400)
    assert parse_listen("[::1]:0") == ("::1", 0)
    assert parse_listen(":7400") == ("0.0.0.0", 7400)
    for wrong in ("", "7400", "host:", "host:port", "host:65536", "host:-1"):
        with pytest.raises(AgentCannotStart):
            parse_listen(wrong)
