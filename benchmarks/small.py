"""Many small blobs: our store beside SQLite (WAL, synchronous NORMAL).

    python -m benchmarks.small [--blobs 1000000] [--lookups 200000] [--only SYSTEM ...] [--json]

Blobs of 200 to 2000 bytes of noise, named by their BLAKE3. Each system runs in a fresh process and is given the same
lists of blobs; all hash every blob once and write in transactions of the same size. SQLite is measured with the digest
as primary key of a rowid table and of a WITHOUT ROWID table, and reading one by one and by `IN` with many digests: its
best figure is the one to compare with. All look the same digests up in the same random order.

What is not the same: our transactions are synced to disk before they are acknowledged, while SQLite's in this mode may
be lost in a power cut; and we compare what is read with its name, which SQLite does not, so it is measured both ways.
Rates are per second of CPU time (user and system, all threads) and of wall time, in which our hashing and the disk's
work overlap.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from blake3 import blake3

GROUP = 16_384
"""Blobs in a transaction."""
CALL = 5 * GROUP
"""Blobs in one call of `put_many`."""
MANY = 512
"""Digests in one SQLite query of many."""
SMALLEST, LARGEST = 200, 2000


@dataclass
class Timer:
    """Seconds spent inside `with`, over several times."""

    cpu_s: float = 0.0
    wall_s: float = 0.0

    def __enter__(self) -> None:
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.cpu_s += time.process_time() - self._cpu_s
        self.wall_s += time.perf_counter() - self._wall_s


@dataclass
class Row:
    system: str
    disk_over_payload: float
    cpu_us: dict[str, float] = field(default_factory=dict)
    """By what was done: microseconds for each blob."""
    wall_us: dict[str, float] = field(default_factory=dict)

    def note(self, what: str, timer: Timer, blobs: int) -> None:
        self.cpu_us[what] = timer.cpu_s / blobs * 1e6
        self.wall_us[what] = timer.wall_s / blobs * 1e6


def blobs(count: int) -> Iterator[bytes]:
    source = random.Random(1)
    noise = source.randbytes(1 << 20)
    for number in range(count):
        size = source.randrange(SMALLEST, LARGEST)
        start = source.randrange(len(noise) - size)
        yield number.to_bytes(8, "little") + noise[start + 8 : start + size]


def parts(items: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while part := list(islice(items, size)):
        yield part


def wanted_of(count: int, lookups: int) -> list[bytes]:
    source = random.Random(2)
    chosen = set(source.sample(range(count), min(lookups, count)))
    wanted = [blake3(data).digest() for number, data in enumerate(blobs(count)) if number in chosen]
    source.shuffle(wanted)
    return wanted


def absent_of(lookups: int) -> list[bytes]:
    return [blake3(b"absent %d" % number).digest() for number in range(lookups)]


def ours(directory: Path, count: int, lookups: int) -> Row:
    from cas.digest import from_raw
    from cas.store import Store

    insert, many, single, missing = Timer(), Timer(), Timer(), Timer()
    payload = 0
    with Store.open(directory / "store") as store:
        for part in parts(blobs(count), CALL):
            payload += sum(map(len, part))
            with insert:
                store.put_many(part)
        row = Row("lowcloud", store.access.env.file_bytes() / payload)
        digests = [from_raw(raw) for raw in wanted_of(count, lookups)]
        absent = [from_raw(raw) for raw in absent_of(lookups)]
        with many:
            for digest, data in store.read_many(digests):
                assert digest and data
        with single:
            for digest in digests[: lookups // 4]:
                store.read(digest)
        with missing:
            assert len(store.missing(digests + absent)) == lookups
    row.note("insert", insert, count)
    row.note("read many, verified", many, lookups)
    row.note("read one by one, verified", single, lookups // 4)
    row.note("missing", missing, 2 * lookups)
    return row


def sqlite(directory: Path, count: int, lookups: int, *, suffix: str) -> Row:
    path = directory / "sqlite.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute(f"CREATE TABLE blobs (digest BLOB PRIMARY KEY, data BLOB) {suffix}")
    insert, missing = Timer(), Timer()
    payload = 0
    for part in parts(blobs(count), CALL):
        payload += sum(map(len, part))
        with insert:
            for start in range(0, len(part), GROUP):
                rows = sorted((blake3(data).digest(), data) for data in part[start : start + GROUP])
                database.execute("BEGIN")
                database.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", rows)
                database.execute("COMMIT")
    wanted, absent = wanted_of(count, lookups), absent_of(lookups)
    there = "SELECT 1 FROM blobs WHERE digest = ?"
    with missing:
        lacking = [raw for raw in sorted(wanted + absent) if database.execute(there, (raw,)).fetchone() is None]
    assert len(lacking) == lookups
    lookup_timers = {
        f"read {how}{verified}": _timed(act, database, wanted, bool(verified))
        for how, act in (("one by one", _read_singly), ("many", _read_many))
        for verified in ("", ", verified")
    }
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    row = Row(f"sqlite {suffix}".strip().lower(), path.stat().st_size / payload)
    row.note("insert", insert, count)
    row.note("missing", missing, 2 * lookups)
    for what, timer in lookup_timers.items():
        row.note(what, timer, lookups)
    return row


def _timed(
    act: Callable[[sqlite3.Connection, list[bytes]], Iterator[tuple[bytes, bytes]]],
    database: sqlite3.Connection,
    wanted: list[bytes],
    verified: bool,
) -> Timer:
    timer = Timer()
    with timer:
        for raw, data in act(database, wanted):
            if verified:
                assert blake3(data).digest() == raw
    return timer


def _read_singly(database: sqlite3.Connection, wanted: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    query = "SELECT data FROM blobs WHERE digest = ?"
    for raw in wanted:
        yield raw, database.execute(query, (raw,)).fetchone()[0]


def _read_many(database: sqlite3.Connection, wanted: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(wanted), MANY):
        group = wanted[start : start + MANY]
        query = f"SELECT digest, data FROM blobs WHERE digest IN ({','.join('?' * len(group))})"
        yield from database.execute(query, group)


def sqlite_rowid(directory: Path, count: int, lookups: int) -> Row:
    return sqlite(directory, count, lookups, suffix="")


def sqlite_without_rowid(directory: Path, count: int, lookups: int) -> Row:
    return sqlite(directory, count, lookups, suffix="WITHOUT ROWID")


SYSTEMS = {"lowcloud": ours, "sqlite": sqlite_rowid, "sqlite-without-rowid": sqlite_without_rowid}


def in_fresh_process(system: str, count: int, lookups: int) -> Row:
    with tempfile.TemporaryDirectory() as directory, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(SYSTEMS[system], (Path(directory), count, lookups))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blobs", type=int, default=1_000_000)
    parser.add_argument("--lookups", type=int, default=200_000)
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = [in_fresh_process(system, asked.blobs, asked.lookups) for system in asked.only]
    if asked.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    for row in rows:
        print(f"{row.system}: {row.disk_over_payload:.2f} of the payload on disk")
        for what, cpu_us in row.cpu_us.items():
            print(f"    {what:28}{cpu_us:8.2f} us CPU{row.wall_us[what]:8.2f} us wall")


if __name__ == "__main__":
    main()
