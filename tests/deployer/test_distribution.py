"""Hosts that help each other: each blob is sent to one of a region, and to each host where that cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from typing import ClassVar

import msgspec
import pytest
from msgspec import UNSET

from agent.api.answers import Reason, Refusal
from agent.api.blobs import BlobAnswer, BlobQuery, BlobReceipt
from agent.api.fetching import HaveAnswer, HaveQuery, PiecesOffer
from agent.api.neighbours import Acquaint, Meet, PeersStatus
from agent.client.client import AgentClient
from agent.client.errors import CallRefused
from cas.digest import Digest, digest_of
from cas.swarm.ranking import Swarm
from deployer.applying.distribution import shares
from deployer.history import release as releases
from deployer.history.stocktaking import keep_inventory, read_inventory
from deployer.language.schema import Definition
from deployer.resolving import canonical
from tests.deployer.ground import Ground
from tests.deployer.regions import REGIONS, MiB, all_there, bring, definition, noise
from tests.deployer.test_transfer import text


class Misled(AgentClient):
    """Tells a host of neighbours where nobody listens; its agent is of before."""

    async def query(self, query: BlobQuery) -> BlobAnswer:
        if query.acquaint is not UNSET:
            raise CallRefused(Refusal(Reason.BAD_REQUEST, "the body is no BlobQuery of this API version"))
        return await super().query(query)

    async def acquaint(self, acquaint: Acquaint) -> bool:
        del acquaint
        raise CallRefused(Refusal(Reason.NOT_FOUND, "this host has no such route"))

    async def meet(self, meet: Meet) -> PeersStatus:
        lost = tuple(msgspec.structs.replace(one, address="127.0.0.1:1") for one in meet.neighbours)
        return await super().meet(msgspec.structs.replace(meet, neighbours=lost))


class Counted(AgentClient):
    """What each host was asked and sent until it had everything, by the names of the client's methods."""

    asked: ClassVar[dict[str, list[str]]]

    async def query(self, query: BlobQuery) -> BlobAnswer:
        self._note("query")
        return await super().query(query)

    async def send_blobs(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> BlobReceipt:
        self._note("send_blobs")
        return await super().send_blobs(chunks)

    async def give_pieces(self, offer: PiecesOffer, pieces: Iterable[bytes]) -> BlobReceipt:
        self._note("give_pieces")
        return await super().give_pieces(offer, pieces)

    async def have(self, query: HaveQuery) -> HaveAnswer:
        self._note("have")
        return await super().have(query)

    async def acquaint(self, acquaint: Acquaint) -> bool:
        self._note("acquaint")
        return await super().acquaint(acquaint)

    def _note(self, what: str) -> None:
        self.asked.setdefault(self.host_name, []).append(what)


class Old(AgentClient):
    """Its agent knows no pieces."""

    async def give_pieces(self, offer: PiecesOffer, pieces: Iterable[bytes]) -> BlobReceipt:
        del offer, pieces
        raise CallRefused(Refusal(Reason.NOT_FOUND, "this host has no such route"))


def released(ground: Ground, wanted: Definition) -> Digest:
    """A release of this definition; nothing runs by it."""
    ground.store.put(canonical.encode(wanted))
    plan = digest_of(b"no plan")
    record = releases.Release(definition=canonical.version_of(wanted), plan=plan, parent=None, at_unix_ns=1, by="ada")
    return ground.store.put(releases.encode(record)).digest


def test_a_region_is_sent_each_blob_once(hosts: Ground) -> None:
    blobs = [hosts.blob(noise(2 * MiB)), hosts.blob(noise(MiB)), hosts.blob(b"small")]
    brought = bring(hosts, blobs)
    assert all_there(hosts, blobs)
    of_region = [brought[host] for host in ("a1", "a2", "a3")]
    assert 3 * MiB < sum(one.deployer_bytes for one in of_region) < 3.1 * MiB
    assert 6 * MiB <= sum(one.region_bytes for one in of_region) < 6.1 * MiB
    assert sum(one.border_bytes for one in brought.values()) == 0
    assert 3 * MiB < brought["b1"].deployer_bytes < 3.1 * MiB
    assert {host: one.region for host, one in brought.items()} == REGIONS
    assert all(3 * MiB < one.whole_bytes < 3.1 * MiB for one in brought.values())


def test_hosts_that_help_each_other_are_asked_once_and_sent_once(hosts: Ground) -> None:
    """Of a host that is far away each question costs what it takes to send a piece."""
    large, small = hosts.blob(noise(2 * MiB)), [hosts.blob(noise(10_000)), hosts.blob(b"small as well")]
    blobs = [large, *small]
    Counted.asked = {}
    bring(hosts, blobs, ("a1", "a2", "a3"), Counted)
    assert all_there(hosts, blobs, ("a1", "a2", "a3"))
    bringer = Swarm({"a": ["a1", "a2", "a3"]}).ranking("a", large)[0]
    assert Counted.asked.pop(bringer) == ["query", "give_pieces"]
    assert list(Counted.asked.values()) == [["query", "send_blobs"]] * 2
    for host in ("a1", "a2", "a3"):
        peers = asyncio.run(hosts.with_client(host, lambda client: client.peers()))
        assert {one.host for one in peers.peers} | {host} == set(REGIONS)


def test_what_hosts_give_each_other_of_a_new_version_is_a_delta_made_for_it(hosts: Ground) -> None:
    """No delta that is stored leads from the version before: the inventory lists one that was made."""
    newer, older = hosts.blob(text(2)), hosts.blob(text(1))
    assert hosts.store.stat(newer).base is None
    bring(hosts, [older])
    before = released(hosts, definition(hosts, older))
    brought = bring(hosts, [newer], before=before)
    assert all_there(hosts, [newer])
    assert sum(one.deployer_bytes + one.region_bytes for one in brought.values()) < 40_000


def test_who_gets_a_delta_is_not_told_how_to_check_the_whole(hosts: Ground) -> None:
    older, newer = hosts.blob(text(3)), hosts.blob(text(4))
    before = released(hosts, definition(hosts, older))
    bring(hosts, [older])
    bring(hosts, [newer], before=before)
    assert all_there(hosts, [newer])
    inventory = keep_inventory(hosts.store, "regions", definition(hosts, newer), before)
    assert inventory is not None
    whole = read_inventory(hosts.store, inventory).by_blob()[newer].whole
    assert whole.manifest is not None
    for host in REGIONS:
        assert not all_there(hosts, [whole.manifest], (host,)), host


def test_a_host_that_was_left_behind_gets_it_from_its_region(hosts: Ground) -> None:
    blob = hosts.blob(noise(2 * MiB))
    bring(hosts, [blob], ("a1", "a2"))
    brought = bring(hosts, [blob], ("a1", "a2", "a3"))
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))
    assert brought["a3"].region_bytes >= 2 * MiB > 10_000 > brought["a3"].deployer_bytes


def test_hosts_that_cannot_reach_each_other_are_sent_everything(hosts: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployer.applying.headway.STUCK_S", 1.0)
    monkeypatch.setattr("deployer.applying.region.WAIT_S", 0.5)
    blob = hosts.blob(noise(MiB))
    brought = bring(hosts, [blob], ("a1", "a2", "a3"), Misled)
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))
    assert sum(one.deployer_bytes for one in brought.values()) > 3 * MiB


def test_a_host_that_knows_no_pieces_is_sent_a_stream(hosts: Ground) -> None:
    blobs = [hosts.blob(noise(2 * MiB)), hosts.blob(b"small too")]
    brought = bring(hosts, blobs, ("a1", "a2"), Old)
    assert all_there(hosts, blobs, ("a1", "a2"))
    assert 2 * MiB < sum(one.deployer_bytes for one in brought.values()) < 2.1 * MiB


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
