"""Several processes and one store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cas.digest import Digest, digest_of
from cas.errors import StoreBusy
from cas.store import Store
from tests.cas.crash import crash_once, verify
from tests.conformance.stores import Clock
from tests.conformance.test_blobs import noise, versions

WRITER = """
import sys
from pathlib import Path
from cas.store import Store
from cas.errors import RefMoved
from cas.digest import digest_of

directory, worker, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with Store.open(directory) as store:
    for number in range(count):
        data = b"%d-%d" % (worker, number) * 50
        store.put(data, name=f"n{worker}")
        while True:
            now = store.read_ref("counter")
            value = int(store.read(now)) if now else 0
            following = store.put(b"%d" % (value + 1)).digest
            try:
                store.move_ref("counter", now, following)
                break
            except RefMoved:
                continue
"""

HOLDER = """
import sys
from pathlib import Path
from cas.store import Store
store = Store.open(Path(sys.argv[1]))

def hold(batch):
    print("held", flush=True)
    sys.stdin.readline()

store.access.write(hold)
store.close()
print("done", flush=True)
"""


LEASER = """
import os, signal, sys
from pathlib import Path
from cas.store import Store
store = Store.open(Path(sys.argv[1]))
print(*(each.digest for each in store.put_many([b"one" * 300, b"two" * 300], lease_owner="fetch", ttl_s=1000)))
leased = store.put(b"three" * 300).digest
store.lease([leased], owner="fetch", ttl_s=1000)
store.pin(store.put(b"four" * 300).digest, owner="fetch")
print(leased, store.put(b"five" * 300).digest, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

READER = """
import sys, threading
from pathlib import Path
from cas.digest import digest_of
from cas.store import Store

def read_all(store, digests, failures):
    try:
        for digest in digests:
            assert digest_of(store.read(digest)) == digest
            assert digest_of(b"".join(store.stream(digest))) == digest
        assert [digest for digest, _ in store.read_many(digests)] == digests
    except BaseException as error:
        failures.append(error)

with Store.open(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    for line in sys.stdin:
        digests, failures = line.split(), []
        threads = [threading.Thread(target=read_all, args=(store, digests, failures)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("failed: %r" % failures if failures else "good", flush=True)
"""


def start(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    workers, each = 3, 40
    Store.open(tmp_path / "s").close()
    processes = [start(WRITER, str(tmp_path / "s"), str(worker), str(each)) for worker in range(workers)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    with Store.open(tmp_path / "s") as store:
        counter = store.read_ref("counter")
        assert counter is not None
        assert store.read(counter) == b"%d" % (workers * each)
        for worker in range(workers):
            blobs = [b"%d-%d" % (worker, number) * 50 for number in range(each)]
            assert store.missing(map(digest_of, blobs)) == []
            assert len(store.history(f"n{worker}")) == each
        assert store.check().damaged == ()


def test_a_writer_that_waits_too_long_says_so_and_readers_do_not_wait(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", write_timeout_s=0.2) as store:
        digest = store.put(b"before").digest
        holder = start(HOLDER, str(tmp_path / "s"))
        assert first_line(holder) == "held"
        with pytest.raises(StoreBusy, match="locked by another writer"):
            store.put(b"data")
        assert store.read(digest) == b"before"
        assert store.put(b"before").new is False
        out, _ = holder.communicate("\n")
        assert out.strip() == "done"
        assert store.put(b"data").new


def test_a_writer_that_is_killed_frees_the_store(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", write_timeout_s=30) as store:
        store.put(b"before")
        holder = start(HOLDER, str(tmp_path / "s"))
        assert first_line(holder) == "held"
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
        began = time.monotonic()
        assert store.put(b"data").new
        assert time.monotonic() - began < 20


def test_what_another_process_wrote_is_seen_at_once(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        assert store.read_ref("counter") is None
        start(WRITER, str(tmp_path / "s"), "0", "1").communicate()
        assert store.read_ref("counter") == digest_of(b"1")
        assert store.history("n0") == [digest_of(b"0-0" * 50)]


def test_the_leases_and_pins_of_a_killed_process_go_on_protecting(tmp_path: Path, clock: Clock) -> None:
    clock.now = time.time()
    leaser = start(LEASER, str(tmp_path / "s"))
    *protected, free = leaser.communicate()[0].split()
    assert leaser.returncode == -signal.SIGKILL
    with Store.open(tmp_path / "s", clock=clock) as store:
        store.collect([])
        assert store.missing([*protected, free]) == [free]
        pinned = digest_of(b"four" * 300)
        clock.now += 2000
        store.collect([])
        assert list(store.digests()) == [pinned]


def test_threads_of_another_process_read_everything_while_one_writes_and_repacks(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        reader = start(READER, str(tmp_path / "s"))
        assert first_line(reader) == "ready"
        assert reader.stdin is not None
        acknowledged: list[Digest] = []
        for number, data in enumerate(versions(6, 60_000)):
            acknowledged.append(store.put(data, name="n").digest)
            acknowledged += [each.digest for each in store.put_many(noise(400, 9 * number + n) for n in range(9))]
            reader.stdin.write(" ".join(acknowledged) + "\n")
            reader.stdin.flush()
            store.put_stream([noise(500_000, number)])
            store.repack()
            assert first_line(reader) == "good"
        reader.communicate()
        assert reader.returncode == 0
        assert store.check().damaged == ()


def test_a_killed_process_disturbs_no_other(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        kept: list[Digest] = []
        for seed in range(4):
            kept += crash_once(tmp_path / "s", 900 + seed)
            mine = noise(2000, seed)
            store.pin(digest_of(mine), owner="mine")
            kept.append(store.put(mine, name="mine").digest)
            assert [digest for digest, _ in store.read_many(kept)] == kept
        verify(tmp_path / "s", kept)
