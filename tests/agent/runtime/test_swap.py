"""Swaps: no connection is lost, and what is not ready never gets one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from agent.api.processes import Endpoint, Ready
from agent.runtime import EndpointTaken, GuestFailed
from agent.supervisor.client import SupervisorClient
from tests.agent.runtime.support import DEADLINE_S, http_get, network, order, supervisor, swap_under_load, until
from tests.ports import free_port

ENOUGH_S = 2.0
"""For a guest to begin, or to answer once, on a machine with much else to do."""

pytestmark = pytest.mark.usefixtures(network.__name__)


async def has_ended(client: SupervisorClient, guest: str) -> bool:
    return (await client.guests())[guest].exit_code is not None


def own_addresses() -> list[str]:
    """Loopback in three forms, and an address of a real interface where there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            other = [probe.getsockname()[0]]
        except OSError:
            other = []
    return ["127.0.0.1", "127.0.1.1", "::1", *other]


@pytest.mark.parametrize("address", own_addresses())
def test_the_new_version_is_dark_until_the_flip_and_serves_from_then_on(tmp_path: Path, address: str) -> None:
    endpoint = Endpoint(address, free_port(address))

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            listen = {"http": endpoint}
            await client.spawn(order(tmp_path, "web-1", "web-1", listen=listen))
            await client.wait_ready("web-1", Ready("http", "/"), deadline_s=DEADLINE_S)
            await client.spawn(order(tmp_path, "web-2", "web-2", listen=listen))
            await client.wait_ready("web-2", Ready("http", "/"), deadline_s=DEADLINE_S)
            states = await client.guests()
            assert (states["web-1"].serving, states["web-2"].serving) == (True, False)
            assert states["web-2"].listening
            assert {await asyncio.to_thread(http_get, endpoint) for _ in range(8)} == {"hello from web 1.0\n"}
            await client.flip("web-2")
            assert {await asyncio.to_thread(http_get, endpoint) for _ in range(8)} == {"hello from web 2.0\n"}
            assert await client.drain("web-1", deadline_s=DEADLINE_S)
            await client.kill("web-1")
            assert await asyncio.to_thread(http_get, endpoint) == "hello from web 2.0\n"
            assert set(await client.guests()) == {"web-2"}

    asyncio.run(scenario())


def test_a_wildcard_listener_is_proven_and_the_definition_decides_on_the_address(tmp_path: Path) -> None:
    port = free_port()

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            # The program asks for 0.0.0.0; the definition says 127.0.0.1.
            listen, env = {"http": Endpoint("127.0.0.1", port)}, {"LOWCLOUD_LISTEN_HTTP": f"0.0.0.0:{port}"}
            narrow = order(tmp_path, "a-1", "web-1", listen=listen, env=env)
            await client.spawn(narrow)
            await client.wait_ready("a-1", Ready("http", "/"), deadline_s=DEADLINE_S)
            with pytest.raises(OSError, match="refused"):
                await asyncio.to_thread(http_get, Endpoint("127.0.0.3", port))
            await client.kill("a-1")
            await client.forget("a-1")
            await client.spawn(order(tmp_path, "b-1", "web-1", listen={"http": Endpoint("0.0.0.0", port)}))
            await client.wait_ready("b-1", Ready("http", "/"), deadline_s=DEADLINE_S)
            assert await asyncio.to_thread(http_get, Endpoint("127.0.0.3", port)) != ""

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("args", "path", "reason", "within_s"),
    [
        (("never-listen",), None, "never listened on http", ENOUGH_S),
        (("listen-then-exit", "PORT", "50"), "/", "exited with code", DEADLINE_S),
        (("http500", "PORT"), "/", "answered GET / with 500", ENOUGH_S),
        (("http500-once", "PORT"), "/", "answered GET / with 500", ENOUGH_S),
        (("slow-response", "PORT", "60000"), "/", "did not answer GET /", 0.7),
        (("exit", "7"), None, "exited with code 1", DEADLINE_S),
        (("listen", "OTHER"), None, "which its definition does not name", DEADLINE_S),
    ],
)
def test_a_version_that_is_not_ready_says_why_and_never_gets_a_connection(
    tmp_path: Path, args: tuple[str, ...], path: str | None, reason: str, within_s: float
) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())
    ports = {"PORT": str(endpoint.port), "OTHER": str(free_port())}

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            listen = {"http": endpoint}
            await client.spawn(order(tmp_path, "web-1", "web-1", listen=listen))
            await client.wait_ready("web-1", Ready("http", "/"), deadline_s=DEADLINE_S)
            await client.spawn(order(tmp_path, "web-2", "probe", *(ports.get(a, a) for a in args), listen=listen))
            if "GET" in reason:
                await client.wait_ready("web-2", None, deadline_s=DEADLINE_S)  # it listens
            with pytest.raises(GuestFailed, match=reason):
                await client.wait_ready("web-2", Ready("http", path), deadline_s=within_s)
            assert await asyncio.to_thread(http_get, endpoint) == "hello from web 1.0\n"
            await client.kill("web-2")
            assert {await asyncio.to_thread(http_get, endpoint) for _ in range(8)} == {"hello from web 1.0\n"}

    asyncio.run(scenario())


def test_a_late_listener_is_waited_for(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            late = order(
                tmp_path, "late-1", "probe", "listen-late", str(endpoint.port), "300", listen={"http": endpoint}
            )
            await client.spawn(late)
            await client.wait_ready("late-1", Ready("http"), deadline_s=DEADLINE_S)

    asyncio.run(scenario())


def test_connections_to_a_server_that_died_wait_for_the_next_one(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            listen = {"http": endpoint}
            for number in range(3):
                state = await client.spawn(order(tmp_path, f"web-{number}", "web-1", listen=listen))
                await client.wait_ready(f"web-{number}", Ready("http", "/"), deadline_s=DEADLINE_S)
                os.kill(state.pid, signal.SIGKILL)
                waiting = [asyncio.create_task(asyncio.to_thread(http_get, endpoint)) for _ in range(5)]
                await until(partial(has_ended, client, state.guest), "the supervisor sees that it died")
                await client.spawn(order(tmp_path, f"web-{number}0", "web-2", listen=listen))
                assert set(await asyncio.gather(*waiting)) == {"hello from web 2.0\n"}
                await client.kill(f"web-{number}0")
                await client.forget(f"web-{number}")
                await client.forget(f"web-{number}0")

    asyncio.run(scenario())


def test_handing_over_one_process_after_the_other_loses_no_connection(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            listen = {"http": endpoint}
            await client.spawn(order(tmp_path, "web-0", "web-1", listen=listen))
            await client.wait_ready("web-0", Ready("http", "/"), deadline_s=DEADLINE_S)
            for number in range(1, 4):
                await client.kill(f"web-{number - 1}")
                waiting = [asyncio.create_task(asyncio.to_thread(http_get, endpoint)) for _ in range(5)]
                await client.spawn(order(tmp_path, f"web-{number}", "web-2", listen=listen))
                assert set(await asyncio.gather(*waiting)) == {"hello from web 2.0\n"}
                assert set(await client.guests()) == {f"web-{number}"}

    asyncio.run(scenario())


def test_a_connection_that_is_under_way_keeps_a_drain_waiting_until_the_deadline(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            listen = {"http": endpoint}
            await client.spawn(order(tmp_path, "web-1", "web-1", listen=listen))
            await client.wait_ready("web-1", Ready("http", "/"), deadline_s=DEADLINE_S)
            with socket.create_connection((endpoint.address, endpoint.port)) as kept:
                await client.spawn(order(tmp_path, "web-2", "web-2", listen=listen))
                await client.wait_ready("web-2", Ready("http", "/"), deadline_s=DEADLINE_S)
                await client.flip("web-2")
                assert not await client.drain("web-1", deadline_s=0.4)
                kept.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                assert b"web 1.0" in kept.recv(4096)
            assert await client.drain("web-1", deadline_s=DEADLINE_S)

    asyncio.run(scenario())


def test_stopping_turns_new_connections_away_at_once_and_frees_the_address(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            await client.spawn(order(tmp_path, "web-1", "web-1", listen={"http": endpoint}))
            await client.wait_ready("web-1", Ready("http", "/"), deadline_s=DEADLINE_S)
            assert await client.drain("web-1", deadline_s=DEADLINE_S)
            with pytest.raises(OSError, match="reset"):
                await asyncio.to_thread(http_get, endpoint)
            await client.kill("web-1")
            await client.forget("web-1")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.to_thread(http_get, endpoint)
            socket.create_server((endpoint.address, endpoint.port)).close()

    asyncio.run(scenario())


def test_an_address_that_something_else_uses_is_not_shared(tmp_path: Path) -> None:
    async def scenario() -> None:
        a, b = tmp_path / "a", tmp_path / "b"
        a.mkdir()
        b.mkdir()
        async with supervisor(a) as one, supervisor(b) as other:
            endpoint = Endpoint("127.0.0.1", free_port())
            await one.spawn(order(a, "web-1", "web-1", listen={"http": endpoint}))
            await one.wait_ready("web-1", Ready("http"), deadline_s=DEADLINE_S)
            with pytest.raises(EndpointTaken, match="in use"):
                await other.spawn(order(b, "web-1", "web-1", listen={"http": endpoint}))
            with pytest.raises(EndpointTaken, match="in use"):
                await other.spawn(order(b, "web-2", "web-1", listen={"http": Endpoint("0.0.0.0", endpoint.port)}))
            with pytest.raises(EndpointTaken, match="belongs to the process web"):
                await one.spawn(order(a, "else-1", "web-1", listen={"http": endpoint}))
            with socket.create_server(("127.0.0.1", 0)) as stranger:
                taken = Endpoint("127.0.0.1", stranger.getsockname()[1])
                with pytest.raises(EndpointTaken, match="in use"):
                    await other.spawn(order(b, "web-3", "web-1", listen={"http": taken}))
            with pytest.raises(GuestFailed, match="does not have the address"):
                await other.spawn(order(b, "web-4", "web-1", listen={"http": Endpoint("203.0.113.7", 8080)}))
            assert await other.guests() == {}

    asyncio.run(scenario())


def test_two_hosts_on_one_machine_reach_each_other_by_declared_connections_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        a, b = tmp_path / "a", tmp_path / "b"
        a.mkdir()
        b.mkdir()
        async with supervisor(a) as one, supervisor(b) as other:
            kv = Endpoint("127.0.0.1", free_port())
            await one.spawn(order(a, "web-1", "web-1", listen={"http": kv}))
            await one.wait_ready("web-1", Ready("http"), deadline_s=DEADLINE_S)
            target = (kv.address, str(kv.port))
            await other.spawn(order(b, "may-1", "probe", "connect", *target, connect_to={"kv": kv}))
            elsewhere = {"kv": Endpoint("127.0.0.1", free_port())}
            await other.spawn(order(b, "not-1", "probe", "connect", *target, connect_to=elsewhere))
            ended = {}
            async with asyncio.timeout(DEADLINE_S):
                async for exited in other.exits():
                    ended[exited.state.process] = exited.state.exit_code
                    if len(ended) == 2:
                        break
            assert ended == {"may": 0, "not": 1}
            assert "denied access-denied" in (b / "not-1.log").read_text()

    asyncio.run(scenario())


def test_a_udp_guest_answers_before_and_after_its_swap(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port(), "udp")

    def ask(text: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(DEADLINE_S)
            client.sendto(text, (endpoint.address, endpoint.port))
            return client.recv(100)

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            for number in range(3):
                args = ("udp-echo", str(endpoint.port))
                await client.spawn(order(tmp_path, f"dns-{number}", "probe", *args, listen={"dns": endpoint}))
                await client.wait_ready(f"dns-{number}", None, deadline_s=DEADLINE_S)
                await client.flip(f"dns-{number}")
                assert await asyncio.to_thread(ask, b"hello") == b"hello"
                if number:
                    assert await client.drain(f"dns-{number - 1}", deadline_s=DEADLINE_S)
                    await client.kill(f"dns-{number - 1}")

    asyncio.run(scenario())


def test_swaps_under_load_lose_no_connection(tmp_path: Path) -> None:
    swap_under_load(tmp_path, lambda _: None)
