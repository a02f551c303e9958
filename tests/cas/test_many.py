"""Many blobs in one call: the same answers as one call for each."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import putting_many, reading_many
from cas.collect import scan
from cas.digest import Digest, digest_of, from_raw, to_raw
from cas.errors import BlobDamaged, BlobMissing, StoreFull
from cas.reading_many import to_raws
from cas.store import Store
from tests.cas.damage import flip, overwrite, values
from tests.conformance.test_blobs import noise, versions


def mixed(store: Store) -> dict[Digest, bytes]:
    """Blobs of every encoding and size, in packs and alone."""
    small = [noise(200 + 7 * seed, seed) for seed in range(300)]
    others = [bytes(9000), b"", noise(70_000, 1), b"text " * 500]
    store.put_many([*small, *others])
    series = versions(3, 40_000)
    for data in series:
        store.put(data, name="n")
    return {digest_of(data): data for data in [*small, *others, *series]}


@pytest.mark.parametrize(("group", "held_bytes"), [(1024, 256 << 10), (7, 256 << 10), (64, 1)])
def test_many_are_read_in_the_order_asked_for(
    store: Store, group: int, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_many, "GROUP_BLOBS", group)
    monkeypatch.setattr(reading_many, "HELD_BYTES", held_bytes)
    content = mixed(store)
    asked = random.Random(1).choices(list(content), k=500)
    assert list(store.read_many(asked)) == [(digest, content[digest]) for digest in asked]
    assert list(store.read_many([])) == []


def test_the_first_that_cannot_be_read_ends_reading_many(store: Store) -> None:
    digests = [stored.digest for stored in store.put_many(noise(300, seed) for seed in range(20))]
    reading = store.read_many([*digests[:5], digest_of(b"absent"), digests[5]])
    assert [next(reading)[0] for _ in range(5)] == digests[:5]
    with pytest.raises(BlobMissing):
        next(reading)
    key, value = values(store, "records")[0]
    overwrite(store, "records", key, flip(value, 8 * 300 * 2 + 5))
    reading = store.read_many(digests)
    assert [next(reading)[0] for _ in range(2)] == digests[:2]
    with pytest.raises(BlobDamaged) as caught:
        next(reading)
    assert caught.value.digest == digests[2]
    overwrite(store, "records", key, None)
    with pytest.raises(BlobDamaged):
        next(store.read_many(digests))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5))
def test_digests_are_turned_into_bytes_together_as_they_are_one_by_one(raws: list[bytes]) -> None:
    assert to_raws([from_raw(raw) for raw in raws]) == raws


@pytest.mark.parametrize(
    "bad",
    [
        ["b3:" + "A" * 64],
        ["b3:" + "0" * 63],
        ["b3:" + "0" * 62 + "  "],
        ["b3:" + "0" * 64 + "b3:" + "0" * 64, ""],
        ["0" * 64 + "b3:"],
        ["sha256:" + "0" * 64],
        [""],
    ],
)
def test_what_is_not_a_digest_is_refused_among_many(bad: list[str]) -> None:
    for text in bad:
        if text:
            with pytest.raises(ValueError, match="not a digest"):
                to_raw(text)
    with pytest.raises(ValueError, match="not a digest"):
        to_raws(["b3:" + "0" * 64, *bad])


def test_many_in_several_groups_are_stored_once_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(putting_many, "GROUP_BLOBS", 10)
    blobs = [noise(200 + seed % 37, seed % 37) for seed in range(100)] + [bytes(8000), noise(40_000), bytes(8000)]
    results = store.put_many(iter(blobs))
    assert [result.digest for result in results] == [digest_of(data) for data in blobs]
    assert [result.size for result in results] == [len(data) for data in blobs]
    assert sum(result.new for result in results) == 39
    assert sum(result.stored_bytes for result in results) == store.usage().stored_bytes
    assert not any(result.new for result in store.put_many(blobs))
    entries = [entry for _, entry in scan(store.access) if not isinstance(entry, str)]
    assert sum(entry.size for entry in entries) == store.usage().raw_bytes
    assert store.check().damaged == ()


def test_many_that_are_here_are_acknowledged_by_a_store_that_is_full(store: Store) -> None:
    blobs = [noise(1000, seed) for seed in range(200)]
    store.put_many(blobs)
    used = store.access.env.used_bytes()
    with Store.open(store.path, quota_bytes=used + 50_000) as full:
        assert not any(result.new for result in full.put_many(blobs))
        with pytest.raises(StoreFull):
            full.put_many(noise(1000, seed) for seed in range(1000, 1200))


def test_a_lease_covers_what_was_new_and_what_was_here(store: Store) -> None:
    blobs = [noise(500, seed) for seed in range(30)] + [bytes(8000)]
    store.put_many(blobs[:15])
    store.put_many(blobs, lease_owner="fetch", ttl_s=60)
    store.collect([])
    assert store.missing(map(digest_of, blobs)) == []
    store.release("fetch")
    store.collect([])
    assert store.usage().blobs == 0
