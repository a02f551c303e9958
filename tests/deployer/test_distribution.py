"""Hosts that help each other: each blob is sent to one of a region, and never is less certain for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from agent.api import Meet, PeersStatus
from agent.client import AgentClient
from cas.digest import Digest, digest_of
from cas.swarm.ranking import Swarm
from deployer.applying.distribution import distribute, shares
from deployer.applying.fleet import Fleet
from deployer.applying.outcome import Brought
from deployer.applying.site import Site
from deployer.applying.transfer import lacks
from deployer.cloud import trust
from deployer.cloud.cloud import Cloud
from deployer.history import release as releases
from deployer.history.stocktaking import keep_inventory
from deployer.language.schema import Definition, Host, Process, Region
from deployer.resolving import canonical
from tests.deployer.ground import Ground, LocalAgent
from tests.deployer.test_transfer import text

MiB = 1 << 20
REGIONS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Three hosts in one region, one in another."""
    root = tmp_path_factory.mktemp("regions")
    agents: dict[str, LocalAgent] = {}
    with Cloud.create(root / "cloud", operator="ada") as cloud:
        ground = Ground(cloud, agents, "regions")
        try:
            for host in REGIONS:
                state = root / host
                state.mkdir(mode=0o700)
                trust.issue_host(cloud.authority, host, ["127.0.0.1"], state / "credentials")
                agents[host] = LocalAgent(host, "127.0.0.1", state)
                agents[host].start()
            yield ground
        finally:
            ground.end_all()


def definition(ground: Ground, *blobs: Digest) -> Definition:
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


class Misled(AgentClient):
    """Tells a host of neighbours where nobody listens."""

    async def meet(self, meet: Meet) -> PeersStatus:
        lost = tuple(msgspec.structs.replace(one, address="127.0.0.1:1") for one in meet.neighbours)
        return await super().meet(msgspec.structs.replace(meet, neighbours=lost))


def noise(size: int) -> bytes:
    return random.randbytes(size)


def released(ground: Ground, wanted: Definition) -> Digest:
    """A release of this definition; nothing runs by it."""
    ground.store.put(canonical.encode(wanted))
    plan = digest_of(b"no plan")
    record = releases.Release(definition=canonical.version_of(wanted), plan=plan, parent=None, at_unix_ns=1, by="ada")
    return ground.store.put(releases.encode(record)).digest


def bring(
    ground: Ground, blobs: Sequence[Digest], hosts: Sequence[str] = tuple(REGIONS), *, before: Digest | None = None
) -> dict[str, Brought]:
    wanted = definition(ground, *blobs)
    inventory = keep_inventory(ground.store, "regions", wanted, before)

    async def act(site: Site) -> dict[str, Brought]:
        return await distribute(site, dict.fromkeys(hosts, tuple(blobs)), wanted, inventory)

    return asyncio.run(ground.on_site(act))


def all_there(ground: Ground, blobs: Sequence[Digest], hosts: Sequence[str] = tuple(REGIONS)) -> bool:
    async def act(site: Site) -> bool:
        return not any(lack.missing for lack in (await lacks(site, dict.fromkeys(hosts, tuple(blobs)))).values())

    return asyncio.run(ground.on_site(act))


def test_a_region_is_sent_each_blob_once(hosts: Ground) -> None:
    blobs = [hosts.blob(noise(2 * MiB)), hosts.blob(noise(MiB)), hosts.blob(b"small")]
    brought = bring(hosts, blobs)
    assert all_there(hosts, blobs)
    of_region = [brought[host] for host in ("a1", "a2", "a3")]
    assert 3 * MiB < sum(one.deployer_bytes for one in of_region) < 3.1 * MiB
    assert 6 * MiB <= sum(one.region_bytes for one in of_region) < 6.1 * MiB
    assert sum(one.border_bytes for one in brought.values()) == 0
    assert 3 * MiB < brought["b1"].deployer_bytes < 3.1 * MiB


def test_what_hosts_give_each_other_of_a_new_version_is_a_delta_made_for_it(hosts: Ground) -> None:
    """No delta that is stored leads from the version before: the inventory lists one that was made."""
    newer, older = hosts.blob(text(2)), hosts.blob(text(1))
    assert hosts.store.stat(newer).base is None
    bring(hosts, [older])
    before = released(hosts, definition(hosts, older))
    brought = bring(hosts, [newer], before=before)
    assert all_there(hosts, [newer])
    assert sum(one.deployer_bytes + one.region_bytes for one in brought.values()) < 40_000


def test_a_host_that_was_left_behind_gets_it_from_its_region(hosts: Ground) -> None:
    blob = hosts.blob(noise(2 * MiB))
    bring(hosts, [blob], ("a1", "a2"))
    brought = bring(hosts, [blob], ("a1", "a2", "a3"))
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))
    assert brought["a3"].region_bytes >= 2 * MiB > 10_000 > brought["a3"].deployer_bytes


def test_hosts_that_cannot_reach_each_other_are_sent_everything(hosts: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployer.applying.distribution.STUCK_S", 1.0)
    monkeypatch.setattr("deployer.applying.distribution.WAIT_S", 0.5)
    blob = hosts.blob(noise(MiB))
    wanted = definition(hosts, blob)
    inventory = keep_inventory(hosts.store, "regions", wanted, None)

    async def act() -> dict[str, Brought]:
        addresses = {name: agent.listen for name, agent in hosts.agents.items()}
        async with Fleet(
            addresses,
            hosts.cloud.credentials,
            connect=lambda host, address: Misled(host, address, hosts.cloud.credentials),
        ) as fleet:
            site = Site(hosts.store, hosts.ref, fleet, hosts.by)
            return await distribute(site, dict.fromkeys(("a1", "a2", "a3"), (blob,)), wanted, inventory)

    brought = asyncio.run(act())
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))
    assert sum(one.deployer_bytes for one in brought.values()) > 3 * MiB


def test_each_shared_blob_has_one_bringer_and_the_others_fetch_it() -> None:
    swarm = Swarm({"a": ["a1", "a2", "a3"], "b": ["b1"]})
    blobs = [f"b3:{number:064x}" for number in range(1 << 248, 1 << 256, 1 << 250)]
    lacking = {"a1": blobs, "a2": blobs, "a3": blobs[:1]}
    split = shares(lacking, swarm, "a", frozenset(blobs[-1:]))
    for host, lacks_it in lacking.items():
        assert {*split.sent[host], *split.fetched[host]} == set(lacks_it)
        assert not {*split.sent[host]} & {*split.fetched[host]}
    for blob in blobs[:-1]:
        assert sum(blob in split.sent[host] for host in lacking) == 1
    assert all(blobs[-1] in split.sent[host] for host in ("a1", "a2"))
