"""Snapshots of a volume beside what else backs a directory up: tar with zstd, restic and borg, on the same directory.

    python -m benchmarks.snapshot [--files 10000] [--database-mib 1024] [--only SYSTEM ...] [--json]

Two volumes: many small files of text, of which then 100 change, 50 come and 20 go; and one large file of 4 KiB pages,
of which then 300 change, all over it. Each system keeps the volume three times: as it is at first, after the changes,
and once more with nothing changed. Ours runs as on a host (`agent.daemon.snapshots.worker`), with a process that is
held while it looks, and every blob is synced to disk; restic and borg encrypt, as they must.

Bytes are what the place has more afterwards, processor time is of all processes of the command. `paused ms` is how long
the process was held in each round, and in one more in which it writes a page each millisecond, anywhere in the volume:
the others read while the volume changes under them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from agent.daemon.snapshots.worker import Place, Take, Verdict
from benchmarks.measure import Cost, measured

WORDS = [f"word{n}" for n in range(2000)]
PAGE_BYTES = 4096
ROOM_BYTES = 1 << 40
ROUNDS = ("first", "changed", "unchanged")
BUSY = "busy"
WRITING = threading.Event()
WRITES = """
import pathlib, random, sys, time
files = sorted(path for path in pathlib.Path(sys.argv[1]).rglob("*") if path.is_file())
while True:
    if sys.argv[2] == "1":
        path = random.choice(files)
        with path.open("r+b") as file:
            file.seek(random.randrange(max(1, path.stat().st_size // 4096)) * 4096)
            file.write(random.randbytes(1024))
    time.sleep(0.001)
"""


@dataclass
class Row:
    volume: str
    system: str
    cpu_s: dict[str, float] = field(default_factory=dict)
    wall_s: dict[str, float] = field(default_factory=dict)
    stored_bytes: dict[str, int] = field(default_factory=dict)
    paused_ms: dict[str, float] = field(default_factory=dict)


# --- the volumes ----------------------------------------------------------------------------------------------------


class Files:
    """Many small files."""

    def __init__(self, root: Path, count: int) -> None:
        self._root = root
        self._chance = random.Random(1)
        for number in range(count):
            self._write(number)
        self._count = count

    def change(self) -> None:
        for number in self._chance.sample(range(self._count), 100):
            self._write(number)
        for number in range(self._count, self._count + 50):
            self._write(number)
        for number in self._chance.sample(range(self._count), 20):
            self._path(number).unlink()

    def _path(self, number: int) -> Path:
        return self._root / f"{number % 100:02}" / f"{number:06}.txt"

    def _write(self, number: int) -> None:
        path = self._path(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(self._chance.choices(WORDS, k=self._chance.randrange(100, 1500))))


class Database:
    """One file of pages, half of each noise."""

    def __init__(self, root: Path, mib: int) -> None:
        self._path = root / "data.db"
        self._chance = random.Random(2)
        self._pages = mib * (1 << 20) // PAGE_BYTES
        with self._path.open("wb") as file:
            for _ in range(self._pages):
                file.write(self._page())

    def change(self) -> None:
        with self._path.open("r+b") as file:
            for number in self._chance.sample(range(self._pages), 300):
                file.seek(number * PAGE_BYTES)
                file.write(self._page())

    def _page(self) -> bytes:
        text = " ".join(self._chance.choices(WORDS, k=300)).encode()[: PAGE_BYTES // 2]
        return text + self._chance.randbytes(PAGE_BYTES - len(text))


# --- the systems ----------------------------------------------------------------------------------------------------

System = Callable[[Path, Path], Iterator[tuple[Cost, float]]]
"""Given a volume and a place of its own: each time it is asked, it keeps the volume once more, and tells the cost and
for how many seconds a process was held."""


def ours(volume: Path, place: Path) -> Iterator[tuple[Cost, float]]:
    (place / "work").mkdir()
    while True:
        with held_process(volume) as pid:
            order = Take(
                place=Place(str(place / "store"), None, str(place / "work"), str(volume)),
                memory=str(place / "seen"),
                pid=pid,
                max_pause_s=60.0,
                volume="data",
                host="here",
                size_bytes=ROOM_BYTES,
                by="",
                message="",
            )
            (place / "order").write_bytes(msgspec.json.encode(order))
            worker = [sys.executable, "-P", "-m", "agent.daemon.snapshots.worker", str(os.getpid())]
            path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
            cost = measured(worker, given=place / "order", out=place / "verdict", env=path)
        verdict = msgspec.json.decode((place / "verdict").read_bytes(), type=Verdict)
        if verdict.done is None:
            raise SystemExit(f"the snapshot failed: {verdict.failed}")
        yield cost, verdict.done.paused_s


@contextmanager
def held_process(volume: Path) -> Iterator[int]:
    """A process that has the volume, and writes to it where WRITING says so."""
    with subprocess.Popen([sys.executable, "-c", WRITES, volume, str(int(WRITING.is_set()))]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def tar_zstd(volume: Path, place: Path) -> Iterator[tuple[Cost, float]]:
    number = 0
    while True:
        number += 1
        command = f"tar -C {volume} -cf - . | zstd -q -3 -T1 -o {place}/{number}.tar.zst"
        yield measured(["sh", "-c", command]), 0.0


def restic(volume: Path, place: Path) -> Iterator[tuple[Cost, float]]:
    env = {
        "RESTIC_REPOSITORY": str(place / "repository"),
        "RESTIC_PASSWORD": "x",
        "RESTIC_CACHE_DIR": str(place.parent),
    }
    measured(["restic", "init"], env=env)
    while True:
        yield measured(["restic", "backup", "-q", "."], cwd=volume, env=env), 0.0


def borg(volume: Path, place: Path) -> Iterator[tuple[Cost, float]]:
    env = {"BORG_REPO": str(place / "repository"), "BORG_PASSPHRASE": "x", "BORG_BASE_DIR": str(place.parent / "borg")}
    measured(["borg", "init", "-e", "repokey"], env=env)
    number = 0
    while True:
        number += 1
        yield measured(["borg", "create", "-C", "zstd,3", f"::{number}", "."], cwd=volume, env=env), 0.0


SYSTEMS: dict[str, System] = {"lowcloud": ours, "tar | zstd -3": tar_zstd, "restic": restic, "borg, zstd 3": borg}


def available(system: str) -> bool:
    return system == "lowcloud" or shutil.which(system.split()[0].rstrip(",")) is not None


# --- the runs -------------------------------------------------------------------------------------------------------


def run(name: str, make: Callable[[Path], Files | Database], systems: list[str], work: Path) -> list[Row]:
    """Every system keeps the same volume in turn, in each round."""
    volume = work / name
    volume.mkdir()
    source = make(volume)
    rows = {system: Row(name, system) for system in systems}
    places = {system: work / f"{name}-{number}" / "place" for number, system in enumerate(systems)}
    for place in places.values():
        place.mkdir(parents=True)
    keeping = {system: SYSTEMS[system](volume, places[system]) for system in systems}
    for round_name in ROUNDS:
        if round_name == "changed":
            source.change()
        for system in systems:
            before = size_of(places[system])
            cost, paused_s = next(keeping[system])
            row = rows[system]
            row.cpu_s[round_name] = cost.cpu_s
            row.wall_s[round_name] = cost.wall_s
            row.stored_bytes[round_name] = size_of(places[system]) - before
            row.paused_ms[round_name] = paused_s * 1000
    if "lowcloud" in systems:
        WRITING.set()
        rows["lowcloud"].paused_ms[BUSY] = next(keeping["lowcloud"])[1] * 1000
        WRITING.clear()
    return list(rows.values())


def size_of(place: Path) -> int:
    """Bytes that a place holds: of our own store what it uses of its file, not the file, which grows in steps."""
    store = place / "store"
    used = 0
    if store.exists():
        from cas.store import Store

        with Store.open(store) as opened:
            used = opened.usage().stored_bytes
    files = (path for path in place.rglob("*") if path.is_file() and store not in path.parents)
    return used + sum(path.stat().st_size for path in files)


def show(rows: list[Row]) -> None:
    head = " ".join(f"{name + ' KB':>14}{'CPU s':>8}" for name in ROUNDS)
    print(f"{'volume':10}{'system':16}{head}  paused ms")
    for row in rows:
        cells = " ".join(f"{row.stored_bytes[name] / 1000:>14.1f}{row.cpu_s[name]:>8.2f}" for name in ROUNDS)
        paused = ", ".join(f"{ms:.0f}" for ms in row.paused_ms.values()) if BUSY in row.paused_ms else "-"
        print(f"{row.volume:10}{row.system:16}{cells}  {paused}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Snapshots beside other backups of the same directory.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--database-mib", type=int, default=1024)
    parser.add_argument("--only", nargs="*", choices=sorted(SYSTEMS), help="these systems alone")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    systems = [name for name in args.only or SYSTEMS if available(name)]
    with tempfile.TemporaryDirectory(prefix="snapshot-") as directory:
        work = Path(directory)
        rows = run("files", lambda root: Files(root, args.files), systems, work)
        rows += run("database", lambda root: Database(root, args.database_mib), systems, work)
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        show(rows)


if __name__ == "__main__":
    main()
