"""Snapshots between real hosts and a cloud's store: whole or not there, on from where they were cut off, kept until
they are forgotten."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterable
from pathlib import Path

import pytest

from agent.api.calls import CreateVolume, DeleteVolume, Envelope, RestoreVolume, SnapshotVolume
from agent.client.errors import BadAnswer, HostUnreachable
from cas.digest import Digest, to_raw
from cas.errors import BlobMissing, ExchangeError
from cas.exchange import frames
from cas.store import Store
from cas.tree import (
    PIECE_BYTES,
    Directory,
    File,
    Item,
    Snapshot,
    TreeInvalid,
    data_bytes_of,
    encode_pages,
    encode_snapshot,
    read_tree,
)
from deployer.applying import incoming, snapshots
from deployer.applying.fleet import Fleet
from deployer.applying.site import Site
from deployer.errors import BadInput
from deployer.history.roots import roots
from deployer.history.snapshots import NoSuchSnapshot, Snapshots, needs_of, refuse_small
from tests.deployer.ground import Ground
from tests.deployer.test_transfer import CuttingProxy

MIB = 1 << 20


def keep(store: Store, items: Iterable[Item], *, volume: str = "data", at_unix_ns: int = 1) -> Digest:
    """A snapshot in a store, as a host would have taken it."""
    held = list(items)
    snapshot = Snapshot(
        volume=volume,
        host="h1",
        at_unix_ns=at_unix_ns,
        size_bytes=32 * MIB,
        entries=sum(item is not None for item in held),
        data_bytes=sum(data_bytes_of(item) for item in held if isinstance(item, File)),
        pages=tuple(store.put(page).digest for page in encode_pages(held)),
    )
    return store.put(encode_snapshot(snapshot)).digest


def some_files(store: Store, mib: int) -> list[Item]:
    chance = random.Random(mib)
    pieces = b"".join(to_raw(store.put(chance.randbytes(PIECE_BYTES)).digest) for _ in range(mib))
    small = [File(b"%03d" % n, 0o640, n, 5, (to_raw(store.put(b"%05d" % n).digest),)) for n in range(200)]
    return [Directory(b"d", 0o750, 7), *small, None, File(b"large", 0o600, 8, mib * MIB, (pieces,))]


def restoring(digest: Digest, volume: str) -> RestoreVolume:
    return RestoreVolume(volume, digest, 64 * MIB, secrets.token_hex(8))


def taking(volume: str) -> SnapshotVolume:
    return SnapshotVolume(volume, secrets.token_hex(8))


def test_what_is_restored_on_one_host_and_taken_there_is_what_it_was(ground: Ground) -> None:
    store = ground.cloud.store
    assert isinstance(store, Store)
    items = some_files(store, 3)
    digest = keep(store, items)

    async def act(site: Site) -> tuple[snapshots.Brought, snapshots.Brought]:
        _, sent_bytes = await snapshots.restore(site, "h1", restoring(digest, "one"))
        assert sent_bytes > 3 * MIB
        first = await snapshots.take(site, "h1", taking("one"))
        return first, await snapshots.take(site, "h1", taking("one"))

    first, second = asyncio.run(ground.on_site(act))
    held = Snapshots(store, ground.ref)
    assert first.wire_bytes < 20_000, "all but the list was here"
    assert (second.blobs, second.facts.read_bytes) == (1, 0)
    for one in (first, second):
        assert list(read_tree(held.read(one.facts.snapshot), store.read)) == items
    assert [one.digest for one in held.every("one")] == [second.facts.snapshot, first.facts.snapshot]

    async def end(site: Site) -> None:
        client = await site.fleet.client("h1")
        await client.call(Envelope(DeleteVolume("one")))

    asyncio.run(ground.on_site(end))


def test_a_snapshot_that_is_cut_off_goes_on_where_it_was_and_has_no_name_before_it_is_whole(
    ground: Ground, tmp_path: Path
) -> None:
    store = ground.cloud.store
    assert isinstance(store, Store)
    digest = keep(store, some_files(store, 20))
    address, _, port = ground.agents["h1"].listen.rpartition(":")

    async def take(elsewhere: Store, *, cuts: int) -> snapshots.Brought:
        proxy = CuttingProxy((address, int(port)), cut_after=5 * MIB, cuts=cuts, towards=False)
        try:
            async with Fleet({"h1": proxy.address}, ground.cloud.credentials) as fleet:
                return await snapshots.take(Site(elsewhere, ground.ref, fleet, ground.by), "h1", taking("two"))
        finally:
            proxy.close()

    async def act(elsewhere: Store) -> snapshots.Brought:
        await ground.on_site(lambda site: snapshots.restore(site, "h1", restoring(digest, "two")))
        try:
            with pytest.raises((HostUnreachable, ExchangeError)):
                await take(elsewhere, cuts=incoming.TRIES)
            assert Snapshots(elsewhere, ground.ref).every() == []
            return await take(elsewhere, cuts=0)
        finally:
            await ground.on_site(lambda site: delete(site, "two"))

    with Store.open(tmp_path / "store") as elsewhere:
        brought = asyncio.run(act(elsewhere))
        assert elsewhere.missing(needs_of(elsewhere, brought.facts.snapshot)) == []
        assert [one.digest for one in Snapshots(elsewhere, ground.ref).every()] == [brought.facts.snapshot]
        assert brought.wire_bytes < 18 * MIB, "what had come before stayed"


def test_a_host_that_sends_more_than_a_snapshot_can_have_is_left(ground: Ground, tmp_path: Path) -> None:
    async def act() -> None:
        with Store.open(tmp_path / "theirs") as theirs, Store.open(tmp_path / "store") as elsewhere:
            large = theirs.put(random.Random(1).randbytes(8 * MIB)).digest
            async with Fleet({"h1": ground.agents["h1"].listen}, ground.cloud.credentials) as fleet:
                client = await fleet.client("h1")
                await client.send_blobs(frames(theirs, [large]))
                site = Site(elsewhere, ground.ref, fleet, ground.by)
                with pytest.raises(BadAnswer, match="more than"):
                    await snapshots.bring(site, client, "data", large)
            assert elsewhere.missing([large]) == [large]

    asyncio.run(act())


async def delete(site: Site, volume: str) -> None:
    client = await site.fleet.client("h1")
    await client.call(Envelope(DeleteVolume(volume)))


def test_a_snapshot_of_something_else_than_was_asked_for_is_refused(ground: Ground, tmp_path: Path) -> None:
    async def act() -> None:
        async def take(site: Site) -> Digest:
            client = await site.fleet.client("h1")
            await client.call(Envelope(CreateVolume("mine", 4 * MIB)))
            return (await snapshots.take(site, "h1", taking("mine"))).facts.snapshot

        digest = await ground.on_site(take)
        await ground.on_site(lambda site: delete(site, "mine"))
        with Store.open(tmp_path / "store") as elsewhere:
            async with Fleet({"h1": ground.agents["h1"].listen}, ground.cloud.credentials) as fleet:
                site = Site(elsewhere, ground.ref, fleet, ground.by)
                with pytest.raises(TreeInvalid, match="mine@h1"):
                    await snapshots.bring(site, await fleet.client("h1"), "other", digest)

    asyncio.run(act())


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_a_collection_keeps_a_snapshot_with_all_that_it_takes_until_it_is_forgotten(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        first, second = keep(store, some_files(store, 1)), keep(store, some_files(store, 2), at_unix_ns=2)
        held = Snapshots(store, "prod")
        held.name(first)
        held.name(first)
        held.name(second)
        store.collect(roots(store))
        assert store.missing(needs_of(store, first) | needs_of(store, second)) == []
        gone = needs_of(store, first) - needs_of(store, second)
        held.forget(first)
        store.collect(roots(store))
        assert set(store.missing(gone)) == gone
        assert [one.digest for one in held.every()] == [second]
        assert store.missing(needs_of(store, second)) == []


def test_nothing_is_collected_where_what_a_snapshot_takes_is_not_known(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        digest = keep(store, some_files(store, 1))
        store.move_ref("snapshot/prod/data/x", None, digest)
        pages = Snapshots(store, "prod").read(digest).pages
        store.collect([digest])
        assert store.missing(pages) == [*pages]
        with pytest.raises(BlobMissing):
            roots(store)


def test_a_snapshot_is_found_by_its_hash_or_as_the_newest_of_its_volume(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        held = Snapshots(store, "prod")
        names = [keep(store, [], at_unix_ns=n) for n in (1, 2)]
        other = keep(store, [], volume="other")
        for digest in (*names, other):
            held.name(digest)
        Snapshots(store, "staging").name(keep(store, [], volume="staged"))
        assert held.find("data").digest == names[1]
        assert held.find(names[0]).digest == names[0]
        assert held.find(names[0][3:11]).digest == names[0]
        assert [one.digest for one in held.every("other")] == [other]
        for text in ("absent", "staged", "0" * 12):
            with pytest.raises(NoSuchSnapshot):
                held.find(text)
        with pytest.raises(BadInput, match="would have 5"):
            refuse_small(
                Snapshot(volume="v", host="h", at_unix_ns=0, size_bytes=9, entries=0, data_bytes=6, pages=()), 5
            )
