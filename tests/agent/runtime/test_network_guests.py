"""Real guests in network namespaces: they change over under load, at each of their listeners, and lose nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from agent.api.processes import Endpoint, Ready
from agent.daemon.usage import connections
from agent.runtime import GuestOrder, Network, local_address
from agent.supervisor.client import connect
from benchmarks import swap
from tests.agent.runtime.support import (
    DEADLINE_S,
    http_get,
    is_alive,
    loaded,
    needs_namespaces,
    order,
    supervisor,
    swap_under_load,
    until,
)
from tests.ports import free_port

pytestmark = needs_namespaces


def test_versions_in_the_hosts_network_and_in_namespaces_take_turns_and_lose_no_connection(tmp_path: Path) -> None:
    swap_under_load(tmp_path, lambda number: "listeners" if number % 2 else "namespace")


@pytest.mark.parametrize("second", [("::1", 0), ("127.0.0.2", 0), ("::", 1)], ids=str)
def test_a_guest_with_several_listeners_changes_over_at_all_of_them(tmp_path: Path, second: tuple[str, int]) -> None:
    port = free_port()
    listen = {"one": Endpoint("127.0.0.1", port), "two": Endpoint(second[0], free_port() if second[1] else port)}
    args = [word for endpoint in listen.values() for word in (str(endpoint.port), endpoint.address)]
    near = [Endpoint(local_address(endpoint), endpoint.port) for endpoint in listen.values()]

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            for number in range(3):
                await client.spawn(
                    order(tmp_path, f"both-{number}", "probe", "listen-both", *args, listen=listen, network="namespace")
                )
                for name in listen:
                    await client.wait_ready(f"both-{number}", Ready(name, "/"), deadline_s=DEADLINE_S)
                await client.flip(f"both-{number}")
                if number:
                    assert await client.drain(f"both-{number - 1}", deadline_s=DEADLINE_S)
                    await client.kill(f"both-{number - 1}")
                assert [await asyncio.to_thread(http_get, endpoint) for endpoint in near] == ["probe\n", "probe\n"]

    asyncio.run(scenario())


def test_open_connections_of_a_guest_are_counted_wherever_its_listener_is(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    async def scenario() -> None:
        async with supervisor(tmp_path) as client:
            connected: list[Network] = ["listeners", "namespace", "listeners"]
            for number, network in enumerate(connected):
                # Each takes the listener of the one before over, which was ended.
                made = order(tmp_path, f"web-{number}", "web-1", listen={"http": endpoint}, network=network)
                state = await client.spawn(made)
                await client.wait_ready(state.guest, Ready("http", "/"), deadline_s=DEADLINE_S)
                await until(lambda pid=state.pid: connections(pid, {}) == 0, "the probe's connection has ended")
                with socket.create_connection((endpoint.address, endpoint.port), DEADLINE_S) as kept:
                    kept.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                    assert await asyncio.to_thread(kept.recv, 100)
                    assert connections(state.pid, {}) == 1
                await client.kill(state.guest)

    asyncio.run(scenario())


def test_a_supervisor_killed_under_load_costs_no_connection_and_its_successor_goes_on_swapping(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", free_port())

    def version(number: int) -> GuestOrder:
        program, listen = f"web-{1 + number % 2}", {"http": endpoint}
        return order(tmp_path, f"web-{number}", program, listen=listen, network="namespace")

    async def scenario() -> None:
        first = await connect(tmp_path)
        await first.spawn(version(0))
        await first.wait_ready("web-0", Ready("http", "/"), deadline_s=DEADLINE_S)
        async with loaded(endpoint) as load:
            await swap.swap_often(first, version, 2, 0.2)
            os.kill(first.supervisor_pid, signal.SIGKILL)
            await first.close()
            await until(lambda: not is_alive(first.supervisor_pid), "the supervisor is dead")
            async with supervisor(tmp_path) as second:
                assert set(await second.guests()) == {"web-2"}
                took = await swap.swap_often(second, lambda number: version(number + 2), 3, 0.2)
                load.terminate()
                seen = await swap.end_load(load)
        assert seen.errors == {}
        assert seen.served > 300
        assert took.not_drained == 0

    asyncio.run(scenario())
