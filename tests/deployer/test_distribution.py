"""Hosts that help each other: each blob is sent to one of a region, and never is less certain for it."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from aiohttp import web
from msgspec import UNSET

from agent import tls
from agent.api.answers import Reason, Refusal
from agent.api.blobs import BegunAnswer, BlobAnswer, BlobQuery, BlobReceipt
from agent.api.facts import Waiting
from agent.api.fetching import Fetch, Fetched, HaveAnswer, HaveQuery, PiecesOffer
from agent.api.neighbours import Acquaint, Meet, PeersStatus
from agent.api.processes import spec_digest
from agent.api.routes import Routes
from agent.client.client import AgentClient
from agent.client.connections import Connections
from agent.client.errors import CallRefused, HostUnreachable
from cas.digest import Digest, digest_of
from cas.swarm.ranking import Swarm
from deployer.applying.apply import apply
from deployer.applying.distribution import distribute, shares
from deployer.applying.fleet import Fleet
from deployer.applying.introducing import introduce
from deployer.applying.outcome import Applied, Brought, Outcome
from deployer.applying.site import Site
from deployer.applying.transfer import lacks
from deployer.cloud import trust
from deployer.cloud.cloud import Cloud
from deployer.errors import TransferFailed
from deployer.history import release as releases
from deployer.history.stocktaking import keep_inventory, read_inventory
from deployer.language.schema import Definition, Host, Process, Region
from deployer.planning.planning import keep_definition, plan_for
from deployer.resolving import canonical
from deployer.resolving.specs import specs_of
from tests.agent.service.support import until
from tests.deployer.ground import Ground, LocalAgent, replaced
from tests.deployer.test_transfer import text

MiB = 1 << 20
BACK_S = 60.0
REGIONS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b"}
ADDRESSES = {"a1": "127.0.0.1", "a2": "127.0.0.3", "a3": "127.0.0.4", "b1": "127.0.0.5"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Three hosts in one region, one in another."""
    root = tmp_path_factory.mktemp("regions")
    agents: dict[str, LocalAgent] = {}
    with Cloud.create(root / "cloud", operator="ada") as cloud:
        ground = Ground(cloud, agents, "regions")
        try:
            for host, address in ADDRESSES.items():
                state = root / host
                state.mkdir(mode=0o700)
                trust.issue_host(cloud.authority, host, [address], state / "credentials")
                agents[host] = LocalAgent(host, address, state)
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


class Stumbling(AgentClient):
    """The first small stream to each host breaks off."""

    stumbled: ClassVar[set[str]]

    async def send_blobs(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> BlobReceipt:
        if self.host_name not in self.stumbled:
            self.stumbled.add(self.host_name)
            raise HostUnreachable(f"{self.host_name} cannot be reached")
        return await super().send_blobs(chunks)


class Deaf(AgentClient):
    """Its agent cannot use the list of its neighbours."""

    async def query(self, query: BlobQuery) -> BlobAnswer:
        if query.acquaint is not UNSET:
            raise CallRefused(Refusal(Reason.BAD_BLOB, "the list of neighbours is of another version"))
        return await super().query(query)

    async def acquaint(self, acquaint: Acquaint) -> bool:
        raise CallRefused(Refusal(Reason.BAD_BLOB, f"{acquaint.neighbours} is of another version"))


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


class Old(AgentClient):
    """Its agent knows no pieces."""

    async def give_pieces(self, offer: PiecesOffer, pieces: Iterable[bytes]) -> BlobReceipt:
        del offer, pieces
        raise CallRefused(Refusal(Reason.NOT_FOUND, "this host has no such route"))


def noise(size: int) -> bytes:
    return random.randbytes(size)


def released(ground: Ground, wanted: Definition) -> Digest:
    """A release of this definition; nothing runs by it."""
    ground.store.put(canonical.encode(wanted))
    plan = digest_of(b"no plan")
    record = releases.Release(definition=canonical.version_of(wanted), plan=plan, parent=None, at_unix_ns=1, by="ada")
    return ground.store.put(releases.encode(record)).digest


def bring(
    ground: Ground,
    blobs: Sequence[Digest],
    hosts: Sequence[str] = tuple(REGIONS),
    connect: type[AgentClient] = AgentClient,
    *,
    before: Digest | None = None,
) -> dict[str, Brought]:
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


class Asked(Connections):
    """Notes what each host is asked."""

    asked: ClassVar[dict[str, list[str]]]

    async def ask(self, method: str, path: str, kind: type[Any], **more: Any) -> Any:
        self.asked.setdefault(self._host_name, []).append(path)
        return await super().ask(method, path, kind, **more)


def noted(host: str, address: str, credentials: Path) -> AgentClient:
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
    monkeypatch.setattr("agent.pulse.LEAST_IN_S", 1.0)
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


def test_a_host_that_cannot_use_the_list_of_its_neighbours_is_sent_everything(hosts: Ground) -> None:
    blob = hosts.blob(noise(MiB))
    bring(hosts, [blob], ("a1", "a2", "a3"), Deaf)
    assert all_there(hosts, [blob], ("a1", "a2", "a3"))


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


class Counting(AgentClient):
    """Notes which hosts are sent blobs."""

    sent: ClassVar[list[str]]

    async def send_blobs(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> BlobReceipt:
        self.sent.append(self.host_name)
        return await super().send_blobs(chunks)


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
    asyncio.run(until(lambda: asyncio.to_thread(lambda: all(map(has_all_of_it, away))), within_s=40))
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
