"""Flipped bits are found every time, on reading and by `check`, and healed."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas.digest import Digest, digest_of, from_raw, to_raw
from cas.errors import BlobDamaged, CasError, StoreUnreadable
from cas.exchange import Receiver, frames
from cas.memory import MemoryStore
from cas.store import Store
from tests.cas.damage import flip, flip_in_file, overwrite, values
from tests.conformance.test_blobs import noise, versions


def fill(store: Store) -> dict[Digest, bytes]:
    """Blobs of every kind: packed and not, plain, zstd, deltas."""
    blobs = [noise(300), noise(5000, 1), bytes(5000), noise(70_000, 2), bytes(100_000) + noise(40_000), b""]
    blobs += versions(4, 40_000)
    for data in blobs[:6]:
        store.put(data)
    for data in blobs[6:]:
        store.put(data, name="n")
    store.put_many(noise(200, seed) for seed in range(10, 20))
    blobs += [noise(200, seed) for seed in range(10, 20)]
    assert {store.stat(digest).encoding for digest in store.digests()} == {"plain", "zstd", "delta"}
    return {digest_of(data): data for data in blobs}


def stream(store: Store) -> dict[Digest, bytes]:
    """A blob that was streamed in."""
    long = noise(1 << 20, 3) * 9 + noise(9 << 20, 4)
    return {store.put_stream([long]).digest: long}


def readable(store: Store, digest: Digest, data: bytes) -> bool:
    """Whether the blob can be read; whatever is read must be right."""
    try:
        assert store.read(digest) == data
        assert b"".join(store.stream(digest)) == data
    except BlobDamaged as error:
        assert error.digest == digest
        return False
    return True


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), database=st.sampled_from(["records", "blobs"]))
def test_any_flipped_bit_is_found_by_reading_and_by_check(store: Store, seed: int, database: str) -> None:
    content = {d: store.read(d) for d in store.digests()} if store.usage().blobs else fill(store)
    source = random.Random(seed)
    key, value = source.choice([item for item in values(store, database) if item[1] != b"\0"])
    overwrite(store, database, key, flip(value, source.randrange(8 * len(value))))
    broken = {digest for digest, data in content.items() if not readable(store, digest, data)}
    assert broken
    if database == "blobs":
        assert from_raw(key) in broken
    assert {damage.digest for damage in store.check().damaged} == broken
    overwrite(store, database, key, value)


@pytest.mark.parametrize("database", ["records", "blobs"])
def test_everything_damaged_is_repaired_from_a_peer(store: Store, database: str) -> None:
    content = fill(store)
    content |= stream(store)
    peer = MemoryStore()
    for data in content.values():
        peer.put(data)
    for key, value in values(store, database):
        overwrite(store, database, key, flip(value, 1001 % (8 * len(value))))
    repaired = store.check(source=peer).damaged
    assert len(repaired) > 10
    assert all(damage.repaired for damage in repaired)
    assert store.check().damaged == ()
    assert all(store.read(digest) == data for digest, data in content.items())


@pytest.mark.parametrize("change", ["missing", "cut short", "longer"])
def test_a_record_that_is_missing_or_of_another_length_is_found(store: Store, change: str) -> None:
    content = fill(store)
    for key, value in values(store, "records"):
        if value == b"\0":
            continue  # The pack of the empty blob, which has nothing to lose.
        changed = {"missing": None, "cut short": value[:-1], "longer": value + b"!"}[change]
        overwrite(store, "records", key, changed)
        broken = {digest for digest, data in content.items() if not readable(store, digest, data)}
        assert broken or change == "longer"
        assert {damage.digest for damage in store.check().damaged} == broken
        overwrite(store, "records", key, value)


def test_putting_the_same_bytes_heals(store: Store) -> None:
    content = fill(store) | stream(store)
    for database in ("records", "blobs"):
        for key, value in values(store, database):
            if len(value) > 1:
                overwrite(store, database, key, flip(value, 13))
    broken = [digest for digest, data in content.items() if not readable(store, digest, data)]
    assert len(broken) > 15
    for digest in broken:
        if len(content[digest]) > 1 << 20:
            assert store.put_stream([content[digest]]).new
        else:
            assert store.put(content[digest], name="n").new
    assert store.check().damaged == ()
    assert all(store.read(digest) == data for digest, data in content.items())
    assert store.usage().blobs == len(content)


def test_many_blobs_put_again_heal(store: Store) -> None:
    blobs = [noise(300, seed) for seed in range(50)]
    store.put_many(blobs)
    for key, value in values(store, "records"):
        overwrite(store, "records", key, flip(value, 5000))
    assert len(store.check().damaged) == 1
    assert sum(stored.new for stored in store.put_many(blobs)) == 1
    assert store.check().damaged == ()


def test_a_damaged_base_is_named_and_its_repair_heals_what_is_built_on_it(store: Store) -> None:
    made = versions(4)
    digests = [store.put(data, name="n").digest for data in made]
    key, value = next((key, value) for key, value in values(store, "records") if len(value) > 100_000)
    overwrite(store, "records", key, flip(value, 99))
    with pytest.raises(BlobDamaged, match="built on") as caught:
        store.read(digests[3])
    assert caught.value.digest == digests[3]
    assert digests[0] in str(caught.value)
    peer = MemoryStore()
    peer.put(made[0])
    damaged = store.check(source=peer).damaged
    assert [(damage.digest, damage.repaired) for damage in damaged] == [(digests[0], True)]
    assert store.check().damaged == ()


def test_a_source_that_lies_repairs_nothing(store: Store) -> None:
    digest = store.put(noise(100_000)).digest
    key, value = values(store, "records")[0]
    overwrite(store, "records", key, flip(value, 99))

    class Liar:
        def contains(self, _: Digest) -> bool:
            return True

        def read(self, _: Digest) -> bytes:
            return b"something else"

    assert [damage.repaired for damage in store.check(source=Liar()).damaged] == [False]
    assert not readable(store, digest, noise(100_000))


def test_a_flipped_bit_behind_lmdbs_back_is_found(tmp_path: Path) -> None:
    data = noise(300_000)
    with Store.open(tmp_path / "s") as store:
        digest = store.put(data).digest
    flip_in_file(tmp_path / "s", data[1000:1100], 17)
    with Store.open(tmp_path / "s") as store:
        with pytest.raises(BlobDamaged):
            store.read(digest)
        assert [damage.digest for damage in store.check().damaged] == [digest]


def test_damage_is_never_sent(store: Store) -> None:
    for size in (1000, 500_000):
        digest = store.put(noise(size)).digest
        for key, value in values(store, "records"):
            overwrite(store, "records", key, flip(value, 3))
        target = MemoryStore()
        with pytest.raises(BlobDamaged), Receiver(target) as receiver:
            for chunk in frames(store, [digest]):
                receiver.feed(chunk)
        assert list(target.digests()) == []


def test_a_damaged_ref_is_an_error_and_never_a_wrong_answer(store: Store) -> None:
    digest = store.put(b"x").digest
    store.move_ref("prod", None, digest)
    key, value = values(store, "refs")[0]
    for bit in range(8 * len(value)):
        overwrite(store, "refs", key, flip(value, bit))
        with pytest.raises(StoreUnreadable, match="prod"):
            store.read_ref("prod")
        with pytest.raises(StoreUnreadable):
            store.move_ref("prod", digest, None)


def test_a_damaged_lease_or_pin_still_protects(store: Store) -> None:
    leased, pinned = store.put(noise(1000)).digest, store.put(noise(1000, 1)).digest
    store.lease([leased], owner="o", ttl_s=10)
    store.pin(pinned, owner="o")
    for database in ("leases", "pins"):
        key, value = values(store, database)[0]
        overwrite(store, database, key, flip(value, 6))
    assert store.collect([]).blobs == 0


def test_a_damaged_history_only_costs_a_base(store: Store) -> None:
    made = versions(3)
    first = store.put(made[0], name="n").digest
    second = store.put(made[1], name="n").digest
    key, value = values(store, "names")[-1]
    overwrite(store, "names", key, flip(value, 77))
    assert store.history("n") == [first]
    third = store.put(made[2], name="n").digest
    assert store.history("n") == [third, first]
    assert store.read(second) == made[1]
    assert store.check().damaged == ()


def test_damaged_counters_are_reported_and_nothing_is_overwritten(store: Store) -> None:
    digest = store.put(noise(1000)).digest
    (key, value) = next(item for item in values(store, "meta") if item[0] == b"counters")
    overwrite(store, "meta", key, flip(value, 3))
    with pytest.raises(StoreUnreadable, match="counters"):
        store.put(b"more")
    with pytest.raises(StoreUnreadable, match="counters"):
        store.check()
    assert store.read(digest) == noise(1000)


def test_collect_goes_past_a_bad_item_and_names_it(store: Store) -> None:
    digests = [store.put(noise(1000, seed)).digest for seed in range(20)]
    bad = sorted(digests)[7]
    value = dict(values(store, "blobs"))[to_raw(bad)]
    overwrite(store, "blobs", to_raw(bad), flip(value, 30))
    collected = store.collect([])
    assert (collected.blobs, collected.kept) == (19, 1)
    assert [damage.digest for damage in collected.failed] == [bad]
    assert list(store.digests()) == [bad]


def test_a_damaged_count_never_costs_a_neighbour_in_the_pack(store: Store) -> None:
    blobs = [noise(300, seed) for seed in range(40)]
    digests = [stored.digest for stored in store.put_many(blobs)]
    for key, value in values(store, "packs"):
        overwrite(store, "packs", key, flip(value, 1))
    store.collect(digests[:10])
    assert [store.read(digest) for digest in digests[:10]] == blobs[:10]


def test_no_error_is_anything_but_one_of_ours(store: Store) -> None:
    content = fill(store) | stream(store)
    for database in ("records", "blobs"):
        for key, _ in values(store, database):
            overwrite(store, database, key, b"?")
    for digest in content:
        for call in (store.read, lambda d: list(store.stream(d)), store.stat, lambda d: store.patch(d, [d])):
            with suppress(CasError):
                call(digest)
    assert store.collect([]).kept == len(content)
