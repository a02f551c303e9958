"""A store that is killed again and again, and what must hold after each time.

The worker stores one by one, many at once and as streams, encodes as deltas, pins, leases, collects and repacks, in
three threads, and says which blobs were acknowledged; it is killed with `kill -9` at a random moment. Also run by hand,
for as often as one likes:

    python -m tests.cas.crash 1000 [FIRST_SEED]
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path

from cas import incoming, patches, putting, putting_many
from cas.batch import collection_running
from cas.bodies import body_of_key
from cas.collect import scan
from cas.digest import RAW_BYTES, Digest, digest_of, to_raw
from cas.entries import Entry
from cas.incoming import PENDING_TTL_S
from cas.store import Store
from tests.cas.damage import values

MOST_LINES = 12
LEASE_S = 1e6
LONGEST_PAUSE_S = 0.05
"""A worker is killed after a random number of acknowledgements and a random pause: on a busy machine, too, it gets
somewhere."""


def work(directory: Path, seed: int) -> None:
    """Runs until it is killed."""
    incoming.FLUSH_RECORDS = 1
    putting.BUFFERED_BYTES = 100_000
    putting.NAMED_BUFFERED_BYTES = 100_000
    putting_many.GROUP_BLOBS = 12
    with Store.open(directory) as store:
        print("ready", flush=True)
        threading.Thread(target=_collect_for_ever, args=(store,), daemon=True).start()
        threading.Thread(target=_repack_for_ever, args=(store,), daemon=True).start()
        source = random.Random(seed)
        data = bytearray(source.randbytes(20_000))
        while True:
            choice = source.randrange(4)
            if choice == 0:
                data[source.randrange(len(data))] ^= 0xFF
                _keep(store, bytes(data), name="series")
            elif choice == 1:
                _keep(store, source.randbytes(source.choice([10, 900, 5000, 70_000])), name=None)
            elif choice == 2:
                _keep_stream(store, [source.randbytes(60_000) for _ in range(source.randrange(2, 14))])
            else:
                _keep_many(store, [source.randbytes(source.randrange(1, 3000)) for _ in range(50)])


def _collect_for_ever(store: Store) -> None:
    while True:
        store.collect([])


def _repack_for_ever(store: Store) -> None:
    while True:
        store.repack()


def _keep(store: Store, data: bytes, name: str | None) -> None:
    store.pin(digest_of(data), owner="kept")
    print(store.put(data, name=name).digest, flush=True)


def _keep_stream(store: Store, chunks: list[bytes]) -> None:
    store.pin(digest_of(b"".join(chunks)), owner="kept")
    print(store.put_stream(chunks).digest, flush=True)


def _keep_many(store: Store, blobs: list[bytes]) -> None:
    """What is stored in one call is acknowledged by one line."""
    stored = store.put_many(blobs, lease_owner="kept", ttl_s=LEASE_S)
    print(*(each.digest for each in stored), flush=True)


def crash_once(directory: Path, seed: int) -> list[Digest]:
    """Let a worker live for a random time, kill it, and return what it had acknowledged."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.cas.crash", "--work", str(directory), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    source = random.Random(seed)
    lines = list(islice(worker.stdout, source.randrange(MOST_LINES)))
    died = threading.Event()

    def kill() -> None:
        os.kill(worker.pid, signal.SIGKILL)
        died.set()

    threading.Timer(source.uniform(0, LONGEST_PAUSE_S), kill).start()
    lines += worker.stdout.read().splitlines(keepends=True)
    worker.wait()
    assert died.wait(60), "the worker ended by itself"
    return [digest for line in lines if line.endswith("\n") for digest in line.split()]


def verify(directory: Path, kept: list[Digest]) -> None:
    """Everything acknowledged is here, everything here is sound, and nothing is left that nobody can find."""
    with Store.open(directory) as store:
        assert store.check().damaged == ()
        assert store.missing(kept) == []
        usage = store.usage()
        entries = [entry for _, entry in scan(store.access) if not isinstance(entry, str)]
        assert len(entries) == usage.blobs
        assert sum(entry.stored for entry in [*entries, *_kept_patches(store)]) == usage.stored_bytes
        assert sum(entry.size for entry in entries) == usage.raw_bytes
    with Store.open(directory, clock=lambda: time.time() + 2 * PENDING_TTL_S) as later:
        later.collect([])
        found = {body_of_key(key) for key, _ in values(later, "records")}
        entries = [entry for _, entry in scan(later.access) if not isinstance(entry, str)]
        assert found == {entry.body for entry in [*entries, *_kept_patches(later)]}
        assert later.missing(kept) == []
        assert values(later, "touched") == []
        rows = values(later, "sketches")
        sketched = {key[1:] for key, _ in rows if len(key) == 1 + RAW_BYTES}
        assert sketched == {value for _, value in rows if len(value) == RAW_BYTES}
        assert sketched <= {to_raw(digest) for digest in later.digests()}


def _kept_patches(store: Store) -> list[Entry]:
    with store.access.env.reading() as txn:
        return [entry for _, entry in patches.every(store.access.env, txn) if entry is not None]


def _was_collecting(directory: Path) -> bool:
    """Whether the kill came in the middle of a collection."""
    with Store.open(directory) as store, store.access.env.reading() as txn:
        return collection_running(store.access.env, txn)


def soak(times: int, first_seed: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "store"
        kept: list[Digest] = []
        acknowledged = collecting = 0
        began = time.monotonic()
        for number in range(times):
            new = crash_once(directory, first_seed + number)
            collecting += _was_collecting(directory)
            kept += new
            acknowledged += len(new)
            verify(directory, kept)
            if number % 50 == 49:
                # A store that only grows would make each check slower than the one before.
                print(
                    f"{number + 1} kills, {collecting} of them while collecting, {acknowledged} blobs acknowledged, "
                    f"{time.monotonic() - began:.0f} s",
                    flush=True,
                )
                directory, kept = directory.with_name(f"store-{number}"), []
        print(f"{times} kills: every check clean, no acknowledged blob lost")


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        soak(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
