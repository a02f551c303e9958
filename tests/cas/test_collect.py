"""Collection while everything else goes on."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cas import collect as collection
from cas.digest import Digest, digest_of
from cas.errors import CasError, StoreBusy
from cas.store import Store
from tests.cas.damage import values
from tests.conformance.test_blobs import noise, versions


def between(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something once, after a collection has marked what stays and before it sweeps."""
    mark = collection._mark
    waiting = [action]

    def mark_then_act(*args: Any) -> set[bytes]:
        keep = mark(*args)
        if waiting:
            waiting.pop()()
        return keep

    monkeypatch.setattr(collection, "_mark", mark_then_act)


@pytest.fixture
def doomed(store: Store) -> list[Digest]:
    return [store.put(noise(9000, seed)).digest for seed in range(5)]


def test_a_blob_stored_during_a_collection_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    between(monkeypatch, lambda: store.put(b"new"))
    store.collect([])
    assert store.read(digest_of(b"new")) == b"new"


def test_a_blob_acknowledged_during_a_collection_stays(
    store: Store, doomed: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    between(monkeypatch, lambda: store.put(noise(9000, 2)))
    assert store.collect([]).blobs == 4
    assert store.read(doomed[2]) == noise(9000, 2)


@pytest.mark.parametrize("how", ["lease", "pin", "ref", "many", "stream", "name"])
def test_a_blob_protected_during_a_collection_stays(
    store: Store, doomed: list[Digest], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    actions: dict[str, Callable[[], object]] = {
        "lease": lambda: store.lease([doomed[2]], owner="o", ttl_s=60),
        "pin": lambda: store.pin(doomed[2], owner="o"),
        "ref": lambda: store.move_ref("r", None, doomed[2]),
        "many": lambda: store.put_many([noise(9000, 2)]),
        "stream": lambda: store.put_stream([noise(9000, 2)]),
        "name": lambda: store.put(noise(9000, 2), name="n"),
    }
    between(monkeypatch, actions[how])
    assert store.collect([]).blobs == 4
    assert list(store.digests()) == [doomed[2]]


def test_the_bases_of_a_delta_stored_during_a_collection_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = versions(4)
    for data in made[:3]:
        store.put(data, name="n")
    between(monkeypatch, lambda: store.put(made[3], name="n"))
    assert store.collect([]).blobs == 0
    assert store.read(digest_of(made[3])) == made[3]
    assert store.check().damaged == ()


def test_one_collection_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def again() -> None:
        with pytest.raises(StoreBusy, match="collected already"):
            store.collect([])

    between(monkeypatch, again)
    store.collect([])
    store.collect([])


def test_a_collection_that_fails_leaves_a_store_that_can_be_collected(
    store: Store, doomed: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("interrupted")

    between(monkeypatch, fail)
    with pytest.raises(RuntimeError):
        store.collect([])
    assert store.usage().blobs == len(doomed)
    assert store.collect([]).blobs == len(doomed)
    assert values(store, "touched") == []


def test_collecting_gives_records_and_packs_back(store: Store) -> None:
    stored = store.put_many([*(noise(1000, seed) for seed in range(500)), noise(400_000)])
    kept = [one.digest for one in stored[:500:25]]
    store.collect(kept)
    assert sum(len(value) for _, value in values(store, "records")) < 30_000
    assert len(values(store, "packs")) == 1
    assert all(store.read(digest) for digest in kept)
    usage = store.usage()
    assert (usage.blobs, usage.stored_bytes) == (20, 20_000)
    store.collect([])
    assert values(store, "records") == values(store, "packs") == []
    assert (store.usage().raw_bytes, store.usage().stored_bytes) == (0, 0)


def test_freed_pages_are_used_again(store: Store) -> None:
    size = 0
    for round_ in range(12):
        store.put_many(noise(60_000, 100 * round_ + seed) for seed in range(40))
        store.collect([])
        if round_ == 3:
            size = store.usage().file_bytes
    assert store.usage().file_bytes <= 1.2 * size


def test_expired_leases_are_dropped(store: Store) -> None:
    store.lease([digest_of(b"%d" % number) for number in range(10)], owner="o", ttl_s=-1)
    store.lease([digest_of(b"kept")], owner="o", ttl_s=60)
    store.collect([])
    assert len(values(store, "leases")) == 1


def test_a_large_index_is_swept_in_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "SCAN_BLOBS", 7)
    monkeypatch.setattr(collection, "SWEEP_BLOBS", 5)
    stored = store.put_many(noise(100, seed) for seed in range(100))
    kept = {one.digest for one in stored[::9]}
    collected = store.collect(kept)
    assert (collected.blobs, collected.kept) == (100 - len(kept), len(kept))
    assert set(store.digests()) == kept


def run_all(actions: Iterable[Callable[[], None]]) -> list[BaseException]:
    failures: list[BaseException] = []

    def guarded(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_writers_readers_and_collections_at_once_lose_nothing_that_is_leased(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        stop = threading.Event()

        def write(worker: int) -> None:
            source = random.Random(worker)
            data = bytearray(noise(30_000, worker))
            for number in range(40):
                data[source.randrange(len(data))] ^= 0xFF
                blob = bytes(data) if number % 2 else source.randbytes(500)
                store.lease([digest_of(blob)], owner=f"w{worker}", ttl_s=3600)
                store.put(blob, name=f"n{worker}")
                assert store.read(digest_of(blob)) == blob

        def write_all() -> None:
            try:
                failures = run_all([partial(write, worker) for worker in range(3)])
            finally:
                stop.set()
            if failures:
                raise failures[0]

        def collect() -> None:
            while not stop.is_set():
                store.collect([])

        def churn() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                store.put_many(noise(2000, 10_000 * number + seed) for seed in range(20))

        def read() -> None:
            while not stop.is_set():
                for digest in store.digests():
                    try:
                        assert digest_of(store.read(digest)) == digest
                    except CasError as error:
                        assert type(error).__name__ == "BlobMissing"

        assert run_all([write_all, collect, churn, read]) == []
        assert store.check().damaged == ()
        store.collect([])
        assert store.usage().blobs >= 120
