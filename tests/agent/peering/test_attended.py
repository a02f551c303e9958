"""What hosts fetch while somebody brings it into their region: from inside, until nobody does any more."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from agent.api.fetching import Fetch, PartAsked, Party, PiecesOffer
from agent.daemon.peering import driver, errands
from agent.daemon.peering.acquaintance import Acquaintance
from agent.daemon.peering.limits import PeerLimits
from agent.daemon.peering.links import Links
from agent.daemon.peering.service import NEIGHBOURS_NAME
from agent.daemon.peering.serving import News
from cas.digest import Digest, digest_of
from cas.inventory import take_inventory
from cas.partial import Spool
from cas.store import Store
from cas.swarm.limits import Limits
from cas.swarm.ranking import Swarm
from tests.agent.peering import liars
from tests.agent.peering.liars import Liar
from tests.agent.peering.neighbourhood import FETCH_S, Member, neighbourhood, noise, run
from tests.agent.peering.test_taking import body, give, held, pieces_of
from tests.agent.service.support import until

MiB = 1 << 20


def brought_by(host: str) -> bytes:
    """A blob that this host would fetch from another region."""
    swarm = Swarm({"fra": ["fra1", "fra2"], "ams": ["ams1"]})
    made = (noise(MiB, seed) for seed in itertools.count())
    return next(data for data in made if swarm.ranking("fra", digest_of(data))[0] == host)


def test_no_other_region_is_asked_as_long_as_somebody_brings_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errands, "ATTENDED_S", FETCH_S)

    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2", "ams1") as hood:
            blob = hood.source.put(brought_by("fra1")).digest
            listed = hood.listed([blob])
            await hood.give("ams1", [blob])
            for _ in range(4):
                fetched = await hood.fetch("fra1", [blob], listed=listed, wait_s=0.3, inside=True)
                assert (fetched.missing, fetched.under_way, fetched.border_bytes) == ((blob,), True, 0)
            monkeypatch.setattr(errands, "ATTENDED_S", 0.1)  # nobody asks any more
            await until(lambda: hood.members["fra1"].has([blob]))

    run(tmp_path, work)


def test_who_is_started_again_while_somebody_brings_it_in_still_asks_no_other_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errands, "ATTENDED_S", FETCH_S)

    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra2", "ams1") as hood:
            blob = hood.source.put(brought_by("fra1")).digest
            listed = hood.listed([blob])
            await hood.give("ams1", [blob])
            async with hood.member("fra1"):
                await hood.meet()
                await hood.fetch("fra1", [blob], listed=listed, inside=True)
            async with hood.member("fra1") as again:
                await until(lambda: fetches(again))
                fetched = await hood.fetch("fra1", [blob], listed=listed, wait_s=0.3, inside=True)
                assert (fetched.missing, fetched.under_way, fetched.border_bytes) == ((blob,), True, 0)

    run(tmp_path, work)


def test_where_nothing_comes_other_regions_are_asked_although_somebody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "INSIDE_S", 0.1)

    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2", "ams1") as hood:
            blob = hood.source.put(brought_by("fra1")).digest
            listed = hood.listed([blob])
            await hood.give("ams1", [blob])
            fetched = await hood.fetch("fra1", [blob], listed=listed, wait_s=FETCH_S, inside=True)
            assert (fetched.missing, fetched.border_bytes) == ((), MiB)

    run(tmp_path, work)


def test_what_is_being_brought_to_a_host_is_not_fetched_by_it_from_others(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2") as hood:
            data, host = noise(MiB), hood.members["fra1"]
            blob = hood.source.put(data).digest
            listed = hood.listed([blob])
            fetching = asyncio.create_task(hood.fetch("fra1", [blob], listed=listed, wait_s=FETCH_S))
            await until(lambda: host.has([listed]))
            offer = PiecesOffer(listed, (blob,), (PartAsked(0, 0, 4),))

            async def with_a_neighbour_that_has_it_too() -> AsyncIterator[bytes]:
                head, *pieces = body(offer, *pieces_of(data))
                yield head + pieces[0]
                await until(lambda: held(host.client, data, 1))
                await hood.give("fra2", [blob])
                for piece in pieces[1:]:
                    yield piece

            await give(host.client, with_a_neighbour_that_has_it_too())
            done = await fetching
            assert (done.missing, done.region_bytes) == ((), 0)
            assert host.store.read(blob) == data

    run(tmp_path, work)


def test_what_two_errands_want_is_fetched_once_and_both_have_it(tmp_path: Path) -> None:
    """Whether somebody attends to them or not; the one that was given last fetches it, and where that cannot, the
    other does."""

    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1", "fra2", "fra3") as hood:
            first, second = (hood.source.put(noise(8 * MiB, seed)).digest for seed in (1, 2))
            await hood.give("fra2", [first, second])
            for blob, of_later in ((first, ("fra1", "fra2")), (second, ("fra1", "fra3"))):
                listed = hood.listed([blob])
                before = await received(hood.members["fra1"])
                earlier = asyncio.create_task(hood.fetch("fra1", [blob], listed=listed, wait_s=FETCH_S, inside=True))
                await until(lambda: fetches(hood.members["fra1"]))
                later = asyncio.create_task(hood.fetch("fra1", [blob], listed=listed, hosts=of_later, wait_s=FETCH_S))
                assert (await earlier).missing == ()
                await later
                assert hood.members["fra1"].has([blob])
                assert await received(hood.members["fra1"]) - before < 10 * MiB

    run(tmp_path, work)


def fetches(member: Member) -> bool:
    return bool(member.agent._peering._drivers)


async def received(member: Member) -> int:
    return sum(row.received_bytes for row in (await member.client.peers()).peers)


class Arriving:
    """A store into which a blob comes in another way just after it was looked whether it is missing."""

    def __init__(self, store: Store, data: bytes) -> None:
        self._store = store
        self._data = data
        self.arrived: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def missing(self, wanted: Iterable[Digest]) -> list[Digest]:
        found = self._store.missing(wanted)
        if self._data:
            self._store.put(self._data)
            self._data = b""
            self.arrived()
        return found


def test_what_comes_while_it_is_looked_what_is_missing_is_not_waited_for(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with neighbourhood(tmp, "fra1") as hood:
            data, member = noise(MiB), hood.members["fra1"]
            blob = hood.source.put(data).digest
            fetch = Fetch(hood.listed([blob]), (Party(("fra1",), (blob,)),))
            items = {item.whole.digest: item for item in take_inventory(hood.source, [blob]).items}
            store = Arriving(member.store, data)
            links = Links(hood.credentials("fra1"), PeerLimits(), time.monotonic)
            one = driver.Driver(
                "fra1",
                fetch,
                items,
                store=cast(Store, store),
                spool=Spool(tmp / "spool"),
                links=links,
                acquaintance=Acquaintance("fra1", member.state_dir / NEIGHBOURS_NAME),
                news=News(),
                now_s=time.monotonic,
                tell=lambda _: None,
                limits=Limits(patience_s=1.0),
            )
            loop = asyncio.get_running_loop()
            store.arrived = lambda: loop.call_soon_threadsafe(one.look_again)
            assert (await one.run()).missing == ()

    run(tmp_path, work)


def test_who_waits_is_told_at_once_that_a_neighbour_lies(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        async with Liar(noise(2 * MiB), liars.flips).among(tmp, "fra2") as (hood, blob):
            told = await hood.fetch("fra2", [blob], listed=hood.listed([blob]), wait_s=FETCH_S, inside=True)
            assert (told.wrong, told.missing, told.under_way) == (("fra1",), (blob,), True)

    run(tmp_path, work)
