"""The shared origin of blobs, at a real S3 store."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from pathlib import Path

import pytest

from cas.digest import Digest, digest_of
from cas.engines.errors import EngineRefused, EngineUnreachable
from cas.engines.object_format import HEADER_BYTES, BadObject, Header, pack, unpack
from cas.engines.objects import Objects
from cas.engines.origin import COLLECTING, COLLECTION_S, HELD, HOLD_S, Origin, path_of
from cas.engines.origin_collect import collect
from cas.engines.shared import SharedStore
from cas.errors import AmbiguousDigest, BlobDamaged, BlobMissing, StoreBusy
from cas.store import Store
from tests.cas.damage import flip, overwrite, values
from tests.conformance.test_blobs import noise, versions
from tests.engines.servers import CREDENTIALS, Weed, wait_until
from tests.engines.support import shared_store
from tests.ports import free_port

ROUNDS = int(os.environ.get("LOWCLOUD_TEST_ROUNDS", "1"))


def origin_of(store: SharedStore) -> Origin:
    assert store.origin is not None
    return store.origin


@pytest.fixture
def two(tmp_path: Path, weed: Weed, engine_name: str) -> tuple[SharedStore, SharedStore]:
    """The stores of two machines with one origin, where nothing is too young to be collected."""
    directories = [tmp_path / name for name in ("here", "there")]
    for directory in directories:
        directory.mkdir()
    here, there = (shared_store(directory, weed=weed, name=engine_name, hold_s=0.0) for directory in directories)
    return here, there


# --- the format -----------------------------------------------------------------------------------------------------


def test_an_object_is_a_header_and_the_encoded_bytes() -> None:
    digest = digest_of(b"hello")
    assert pack(Header(digest, "plain", 5, None)) + b"hello" == bytes.fromhex(
        "6c636f62 0100 00 00 0500000000000000"
        "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f"
        "0000000000000000000000000000000000000000000000000000000000000000"
        "68656c6c6f"
    )
    base = digest_of(b"base")
    header = Header(digest, "delta", 5, base)
    assert unpack(pack(header), digest, HEADER_BYTES + 3) == header


@pytest.mark.parametrize(
    ("change", "object_bytes"),
    [
        (lambda data: data[:-1], HEADER_BYTES + 5),
        (lambda data: b"nope" + data[4:], HEADER_BYTES + 5),
        (lambda data: data[:4] + b"\2\0" + data[6:], HEADER_BYTES + 5),
        (lambda data: data[:6] + b"\3" + data[7:], HEADER_BYTES + 5),
        (lambda data: data[:6] + b"\2" + data[7:], HEADER_BYTES + 5),  # a delta without a base
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], HEADER_BYTES + 5),
        (lambda data: data[:16] + bytes(32) + data[48:], HEADER_BYTES + 5),
        (lambda data: data, HEADER_BYTES + 6),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_before_a_size_is_believed(change, object_bytes) -> None:  # type: ignore[no-untyped-def]
    digest = digest_of(b"hello")
    with pytest.raises(BadObject):
        unpack(change(pack(Header(digest, "plain", 5, None))), digest, object_bytes)


# --- from machine to machine ----------------------------------------------------------------------------------------


def test_what_one_machine_has_put_another_can_read(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    blobs = [b"", b"x", bytes(100_000), noise(70_000), *versions(6)]
    digests = [here.put(data, name="web").digest for data in blobs]
    assert there.missing(digests) == []
    assert [there.read(digest) for digest in reversed(digests)] == blobs[::-1]
    assert there.find(digests[3][:14]) == digests[3]
    assert there.local.missing(digests) == []


def test_versions_are_kept_as_deltas_at_the_origin(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    made = versions(5)
    digests = [here.put(data, name="web").digest for data in made]
    origin = origin_of(here)
    stored = {digest: meta.size for digest in digests if (meta := origin.objects.head(path_of(digest)))}
    assert stored[digests[0]] > len(made[0])
    assert all(stored[digest] < 1000 for digest in digests[1:])
    assert [origin.header(digest).base for digest in digests[1:]] == digests[:-1]
    there.read(digests[-1])
    assert there.local.stat(digests[-1]).encoding == "delta"


def test_a_large_blob_goes_in_parts(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    data = noise(20 << 20)
    digest = here.put_stream(data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20)).digest
    assert b"".join(there.stream(digest)) == data


def test_two_machines_that_push_the_same_at_once_agree(two: tuple[SharedStore, SharedStore]) -> None:
    made = [noise(3000, seed) for seed in range(20)]
    threads = [threading.Thread(target=store.put_many, args=(made,)) for store in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(origin_of(two[0]).digests()) == sorted(map(digest_of, made))
    assert two[1].check().damaged == ()


def test_an_abbreviation_is_ambiguous_across_here_and_there(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    pair = [b"ambiguous-18794", b"ambiguous-129422"]
    digests = [store.put(data).digest for store, data in zip(two, pair, strict=True)]
    for store in (here, there):
        with pytest.raises(AmbiguousDigest):
            store.find(digests[0][:11])
        assert store.find(digests[1][:20]) == digests[1]
        with pytest.raises(BlobMissing):
            store.find("b3:" + "0" * 12)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_bytes_that_are_not_what_their_name_says_are_never_given_out(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    origin = origin_of(here)
    data, other = noise(5000), noise(5000, 1)
    digest = here.put(data).digest
    forged = pack(Header(digest, "plain", len(other), None)) + other
    for wrong in (forged, forged[:-7], b"", b"junk", pack(Header(digest, "zstd", 9, None)) + b"no frame"):
        origin.objects.put(path_of(digest), wrong)
        with pytest.raises((BlobDamaged, BadObject)):
            there.read(digest)
        assert not there.local.contains(digest)


def test_check_finds_what_is_damaged_at_the_origin_and_replaces_it(two: tuple[SharedStore, SharedStore]) -> None:
    here, _ = two
    made = versions(4)
    digests = [here.put(data, name="web").digest for data in made]
    origin_of(here).objects.put(path_of(digests[1]), b"junk" * 100)
    found = here.check().damaged
    assert [(damage.digest, damage.repaired) for damage in found] == [(digests[1], True)]
    assert here.check().damaged == ()


def test_deltas_that_were_turned_round_here_close_no_circle_at_the_origin(
    two: tuple[SharedStore, SharedStore],
) -> None:
    here, there = two
    first, second = (here.put(data, name="web").digest for data in versions(2))
    origin = origin_of(here)
    assert origin.header(second).base == first
    here.repack()
    assert (here.local.stat(first).base, here.local.stat(second).base) == (second, None)
    origin.objects.delete([path_of(first)])
    here.share([first])
    assert origin.header(first).base is None
    assert [there.read(digest) for digest in (second, first)] == versions(2)[::-1]


def test_a_damaged_local_copy_is_healed_from_the_origin(two: tuple[SharedStore, SharedStore]) -> None:
    here, _ = two
    data = noise(50_000)
    digest = here.put(data).digest
    [(key, value)] = values(here.local, "records")
    overwrite(here.local, "records", key, flip(value, 1000))
    with pytest.raises(BlobDamaged):
        here.local.read(digest)
    assert here.read(digest) == data
    assert here.local.read(digest) == data


# --- collection -----------------------------------------------------------------------------------------------------


def at_origin(store: SharedStore) -> set[Digest]:
    return set(origin_of(store).digests())


def test_a_collection_keeps_what_is_wanted_and_what_that_is_built_on(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    digests = [here.put(data, name="web").digest for data in versions(4)]
    orphan = here.put(noise(3000)).digest
    would = there.collect_origin([digests[2]], dry_run=True)
    assert (would.blobs, would.kept) == (2, 3)
    assert at_origin(here) == {*digests, orphan}
    assert there.collect_origin([digests[2]]).blobs == 2
    assert at_origin(here) == set(digests[:3])


def test_what_is_young_or_held_stays_whatever_refers_to_it(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    origin = origin_of(here)
    digest = here.put(noise(3000)).digest
    origin_of(there).hold_s = HOLD_S
    assert there.collect_origin([]).blobs == 0
    # Eight days later the blob counts as old; relying on it again writes a hold, which is young.
    origin.hold_s, origin.clock = HOLD_S, lambda: time.time() + 8 * 86400
    here.lease([digest], owner="resolve", ttl_s=60)
    assert [meta.path.removeprefix(f"{HELD}/") for meta in origin.objects.list(HELD)] == [digest[3:]]
    assert there.collect_origin([]).blobs == 0


def test_what_this_machine_leases_or_pins_is_not_collected_at_the_origin(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    leased, pinned = (here.put(noise(3000, seed)).digest for seed in range(2))
    here.lease([leased], owner="push", ttl_s=600)
    here.pin(pinned, owner="me")
    assert here.collect_origin([]).blobs == 0
    assert here.collect_origin([], ignoring="push").blobs == 1
    assert at_origin(there) == {pinned}


def test_an_upload_waits_for_a_collection_and_then_looks_again(two: tuple[SharedStore, SharedStore]) -> None:
    """The blob is at the origin when the upload looks, and the collection that is running deletes it afterwards."""
    here, there = two
    digest = here.put(noise(3000)).digest
    origin = origin_of(there)
    origin.objects.create(COLLECTING, b"someone else")

    def collection_ends(_: float) -> None:
        origin.objects.delete([path_of(digest), COLLECTING])

    origin._pause = collection_ends
    assert there.put(noise(3000)).digest == digest
    assert at_origin(here) == {digest}


def test_two_collections_do_not_delete_at_once(two: tuple[SharedStore, SharedStore]) -> None:
    here, there = two
    digest = here.put(noise(3000)).digest
    origin_of(there).objects.create(COLLECTING, b"someone else")
    with pytest.raises(StoreBusy):
        here.collect_origin([])
    assert at_origin(here) == {digest}


def test_a_collection_that_was_killed_is_taken_over(
    two: tuple[SharedStore, SharedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    here.put(noise(3000))
    origin_of(there).objects.create(COLLECTING, b"someone who was killed")
    monkeypatch.setattr("cas.engines.origin_collect.COLLECTION_S", -1.0)
    assert COLLECTION_S > 0
    assert here.collect_origin([]).blobs == 1
    assert origin_of(here).objects.head(COLLECTING) is None


def test_where_an_object_that_stays_cannot_be_read_nothing_is_deleted(two: tuple[SharedStore, SharedStore]) -> None:
    here, _ = two
    kept, orphan = (here.put(noise(3000, seed)).digest for seed in range(2))
    origin_of(here).objects.put(path_of(kept), b"junk")
    collected = collect(origin_of(here), [kept])
    assert collected.blobs == 0
    assert [damage.digest for damage in collected.failed] == [kept]
    assert at_origin(here) == {kept, orphan}


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_pushes_beside_collections_lose_nothing(two: tuple[SharedStore, SharedStore], seed: int) -> None:
    """One machine pushes the same few blobs again and again, as if they were old each time, and believes what it was
    told; the other collects without pause. What was acknowledged last must be there at the end."""
    here, there = two
    made = [noise(2000, number) for number in range(12)]
    pusher, collector = origin_of(here), origin_of(there)
    pusher.hold_s = 0.0  # every blob counts as old, so each push that finds one writes a hold
    pusher.clock = lambda: time.time() + 10
    pusher._pause = lambda _: time.sleep(0.005)
    collector.hold_s = 1.5
    done = threading.Event()
    failures: list[BaseException] = []

    def collecting() -> None:
        try:
            while not done.is_set():
                there.collect_origin([])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=collecting)
    thread.start()
    source = random.Random(seed)
    try:
        for _ in range(40):
            digest = here.put(source.choice(made)).digest
            assert pusher.contains(digest)
    finally:
        done.set()
        thread.join()
    assert failures == []


# --- an origin that does not answer, or says no ---------------------------------------------------------------------


def test_without_its_origin_a_store_reads_what_is_here_and_refuses_to_write(
    tmp_path: Path, weed: Weed, engine_name: str
) -> None:
    (tmp_path / "other").mkdir()
    with (
        shared_store(tmp_path, weed=weed, name=engine_name) as store,
        shared_store(tmp_path / "other", weed=weed, name=engine_name) as other,
    ):
        digest = store.put(noise(5000)).digest
        elsewhere = other.put(noise(5000, 1)).digest
        weed.kill()
        try:
            assert store.read(digest) == noise(5000)
            assert store.find(digest[:20]) == digest
            with pytest.raises(EngineUnreachable, match="is not here, and the S3 store"):
                store.read(elsewhere)
            with pytest.raises(EngineUnreachable):
                store.put(noise(5000, 2))
        finally:
            weed.start()
        assert store.local.read(digest_of(noise(5000, 2))) == noise(5000, 2)
        assert not origin_of(store).contains(digest_of(noise(5000, 2)))
        store.put(noise(5000, 2))
        assert other.read(digest_of(noise(5000, 2))) == noise(5000, 2)
        assert store.read(elsewhere) == noise(5000, 1)


def test_what_was_acknowledged_is_there_when_the_s3_store_was_killed_meanwhile(
    tmp_path: Path, weed: Weed, engine_name: str
) -> None:
    """Two machines push without pause; what either was told is stored must be there afterwards, for anybody."""
    acknowledged: list[Digest] = []
    failed = threading.Event()
    enough = threading.Event()

    def pushing(number: int) -> None:
        directory = tmp_path / f"machine{number}"
        directory.mkdir()
        with shared_store(directory, weed=weed, name=engine_name) as store:
            for step in itertools.count():
                if enough.is_set():
                    return
                try:
                    acknowledged.append(store.put(noise(3000, 1000 * number + step), name="n").digest)
                except EngineUnreachable:
                    failed.set()

    threads = [threading.Thread(target=pushing, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(acknowledged) >= 30, "thirty pushes")
        weed.kill()
        wait_until(failed.is_set, "a push that fails")
        weed.start()
        count = len(acknowledged) + 20
        wait_until(lambda: len(acknowledged) >= count, "pushes after the restart")
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    (tmp_path / "third").mkdir()
    with shared_store(tmp_path / "third", weed=weed, name=engine_name) as third:
        assert origin_of(third).missing(acknowledged) == []
        assert third.check().damaged == ()


def test_many_are_looked_for_in_one_list(two: tuple[SharedStore, SharedStore], monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = two
    digests = [one.digest for one in here.put_many(noise(100, seed) for seed in range(12))]
    absent = digest_of(b"absent")
    monkeypatch.setattr("cas.engines.origin.LIST_INSTEAD", 5)
    assert there.missing([absent, *digests, absent]) == [absent]


def test_without_credentials_that_is_what_is_said(
    weed: Weed, engine_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(EngineRefused, match="no credentials"):
        weed.objects(engine_name).head("x")


def test_wrong_credentials_are_said_to_be_wrong(
    tmp_path: Path, weed: Weed, engine_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    objects: Objects = weed.objects(engine_name)
    with Store.open(tmp_path / "store") as local:
        store = SharedStore(local, origin=Origin(objects), refs=None)
        for attempt in (lambda: store.put(b"x"), lambda: list(store.digests()), lambda: objects.head("x")):
            with pytest.raises(EngineRefused, match="refused"):
                attempt()
