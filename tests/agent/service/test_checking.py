"""Readiness by a command's exit: the check sees exactly the version that it judges, what it says decides, and nothing
of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api.answers import Reason, Refusal
from agent.api.calls import CreateVolume, Envelope, Replace, Start
from agent.api.facts import ProcessState
from agent.api.processes import Endpoint, ProcessSpec, Ready, Update
from agent.client.errors import CallRefused
from agent.daemon.checking import new_check_id
from agent.daemon.networking import Mode
from agent.runtime import GuestState
from agent.supervisor.client import SupervisorClient
from cas.digest import Digest
from tests import guests
from tests.agent.service.daemon import READY_S, both_networks, daemon, fetch, needs_guests
from tests.agent.service.support import (
    Cloud,
    MemoryRuntime,
    changed,
    host,
    put,
    real,
    run,
    spec_digest,
    until,
    wasm,
    web,
)
from tests.ports import free_port

QUICK = Update(drain_s=0.5)
ENOUGH_S = 3.0
"""For a check to be started, and to fail, also on a machine with much else to do."""


def job(binary: Digest, *args: str, run: tuple[str, ...], within_s: float = READY_S, **fields: Any) -> ProcessSpec:
    ready = Ready(run=run, within_s=within_s)
    return ProcessSpec("web", binary, args=args, ready=ready, update=QUICK, cores_milli=100, **fields)


async def refusal_of(cloud: Cloud, call: Start | Replace) -> Refusal:
    with pytest.raises(CallRefused) as caught:
        await cloud.ask(call)
    assert caught.value.refusal.reason is Reason.NOT_READY
    return caught.value.refusal


async def checks(cloud: Cloud) -> list[GuestState]:
    return [state for name, state in (await cloud.agent.processes.known_guests()).items() if "-check-" in name]


async def outcome(cloud: Cloud, *command: str, within_s: float) -> tuple[int | None, str]:
    """One check of what runs: its exit code, and the last line it printed."""
    lifecycle = cloud.agent.processes.get("web")
    assert lifecycle is not None
    version = lifecycle.record.current
    assert version is not None
    version = msgspec.structs.replace(version, spec=changed(version.spec, ready=Ready(run=command)))
    acts = cloud.agent.processes._guests
    check = new_check_id("web")
    state = await acts._check(await acts.builder.check_order(version, check), within_s)
    lines = (await acts.builder.said_by_check(check)).strip().splitlines()
    await acts._discard_check("web", check)
    return state.exit_code, lines[-1] if lines else ""


async def nothing_runs(cloud: Cloud) -> bool:
    return not await cloud.agent.processes.known_guests()


def left_of_checks(tmp: Path) -> list[str]:
    return [path.name for path in (tmp / "state" / "guests").iterdir() if "-check-" in path.name]


@needs_guests
@both_networks
def test_a_check_meets_exactly_the_version_that_it_judges(network: Mode) -> None:
    async def work(tmp: Path) -> None:
        port = free_port()
        probe, one, two, three = put(tmp / "state", guests.path("probe").read_bytes(), b"one", b"two", b"three")

        def serving(content: Digest, expected: str) -> ProcessSpec:
            return job(
                probe,
                *("serve-file", str(port), "/etc/app/text"),
                run=("expect", "127.0.0.1", str(port), expected),
                within_s=READY_S if content != three else ENOUGH_S,
                config={"/etc/app/text": content},
                listen={"http": Endpoint("0.0.0.0", port)},
            )

        async with real(tmp, network) as cloud:
            first, second, third = serving(one, "one"), serving(two, "two"), serving(three, "two")
            await cloud.ask(Start(first))
            await cloud.ask(Replace(second, expect=spec_digest(first)))
            assert (await asyncio.to_thread(fetch, port)).endswith(b"two")
            refusal = await refusal_of(cloud, Replace(third, expect=spec_digest(second)))
            assert "its check `expect 127.0.0.1" in refusal.message
            assert "exit code 1" in refusal.message
            assert "it answers HTTP/1.1 200 OK" in refusal.output_tail
            assert refusal.output_tail.rstrip().endswith("three")
            assert (await asyncio.to_thread(fetch, port)).endswith(b"two")
            assert await checks(cloud) == []
            assert left_of_checks(tmp) == []

    run(work)


@needs_guests
@both_networks
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_check_meets_a_dark_udp_listener(address: str, network: Mode) -> None:
    async def work(tmp: Path) -> None:
        port = free_port()
        (probe,) = put(tmp / "state", guests.path("probe").read_bytes())

        def echo(*how: str, **fields: Any) -> ProcessSpec:
            listen = {"dns": Endpoint(address, port, "udp")}
            args = ("udp-echo", str(port), address, *how)
            return job(probe, *args, run=("udp-ask", address, str(port)), listen=listen, **fields)

        async with real(tmp, network) as cloud:
            answers, mute = echo(), echo("mute", within_s=ENOUGH_S)
            await cloud.ask(Start(answers))
            refusal = await refusal_of(cloud, Replace(mute, expect=spec_digest(answers)))
            assert "receive denied timeout" in refusal.message
            silent = changed(mute, ready=None)
            await cloud.ask(Replace(silent, expect=spec_digest(answers)))
            await cloud.ask(Replace(answers, expect=spec_digest(silent)))

    run(work)


@needs_guests
def test_a_check_has_its_process_files_and_no_volume_and_may_not_listen() -> None:
    async def work(tmp: Path) -> None:
        port = free_port()
        probe, text = put(tmp / "state", guests.path("probe").read_bytes(), b"of the process")
        given: dict[str, Any] = {"config": {"/etc/app/text": text}, "volume": {"/data": "data"}}
        given["listen"] = {"http": Endpoint("127.0.0.1", port)}
        listening = ("listen", str(port), "127.0.0.1")
        async with real(tmp) as cloud:
            await cloud.ask(CreateVolume("data", 16 << 20))
            await cloud.ask(Start(job(probe, *listening, run=("read", "/etc/app/text"), **given)))
            for command, code, said in (
                (("read", "/etc/app/text"), 0, "of the process"),
                (("env",), 0, f"LOWCLOUD_LISTEN_HTTP=127.0.0.1:{port}"),
                (("write", "/data/x", "y"), 1, "write denied"),
                (("write", "/etc/app/text", "y"), 1, "write denied"),
                (listening, 1, "web: cannot listen: access-denied"),
                (("connect", "127.0.0.1", "1"), 1, "connect denied access-denied"),
                (("trap",), 134, ""),
                (("sleep", "60000"), 137, "sleeping"),
            ):
                found = await outcome(cloud, *command, within_s=ENOUGH_S if code == 137 else READY_S)
                assert (found[0], found[1][: len(said)]) == (code, said)
                assert await checks(cloud) == []
                assert left_of_checks(tmp) == []

    run(work)


@needs_guests
def test_a_process_without_listeners_is_ready_when_its_check_passes() -> None:
    async def work(tmp: Path) -> None:
        (probe,) = put(tmp / "state", guests.path("probe").read_bytes())
        async with real(tmp) as cloud:
            refusal = await refusal_of(cloud, Start(job(probe, "never-listen", run=("exit", "1"), within_s=ENOUGH_S)))
            assert "its check `exit 1` ended with exit code 1" in refusal.message
            await cloud.ask(Start(job(probe, "never-listen", run=("exit", "0"))))
            status = await cloud.status("web")
            assert status is not None
            assert status.state is ProcessState.RUNNING

    run(work)


@needs_guests
def test_a_version_that_ends_takes_its_check_along_and_is_what_the_refusal_tells_of() -> None:
    async def work(tmp: Path) -> None:
        (probe,) = put(tmp / "state", guests.path("probe").read_bytes())
        async with real(tmp) as cloud:
            refusal = await refusal_of(cloud, Start(job(probe, "sleep", "200", run=("sleep", "60000"))))
            assert "it exited with code 0" in refusal.message
            assert await checks(cloud) == []

    run(work)


@needs_guests
def test_a_check_ends_with_the_supervisor_and_is_no_version_to_the_next_one() -> None:
    async def work(tmp: Path) -> None:
        (probe,) = put(tmp / "state", guests.path("probe").read_bytes())
        async with real(tmp) as cloud:
            spec = job(probe, "never-listen", run=("sleep", "60000"))
            asking = asyncio.create_task(cloud.ask(Start(spec)))
            check = (await until(lambda: checks(cloud)))[0]
            supervisor = cloud.agent.processes._guests.runtime
            assert isinstance(supervisor, SupervisorClient)
            os.kill(supervisor.supervisor_pid, signal.SIGKILL)
            with pytest.raises(CallRefused):
                await asking
            await until(cloud.agent.processes.linked.is_set)
            await until(lambda: not Path(f"/proc/{check.pid}/cwd").exists())
            await until(lambda: nothing_runs(cloud))
            await until(lambda: not list((tmp / "state" / "guests").iterdir()))
            assert await cloud.status("web") is None

    run(work)


@needs_guests
def test_a_check_that_an_agent_left_behind_is_swept_up_by_the_next_one() -> None:
    async def work(tmp: Path) -> None:
        (probe,) = put(tmp / "state", guests.path("probe").read_bytes())
        spec = job(probe, "never-listen", run=("sleep", "60000"))
        async with daemon(tmp) as agent:

            async def ask() -> None:
                async with agent.client() as client:
                    await client.call(Envelope(call=Start(spec)))

            asking = asyncio.create_task(ask())
            await until(lambda: left_of_checks(tmp))
            agent.end()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.to_thread(agent.start)
            await until(lambda: not list((tmp / "state" / "guests").iterdir()))
            assert await agent.status() is None

    run(work)


def test_a_check_is_repeated_until_it_passes_and_its_environment_names_the_listeners() -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        runtime = MemoryRuntime()
        ready = Ready("http", within_s=60.0, run=("exit:1",))
        spec = web(one, listen={"http": Endpoint("0.0.0.0", 8080)}, ready=ready, env={"A": "b"})
        async with host(tmp / "state", runtime) as cloud:
            asking = asyncio.create_task(cloud.ask(Start(spec)))
            await until(lambda: len(runtime.checks) > 2)
            orders = runtime.checks
            assert len({order.guest for order in orders}) == len(orders)
            assert orders[0].env == {"A": "b", "LOWCLOUD_LISTEN_HTTP": "127.0.0.1:8080"}
            assert orders[0].listen == {}
            guest = next(iter(runtime.states))
            runtime.ends(guest, 3)
            with pytest.raises(CallRefused, match="has ended"):
                await asking
            assert left_of_checks(tmp) == []

    run(work)


def test_a_version_on_probation_is_asked_by_its_command_again() -> None:
    async def work(tmp: Path) -> None:
        one, two = put(tmp / "state", wasm("one"), wasm("two"))
        runtime = MemoryRuntime()
        first = web(one)
        rule = Update(drain_s=0.1, probation_s=600.0)
        second = changed(first, binary=two, update=rule, ready=Ready(run=("exit:0",), within_s=0.3))
        async with host(tmp / "state", runtime) as cloud:
            await cloud.ask(Start(first))
            asking = asyncio.create_task(cloud.ask(Replace(second, expect=spec_digest(first))))
            await until(lambda: len(runtime.checks) > 1)
            runtime.failing_checks = True
            with pytest.raises(CallRefused, match="probation"):
                await asking

    run(work)


@pytest.mark.parametrize(
    ("ready", "why"),
    [
        (Ready(), "neither a listener"),
        (Ready(path="/"), "names no listener"),
        (Ready(run=("a\0b",)), "zero byte"),
        (Ready("other", run=("x",)), "which it does not have"),
    ],
)
def test_a_rule_that_asks_for_nothing_is_refused(ready: Ready, why: str) -> None:
    async def work(tmp: Path) -> None:
        (one,) = put(tmp / "state", wasm())
        async with host(tmp / "state") as cloud:
            with pytest.raises(CallRefused, match=why):
                await cloud.ask(Start(web(one, ready=ready)))

    run(work)
