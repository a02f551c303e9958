"""Blobs for hosts of two regions, which help each other: three hosts in one, one in the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from agent.client.client import AgentClient
from cas.digest import Digest
from deployer.applying.distribution import distribute
from deployer.applying.fleet import Fleet
from deployer.applying.outcome import Brought
from deployer.applying.site import Site
from deployer.applying.transfer import lacks
from deployer.history.stocktaking import keep_inventory
from deployer.language.schema import Definition, Host, Process, Region
from tests.deployer.ground import Ground

MiB = 1 << 20
REGIONS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b"}
ADDRESSES = {"a1": "127.0.0.1", "a2": "127.0.0.3", "a3": "127.0.0.4", "b1": "127.0.0.5"}


def definition(ground: Ground, *blobs: Digest) -> Definition:
    """One process that all hosts run, with these blobs as its configuration."""
    process = Process(
        binary=ground.blob(b"\0asm"),
        hosts=tuple(REGIONS),
        config={f"/etc/{number}": blob for number, blob in enumerate(blobs)},
    )
    hosts = {
        name: Host(region=REGIONS[name], address=agent.listen, cores=64_000, memory=1 << 40, disk=1 << 40)
        for name, agent in ground.agents.items()
    }
    return Definition(name="shop", region={"a": Region(), "b": Region()}, host=hosts, process={"web": process})


def noise(size: int) -> bytes:
    """So many bytes that no delta leads to and nothing makes smaller."""
    return random.randbytes(size)


def bring(
    ground: Ground,
    blobs: Sequence[Digest],
    hosts: Sequence[str] = tuple(REGIONS),
    connect: type[AgentClient] = AgentClient,
    *,
    before: Digest | None = None,
) -> dict[str, Brought]:
    """Distribute these blobs to these hosts, as it is done for a release after `before`: what each was brought."""
    wanted = definition(ground, *blobs)
    inventory = keep_inventory(ground.store, "regions", wanted, before)

    async def act() -> dict[str, Brought]:
        addresses = {name: agent.listen for name, agent in ground.agents.items()}
        credentials = ground.cloud.credentials
        async with Fleet(
            addresses, credentials, connect=lambda host, address: connect(host, address, credentials)
        ) as fleet:
            site = Site(ground.store, ground.ref, fleet, ground.by)
            return await distribute(site, dict.fromkeys(hosts, tuple(blobs)), wanted, inventory)

    return asyncio.run(act())


def all_there(ground: Ground, blobs: Sequence[Digest], hosts: Sequence[str] = tuple(REGIONS)) -> bool:
    """As each of these hosts says itself."""

    async def act(site: Site) -> bool:
        return not any(lack.missing for lack in (await lacks(site, dict.fromkeys(hosts, tuple(blobs)))).values())

    return asyncio.run(ground.on_site(act))
