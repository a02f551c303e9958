"""The hosts as one thing: greeted once, and reached where they are by now."""

from __future__ import annotations

import asyncio

from agent.api.facts import HostFacts
from deployer.applying.fleet import Fleet
from tests.deployer.ground import Ground
from tests.deployer.test_transfer import CuttingProxy
from tools.connections import Connections


def through(ground: Ground) -> CuttingProxy:
    """A way to the host h1 on which connections are counted."""
    address, _, port = ground.agents["h1"].listen.rpartition(":")
    return CuttingProxy((address, int(port)), cut_after=0, cuts=0)


async def ask(fleet: Fleet) -> HostFacts:
    return await (await fleet.client("h1")).host()


def test_a_command_greets_a_host_once_whatever_it_asks_and_however_long_a_person_thinks(ground: Ground) -> None:
    way = through(ground)
    try:
        with Connections(ground.cloud) as hosts:
            hosts.fleet.learn({"h1": way.address})
            assert hosts.run(ask(hosts.fleet)).host == "h1"
            hosts.fleet.learn({"h1": way.address})
            assert hosts.run(ask(hosts.fleet)).host == "h1"
        assert way.accepted == 1
    finally:
        way.close()


def test_a_host_that_has_moved_is_reached_where_it_is_now(ground: Ground) -> None:
    before, after = through(ground), through(ground)

    async def act() -> None:
        async with Fleet({"h1": before.address}, ground.cloud.credentials) as fleet:
            await ask(fleet)
            fleet.learn({"h1": after.address})
            await ask(fleet)

    try:
        asyncio.run(act())
        assert (before.accepted, after.accepted) == (1, 1)
    finally:
        before.close()
        after.close()
