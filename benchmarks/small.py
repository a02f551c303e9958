"""Many small blobs: our store beside SQLite (WAL, synchronous NORMAL), in the same run.

    python -m benchmarks.small [--blobs 1000000] [--lookups 200000] [--json]

Blobs of 200 to 2000 random bytes, keyed by their digest. Both hash every blob, and insert in groups of the same size in
one durable step each (SQLite: a transaction of `executemany`, `WITHOUT ROWID` off, as this is its faster form); both
look the same digests up in the same random order and compare what they read with its name. `check` asks which of a
list of digests are missing.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from blake3 import blake3

from cas.digest import digest_of, from_raw
from cas.store import Store

GROUP = 10_000
SMALLEST, LARGEST = 200, 2000


@dataclass
class Row:
    system: str
    insert_per_s: float
    lookup_per_s: float
    one_by_one_per_s: float
    missing_per_s: float
    disk_over_payload: float


def blobs(count: int) -> Iterator[bytes]:
    source = random.Random(1)
    noise = source.randbytes(1 << 20)
    for number in range(count):
        size = source.randrange(SMALLEST, LARGEST)
        start = source.randrange(len(noise) - size)
        yield number.to_bytes(8, "little") + noise[start + 8 : start + size]


def grouped(items: Iterator[bytes]) -> Iterator[list[bytes]]:
    while group := list(islice(items, GROUP)):
        yield group


def wanted_of(count: int, lookups: int) -> list[bytes]:
    source = random.Random(2)
    chosen = set(source.sample(range(count), min(lookups, count)))
    wanted = [blake3(data).digest() for number, data in enumerate(blobs(count)) if number in chosen]
    source.shuffle(wanted)
    return wanted


class Timer:
    """Seconds spent inside `with`, over several times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start


def ours(directory: Path, count: int, wanted: list[bytes]) -> Row:
    insert, lookup, single, missing = Timer(), Timer(), Timer(), Timer()
    payload = 0
    digests = [from_raw(raw) for raw in wanted]
    with Store.open(directory / "ours") as store:
        for group in grouped(blobs(count)):
            payload += sum(map(len, group))
            with insert:
                store.put_many(group)
        with lookup:
            for digest, data in store.read_many(digests):
                assert digest and data
        with single:
            for digest in digests[: len(digests) // 4]:
                store.read(digest)
        absent = [digest_of(b"absent %d" % number) for number in range(len(digests))]
        with missing:
            assert len(store.missing(digests + absent)) == len(absent)
        used = store.access.env.used_bytes()
    found = len(digests)
    return Row(
        "lowcloud",
        count / insert.seconds,
        found / lookup.seconds,
        found // 4 / single.seconds,
        2 * found / missing.seconds,
        used / payload,
    )


def sqlite(directory: Path, count: int, wanted: list[bytes]) -> Row:
    insert, lookup, missing = Timer(), Timer(), Timer()
    payload = 0
    path = directory / "sqlite.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE blobs (digest BLOB PRIMARY KEY, data BLOB)")
    for group in grouped(blobs(count)):
        payload += sum(map(len, group))
        with insert:
            rows = [(blake3(data).digest(), data) for data in group]
            database.execute("BEGIN")
            database.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", rows)
            database.execute("COMMIT")
    query = "SELECT data FROM blobs WHERE digest = ?"
    with lookup:
        for raw in wanted:
            data = database.execute(query, (raw,)).fetchone()[0]
            assert blake3(data).digest() == raw
    absent = [blake3(b"absent %d" % number).digest() for number in range(len(wanted))]
    there = "SELECT 1 FROM blobs WHERE digest = ?"
    with missing:
        found = [raw for raw in sorted(wanted + absent) if database.execute(there, (raw,)).fetchone() is None]
    assert len(found) == len(absent)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    per_s = len(wanted) / lookup.seconds
    size = path.stat().st_size
    return Row("sqlite", count / insert.seconds, per_s, per_s, 2 * len(wanted) / missing.seconds, size / payload)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blobs", type=int, default=1_000_000)
    parser.add_argument("--lookups", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    wanted = wanted_of(asked.blobs, asked.lookups)
    with tempfile.TemporaryDirectory() as directory:
        rows = [ours(Path(directory), asked.blobs, wanted), sqlite(Path(directory), asked.blobs, wanted)]
    if asked.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'':10}{'insert/s':>10}{'lookup/s':>10}{'one by one':>12}{'missing/s':>11}{'disk/payload':>14}")
    for row in rows:
        print(
            f"{row.system:10}{row.insert_per_s:10.0f}{row.lookup_per_s:10.0f}{row.one_by_one_per_s:12.0f}"
            f"{row.missing_per_s:11.0f}{row.disk_over_payload:14.2f}"
        )


if __name__ == "__main__":
    main()
