"""What the hosts of a region are told for each other: who their neighbours are, and of a release by one for all, also
for those that were away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec import UNSET

from agent.api.answers import Reason, Refusal
from agent.api.blobs import BlobAnswer, BlobQuery, BlobReceipt
from agent.api.facts import Waiting
from agent.api.neighbours import Acquaint
from agent.api.processes import spec_digest
from agent.api.routes import Routes
from agent.client.client import AgentClient
from agent.client.connections import Connections
from agent.client.errors import CallRefused
from deployer.applying.apply import apply
from deployer.applying.fleet import Fleet
from deployer.applying.introducing import introduce
from deployer.applying.outcome import Applied, Outcome
from deployer.applying.site import Site
from deployer.planning.planning import keep_definition, plan_for
from deployer.resolving.specs import specs_of
from tests.agent.service.support import until
from tests.deployer.ground import Ground, replaced
from tests.deployer.regions import REGIONS, MiB, all_there, bring, definition, noise


class Deaf(AgentClient):
    """Its agent cannot use the list of its neighbours."""

    async def query(self, query: BlobQuery) -> BlobAnswer:
        if query.acquaint is not UNSET:
            raise CallRefused(Refusal(Reason.BAD_BLOB, "the list of neighbours is of another version"))
        return await super().query(query)

    async def acquaint(self, acquaint: Acquaint) -> bool:
        raise CallRefused(Refusal(Reason.BAD_BLOB, f"{acquaint.neighbours} is of another version"))


class Counting(AgentClient):
    """Notes which hosts are sent blobs."""

    sent: ClassVar[list[str]]

    async def send_blobs(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> BlobReceipt:
        self.sent.append(self.host_name)
        return await super().send_blobs(chunks)


class Asked(Connections):
    """Notes what each host is asked."""

    asked: ClassVar[dict[str, list[str]]]

    async def ask(self, method: str, path: str, kind: type[Any], **more: Any) -> Any:
        self.asked.setdefault(self._host_name, []).append(path)
        return await super().ask(method, path, kind, **more)


def noted(host: str, address: str, credentials: Path) -> AgentClient:
    """A client whose questions are noted."""
    client = AgentClient(host, address, credentials)
    client._agent = Asked(host, address, credentials)
    return client


def test_a_small_change_costs_a_host_six_questions(hosts: Ground, port: int) -> None:
    process = hosts.web(port, hosts=tuple(REGIONS))
    wanted = msgspec.structs.replace(definition(hosts), process={"web": process})
    asyncio.run(hosts.apply(wanted))
    config = {**process.config, "/etc/greeting": hosts.blob(b"good evening")}
    plan = asyncio.run(hosts.plan(replaced(wanted, "web", config=config)))
    Asked.asked = {}

    async def act() -> Applied:
        addresses, credentials = {name: one.listen for name, one in hosts.agents.items()}, hosts.cloud.credentials
        async with Fleet(addresses, credentials, connect=lambda host, at: noted(host, at, credentials)) as fleet:
            return await apply(Site(hosts.store, hosts.ref, fleet, hosts.by, credentials=credentials), plan)

    assert asyncio.run(act()).outcome is Outcome.APPLIED
    changed = [Routes.REPORT, Routes.BLOBS_QUERY, Routes.BLOBS, Routes.CALL, Routes.CALL, Routes.REPORT]
    word = [Routes.BLOBS_QUERY, Routes.BLOBS, Routes.WORD]  # to one host of each region
    assert sorted(Asked.asked[host] for host in ("a1", "a2", "a3")) == sorted([changed, changed, changed + word])


def test_a_host_that_cannot_use_the_list_of_its_neighbours_is_sent_everything(hosts: Ground) -> None:
    blob = hosts.blob(noise(MiB))
    bring(hosts, [blob], ("a1", "a2", "a3"), Deaf)
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))


def test_a_long_list_of_neighbours_goes_to_one_host_of_a_region_and_from_there_to_the_others(
    hosts: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployer.applying.introducing.SMALL_BYTES", 10)
    known = definition(hosts)
    first = msgspec.structs.replace(known, host={**known.host, "new1": known.host["a1"]})
    second = msgspec.structs.replace(first, host={**first.host, "new2": known.host["b1"]})
    Counting.sent = []

    async def act() -> None:
        addresses = {name: agent.listen for name, agent in hosts.agents.items()}
        credentials = hosts.cloud.credentials
        async with Fleet(addresses, credentials, connect=lambda host, at: Counting(host, at, credentials)) as fleet:
            site = Site(hosts.store, hosts.ref, fleet, hosts.by)
            await introduce(site, ["a1", "a2", "b1"], first)
            assert sorted(Counting.sent) == ["a1", "b1"]
            await introduce(site, ["a1"], second)
            await introduce(site, ["a1", "a3"], second)  # it gets the list from a1, which has it already
            assert sorted(Counting.sent) == ["a1", "a1", "b1"]
            for host in ("a1", "a2", "a3", "b1"):
                found = {one.host for one in (await (await fleet.client(host)).peers()).peers} | {host}
                assert found == set((second if host in ("a1", "a3") else first).host)

    asyncio.run(act())


def test_where_a_word_cannot_be_signed_that_is_told_and_the_apply_is_whole(hosts: Ground, tmp_path: Path) -> None:
    first = msgspec.structs.replace(definition(hosts), process={})

    async def without_a_key(site: Site) -> Applied:
        plan = await plan_for(site, keep_definition(site.store, first), "minimal")
        return await apply(site._replace(credentials=tmp_path), plan)

    applied = asyncio.run(hosts.on_site(without_a_key))
    assert applied.outcome is Outcome.APPLIED
    assert "key.pem" in applied.unheard


def test_hosts_that_were_away_get_a_release_from_the_others_and_run_it_when_they_are_told_to(
    hosts: Ground, port: int
) -> None:
    """In the region of those that have it, and in another one; the deployer has gone by then."""

    def waiting(host: str) -> tuple[Waiting, ...]:
        return asyncio.run(hosts.with_client(host, lambda client: client.host())).waiting or ()

    def has_all_of_it(host: str) -> bool:
        return any(
            (one.release, one.by, one.blobs, one.missing, one.uncompiled) == (applied.release, hosts.by, 3, 0, 0)
            for one in waiting(host)
        )

    process = hosts.web(port, hosts=tuple(REGIONS))
    wanted = msgspec.structs.replace(definition(hosts), process={"web": process})
    asyncio.run(hosts.apply(wanted))
    config = {**process.config, "/etc/extra": hosts.blob(noise(2 * MiB))}
    following = replaced(wanted, "web", binary=hosts.guest("web-2"), config=config)
    away = ("a3", "b1")
    for host in away:
        hosts.agents[host].kill()
    applied = asyncio.run(hosts.carry_out(asyncio.run(hosts.plan(following, allow_unreachable=True))))
    assert (applied.outcome, applied.unheard) == (Outcome.PARTIAL, "")
    for host in away:
        hosts.agents[host].start()
    asyncio.run(until(lambda: asyncio.to_thread(lambda: all(map(has_all_of_it, away)))))
    old, new = (
        {host: {"web": spec_digest(specs["web"])} for host, specs in specs_of(one).items()}
        for one in (wanted, following)
    )
    assert asyncio.run(hosts.observed()).state() == {**new, **{host: old[host] for host in away}}
    caught_up = asyncio.run(hosts.apply(following))
    assert caught_up.exit_code == 0
    assert caught_up.bytes_sent < 20_000
    assert asyncio.run(hosts.observed()).state() == new
    assert not any(map(waiting, away))
