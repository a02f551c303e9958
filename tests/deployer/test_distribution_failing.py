"""Hosts that help each other, and die, stumble, lie or do nothing: whoever can have a blob has it in the end, and who
is at fault is named."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from aiohttp import web

from agent import tls
from agent.api.blobs import BegunAnswer, BlobAnswer, BlobQuery, BlobReceipt
from agent.api.fetching import Fetch, Fetched, PiecesOffer
from agent.api.routes import Routes
from agent.client.client import AgentClient
from agent.client.errors import HostUnreachable
from deployer.applying.distribution import distribute
from deployer.applying.fleet import Fleet
from deployer.applying.site import Site
from deployer.errors import TransferFailed
from deployer.history.stocktaking import keep_inventory
from tests.deployer.ground import Ground, LocalAgent
from tests.deployer.regions import REGIONS, MiB, all_there, bring, definition, noise

BACK_S = 60.0


class Dying(AgentClient):
    """Of the first host that is given pieces: its agent is killed when it has had three of them."""

    agents: ClassVar[Mapping[str, LocalAgent]]
    killed: ClassVar[list[str]]

    async def give_pieces(self, offer: PiecesOffer, pieces: Iterable[bytes]) -> BlobReceipt:
        if not self.killed:
            self.killed.append(self.host_name)
            pieces = self._until_killed(pieces)
        return await super().give_pieces(offer, pieces)

    def _until_killed(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for number, piece in enumerate(pieces):
            if number == 3:
                self.agents[self.host_name].kill()
            yield piece


class Returning(Dying):
    """As that; the agent has been started again when it is asked the next time."""

    async def query(self, query: BlobQuery) -> BlobAnswer:
        agent = self.agents[self.host_name]
        if self.host_name in self.killed and not agent.runs:
            await asyncio.to_thread(agent.start)
        return await super().query(query)


class Interrupted(AgentClient):
    """The agent of a host that fetches is killed while another one of its region is given pieces, and has been started
    again when that is told; until then no more pieces are given."""

    agents: ClassVar[Mapping[str, LocalAgent]]
    fetching: ClassVar[queue.Queue[str]]
    is_dead: ClassVar[threading.Event]
    is_back: ClassVar[threading.Event]

    async def fetch(self, fetch: Fetch) -> Fetched:
        self.fetching.put(self.host_name)
        try:
            return await super().fetch(fetch)
        except HostUnreachable:
            if not self.is_back.is_set():
                await asyncio.to_thread(self._start_again)
            raise

    def _start_again(self) -> None:
        assert self.is_dead.wait(BACK_S)
        self.agents[self.host_name].start()
        self.is_back.set()

    async def give_pieces(self, offer: PiecesOffer, pieces: Iterable[bytes]) -> BlobReceipt:
        return await super().give_pieces(offer, self._interrupted(pieces) if REGIONS[self.host_name] == "a" else pieces)

    def _interrupted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for number, piece in enumerate(pieces):
            yield piece
            if number == 3:
                self.agents[self.fetching.get(timeout=BACK_S)].kill()
                self.is_dead.set()
                assert self.is_back.wait(BACK_S)


class Stumbling(AgentClient):
    """The first small stream to each host breaks off."""

    stumbled: ClassVar[set[str]]

    async def send_blobs(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> BlobReceipt:
        if self.host_name not in self.stumbled:
            self.stumbled.add(self.host_name)
            raise HostUnreachable(f"{self.host_name} cannot be reached")
        return await super().send_blobs(chunks)


class Accusing(AgentClient):
    """Its agent lacks everything whatever it is sent, and says of all others that they lie."""

    async def query(self, query: BlobQuery) -> BlobAnswer:
        return msgspec.structs.replace(await super().query(query), missing=query.want)

    async def fetch(self, fetch: Fetch) -> Fetched:
        wanted = tuple(blob for party in fetch.parties for blob in party.blobs)
        others = tuple(host for host in REGIONS if host != self.host_name)
        return Fetched(wanted, under_way=False, wrong=(*others, "nobody"))


class Boaster:
    """A host with a real certificate that lacks everything, says for ever that it gets on, and takes what it is sent
    without a word."""

    def __init__(self) -> None:
        self.answers = 0

    @asynccontextmanager
    async def listening(self, credentials: Path) -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_post(Routes.BLOBS_QUERY, self.query)
        application.router.add_post(Routes.BLOBS_BEGUN, self.begun)
        application.router.add_post(Routes.FETCH, self.fetch)
        for path in (Routes.BLOBS, Routes.PIECES):
            application.router.add_post(path, self.take)
        runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server_context(credentials))
            await site.start()
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def query(self, request: web.Request) -> web.Response:
        query = msgspec.msgpack.decode(await request.read(), type=BlobQuery)
        return web.Response(body=msgspec.msgpack.encode(BlobAnswer(query.want, (), ())))

    async def fetch(self, request: web.Request) -> web.Response:
        fetch = msgspec.msgpack.decode(await request.read(), type=Fetch)
        wanted = tuple(blob for party in fetch.parties for blob in party.blobs)
        self.answers += 1
        told = Fetched(wanted, under_way=True, blobs=self.answers, region_bytes=self.answers * MiB)
        return web.Response(body=msgspec.msgpack.encode(told))

    async def begun(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.msgpack.encode(BegunAnswer(())))

    async def take(self, request: web.Request) -> web.Response:
        async for _ in request.content.iter_any():
            pass
        await asyncio.Event().wait()
        raise AssertionError


class Defective(AgentClient):
    """Of a host of another region: what nobody expects happens once large blobs are on their way to the others."""

    moving: ClassVar[asyncio.Event]

    async def query(self, query: BlobQuery) -> BlobAnswer:
        if self.host_name == "b1":
            await self.moving.wait()
            raise RuntimeError("a defect")
        return await super().query(query)

    async def give_pieces(self, offer: PiecesOffer, pieces: Iterable[bytes]) -> BlobReceipt:
        self.moving.set()
        return await super().give_pieces(offer, pieces)


def test_where_a_host_that_brings_a_blob_in_dies_another_goes_on(hosts: Ground) -> None:
    blob = hosts.blob(noise(4 * MiB))
    Dying.agents, Dying.killed = hosts.agents, []
    try:
        with pytest.raises(TransferFailed) as caught:
            bring(hosts, [blob], connect=Dying)
    finally:
        for host in Dying.killed:
            hosts.agents[host].start()
    assert list(caught.value.reasons) == Dying.killed
    left = [host for host in REGIONS if host not in Dying.killed]
    assert all_there(hosts, [blob], left)
    brought = bring(hosts, [blob])
    assert all_there(hosts, [blob])
    assert sum(one.deployer_bytes for one in brought.values()) < 4 * MiB


def test_a_host_that_dies_and_comes_back_meanwhile_gets_it_too(hosts: Ground) -> None:
    blob = hosts.blob(noise(4 * MiB))
    Dying.agents, Dying.killed = hosts.agents, []
    brought = bring(hosts, [blob], ("a1", "a2", "a3"), Returning)
    assert len(Dying.killed) == 1
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))
    assert sum(one.deployer_bytes for one in brought.values()) < 6 * MiB


def test_a_host_that_is_started_again_while_it_fetches_gets_the_rest_from_its_region(hosts: Ground) -> None:
    blob = hosts.blob(noise(4 * MiB))
    Interrupted.agents, Interrupted.fetching = hosts.agents, queue.Queue()
    Interrupted.is_dead, Interrupted.is_back = threading.Event(), threading.Event()
    brought = bring(hosts, [blob], connect=Interrupted)
    assert Interrupted.is_back.is_set()
    assert all_there(hosts, [blob])
    assert sum(brought[host].deployer_bytes for host in ("a1", "a2", "a3")) < 4.5 * MiB


def test_what_nobody_else_brings_is_sent_again_where_it_broke_off_and_the_rest_comes_from_the_region(
    hosts: Ground,
) -> None:
    blob = hosts.blob(noise(2 * MiB))
    Stumbling.stumbled = set()
    brought = bring(hosts, [blob], ("a1", "a2", "a3"), Stumbling)
    assert len(Stumbling.stumbled) == 2
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))
    assert sum(one.deployer_bytes for one in brought.values()) < 3 * MiB


def test_hosts_that_accuse_each_other_of_lying_are_sent_everything_and_that_ends(hosts: Ground) -> None:
    blob = hosts.blob(noise(MiB))
    brought = bring(hosts, [blob], ("a1", "a2", "a3"), Accusing)
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))
    assert not any("nobody" in one.wrong for one in brought.values())


def test_a_host_that_says_for_ever_that_it_gets_on_keeps_nobody_waiting_and_is_named(
    hosts: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployer.applying.headway.STUCK_S", 0.5)
    monkeypatch.setattr("deployer.applying.region.ASK_AGAIN_S", 0.05)
    monkeypatch.setattr("agent.pulse.QUIET_S", 0.1)
    monkeypatch.setattr("agent.pulse.LEAST_IN_S", 3.0)
    monkeypatch.setattr("agent.pulse.KEPT_BYTES_S", 1 << 30)
    blobs = [hosts.blob(noise(MiB)), hosts.blob(b"small for the boaster")]
    wanted = definition(hosts, *blobs)
    inventory = keep_inventory(hosts.store, "regions", wanted, None)

    async def act() -> None:
        boaster = Boaster()
        credentials = hosts.cloud.credentials
        async with boaster.listening(hosts.agents["a3"].state / "credentials") as address:
            addresses = {name: agent.listen for name, agent in hosts.agents.items()} | {"a3": address}
            async with Fleet(addresses, credentials) as fleet, asyncio.timeout(60):
                site = Site(hosts.store, hosts.ref, fleet, hosts.by)
                await distribute(site, dict.fromkeys(REGIONS, tuple(blobs)), wanted, inventory)

    with pytest.raises(TransferFailed) as caught:
        asyncio.run(act())
    assert list(caught.value.reasons) == ["a3"]
    assert "hardly taken anything" in caught.value.reasons["a3"]
    assert all_there(hosts, blobs, ("a1", "a2", "b1"))


def test_where_one_region_fails_in_a_way_that_nobody_expects_nothing_goes_on_in_the_others(hosts: Ground) -> None:
    blob = hosts.blob(noise(4 * MiB))
    wanted = definition(hosts, blob)
    inventory = keep_inventory(hosts.store, "regions", wanted, None)

    async def act() -> None:
        Defective.moving = asyncio.Event()
        addresses, credentials = {name: one.listen for name, one in hosts.agents.items()}, hosts.cloud.credentials
        async with Fleet(addresses, credentials, connect=lambda host, at: Defective(host, at, credentials)) as fleet:
            site = Site(hosts.store, hosts.ref, fleet, hosts.by)
            with pytest.raises(RuntimeError, match="a defect"):
                await distribute(site, dict.fromkeys(REGIONS, (blob,)), wanted, inventory)
            frames = [frame for task in asyncio.all_tasks() for frame in task.get_stack()]
            assert not [frame for frame in frames if "/deployer/applying/" in frame.f_code.co_filename]

    asyncio.run(act())
