"""Group commit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cas.batch import Batch
from cas.digest import digest_of
from cas.environment import Environment
from cas.errors import RefMoved, StoreUnreadable
from cas.store import Store
from cas.writer import Job, writer_of


def last_transaction(store: Store) -> int:
    env: Environment = store.access.env
    return int(env.lmdb.info()["last_txnid"])


def test_jobs_that_wait_share_one_transaction(store: Store) -> None:
    access = store.access
    started, go = threading.Event(), threading.Event()

    def slow(_batch: Batch) -> None:
        started.set()
        assert go.wait(60)

    first = access.submit(slow)
    assert started.wait(60)
    before = last_transaction(store)
    jobs = [access.submit(lambda batch: batch.new_body()) for _ in range(100)]
    go.set()
    first.wait()
    bodies = [job.wait() for job in jobs]
    assert len(set(bodies)) == 100
    assert last_transaction(store) - before <= 2


@pytest.mark.parametrize("together", [True, False])
def test_a_job_fails_with_the_one_it_comes_after_and_changes_nothing(store: Store, together: bool) -> None:
    access = store.access
    started, go = threading.Event(), threading.Event()
    ran: list[str] = []

    def slow(_batch: Batch) -> None:
        started.set()
        assert go.wait(60)

    def fail(_batch: Batch) -> None:
        raise RefMoved("r", None, None)

    def chain() -> list[Job[None]]:
        bad = access.submit(fail)
        behind = access.submit(lambda _: ran.append("behind"), after=bad)
        return [bad, behind, access.submit(lambda _: ran.append("last"), after=behind)]

    blocking = access.submit(slow)
    assert started.wait(60)
    if not together:
        go.set()
        blocking.wait()
    jobs = chain()
    other = access.submit(lambda batch: batch.new_body())
    go.set()
    for job in jobs:
        with pytest.raises(RefMoved):
            job.wait()
    assert other.wait() > 0
    assert ran == []


def test_only_the_job_at_fault_fails(store: Store) -> None:
    access = store.access
    started, go = threading.Event(), threading.Event()

    def slow(_batch: Batch) -> None:
        started.set()
        assert go.wait(60)

    blocking = access.submit(slow)
    assert started.wait(60)

    def fail(batch: Batch) -> None:
        batch.new_body()
        raise RefMoved("r", None, None)

    good = [access.submit(lambda batch: batch.new_body()) for _ in range(3)]
    bad = access.submit(fail)
    more = [access.submit(lambda batch: batch.new_body()) for _ in range(3)]
    go.set()
    blocking.wait()
    with pytest.raises(RefMoved):
        bad.wait()
    assert len({job.wait() for job in good + more}) == 6


def test_many_threads_may_put_at_once(store: Store) -> None:
    def work(worker: int) -> None:
        for number in range(25):
            store.put(b"%d %d" % (worker, number), name=f"n{worker}")

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.usage().blobs == 200
    assert all(len(store.history(f"n{worker}")) == 25 for worker in range(8))
    assert store.check().damaged == ()


def test_readers_go_on_while_a_writer_holds_its_transaction(store: Store) -> None:
    digest = store.put(b"before").digest
    started, go = threading.Event(), threading.Event()

    def slow(_batch: Batch) -> None:
        started.set()
        assert go.wait(60)

    job = store.access.submit(slow)
    assert started.wait(60)
    assert store.read(digest) == b"before"
    assert store.missing([digest_of(b"after")])
    go.set()
    job.wait()


def test_no_reader_is_left_behind(store: Store) -> None:
    digest = store.put_stream([bytes(1000)] * 20_000).digest
    pieces = store.stream(digest)
    next(pieces)
    for kept in (store.digests(), store.encoded(digest)[1]):
        next(iter(kept))
    assert "no active readers" in store.access.env.lmdb.readers().lower() or not any(
        line.split()[-1].isdigit() for line in store.access.env.lmdb.readers().splitlines()[1:] if line.strip()
    )


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    store.close()
    store.close()
    with pytest.raises(StoreUnreadable, match="closed"):
        store.put(b"x")
    with pytest.raises(StoreUnreadable, match="closed"):
        store.usage()


def test_closing_finishes_what_was_submitted(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        jobs = [store.access.submit(lambda batch: batch.new_body()) for _ in range(10)]
        writer = writer_of(store.access.env)
    assert len({job.wait() for job in jobs}) == 10
    with pytest.raises(StoreUnreadable, match="closed"):
        writer.submit(lambda batch: batch.new_body(), timeout_s=1)
