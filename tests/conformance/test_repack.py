"""What every store promises about a repack: nothing that can be seen from outside changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cas.digest import digest_of
from cas.errors import StoreFull
from tests.conformance.stores import AnyStore, Clock, faulty, open_store
from tests.conformance.test_blobs import noise, versions


def test_a_repack_changes_nothing_that_can_be_read(store: AnyStore) -> None:
    made = [*versions(5, 50_000), noise(100), noise(20_000, 7)]
    for number, data in enumerate(made):
        store.put(data, name="n" if number < 5 else f"other {number}")
    here, history, usage = list(store.digests()), store.history("n"), store.usage()
    done = store.repack()
    assert (done.complete, done.failed) == (True, ())
    assert list(store.digests()) == here
    assert store.history("n") == history
    assert [store.read(digest_of(data)) for data in made] == made
    assert (store.usage().blobs, store.usage().raw_bytes) == (usage.blobs, usage.raw_bytes)
    assert store.usage().stored_bytes <= 1.1 * usage.stored_bytes
    assert store.check().damaged == ()
    assert store.collect(here).blobs == 0


def test_a_repack_is_stopped_by_who_started_it(store: AnyStore) -> None:
    for data in versions(3, 50_000):
        store.put(data, name="n")
    assert store.repack(should_stop=lambda: True).complete is False


def test_a_repack_says_how_far_it_is(store: AnyStore) -> None:
    for number in range(3):
        store.put(noise(20_000, number), name=f"name {number}")
    told: list[tuple[int, int]] = []
    store.repack(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)


def test_what_a_repacked_store_keeps_is_collected_like_anything_else(store: AnyStore) -> None:
    digests = [store.put(data, name="n").digest for data in versions(4, 50_000)]
    store.repack()
    assert store.collect(digests[:1]).failed == ()
    assert store.contains(digests[0])
    store.collect([])
    assert (store.usage().blobs, store.usage().raw_bytes, store.usage().stored_bytes) == (0, 0, 0)


def test_a_repack_that_fails_is_done_by_the_next_one(tmp_path: Path) -> None:
    with open_store("lmdb", tmp_path, Clock()) as real:
        digests = [real.put(data, name="n").digest for data in versions(3, 50_000)]
        store = faulty(real, "f.")
        with pytest.raises(StoreFull):
            store.repack()
        assert store.repack().complete
        assert real.stat(digests[-1]).depth == 0
