"""Sizes and times of our deltas beside `zstd --patch-from -19` and bsdiff4, on the same pairs in the same run.

    python benchmarks/delta_sizes.py CORPUS [--series NAME ...] [--match GLOB] [--effort normal] [--runs 1] [--json]

CORPUS holds SERIES/VERSION/FILE; every two successive versions of a file are a pair. Versions are ordered by the
numbers in their names. Peers: the `zstd` command and the PyPI package `bsdiff4`; what is missing is left out and named.
Times are the median wall time of `--runs` runs, of the whole call (for the command: of the process).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import delta

MIB = 1 << 20


@dataclass(frozen=True)
class Pair:
    series: str
    name: str
    old: Path
    new: Path


@dataclass
class Row:
    series: str
    name: str
    new_bytes: int
    codec: str
    patch_bytes: int
    encode_s: float
    decode_s: float
    decode_mb_per_s: float
    zstd_bytes: int | None
    zstd_s: float | None
    bsdiff4_bytes: int | None
    bsdiff4_s: float | None


def version_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.\-_]|(?<=\d)(?=\D)", path.name)]


def pairs_of(corpus: Path, series: list[str], match: str) -> Iterator[Pair]:
    for directory in sorted(path for path in corpus.iterdir() if path.is_dir()):
        if series and directory.name not in series:
            continue
        versions = sorted((path for path in directory.iterdir() if path.is_dir()), key=version_order)
        for old, new in itertools.pairwise(versions):
            for file in sorted(new.glob(match)):
                if (old / file.name).is_file():
                    yield Pair(directory.name, f"{old.name} to {new.name} {file.name}", old / file.name, file)


def timed(runs: int, act: Callable[[], bytes]) -> tuple[bytes, float]:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = act()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


def zstd_patch(pair: Pair) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "patch"
        command = [
            "zstd",
            "-19",
            "--long=31",
            "-q",
            "--single-thread",
            f"--patch-from={pair.old}",
            str(pair.new),
            "-o",
            str(out),
        ]
        subprocess.run(command, check=True, capture_output=True)
        return out.read_bytes()


def bsdiff4_patch(base: bytes, target: bytes) -> bytes:
    return bytes(importlib.import_module("bsdiff4").diff(base, target))


def peers() -> set[str]:
    found = {"zstd"} if shutil.which("zstd") else set()
    return found | ({"bsdiff4"} if importlib.util.find_spec("bsdiff4") else set())


def measure(pair: Pair, effort: delta.Effort, runs: int, with_peers: set[str]) -> Row:
    base, target = pair.old.read_bytes(), pair.new.read_bytes()
    patch, encode_s = timed(runs, lambda: delta.encode(base, target, effort=effort))
    decoded, decode_s = timed(max(runs, 3), lambda: delta.decode(base, patch, max_size=len(target)))
    if decoded != target:
        raise SystemExit(f"{pair.name}: the patch does not rebuild the target")
    zstd_bytes = zstd_s = bsdiff4_bytes = bsdiff4_s = None
    if "zstd" in with_peers:
        peer, zstd_s = timed(runs, lambda: zstd_patch(pair))
        zstd_bytes = len(peer)
    if "bsdiff4" in with_peers:
        peer, bsdiff4_s = timed(runs, lambda: bsdiff4_patch(base, target))
        bsdiff4_bytes = len(peer)
    codec, speed = delta.inspect(patch).codec, len(target) / 1e6 / decode_s
    return Row(
        pair.series, pair.name, len(target), codec, len(patch), encode_s, decode_s, speed,
        zstd_bytes, zstd_s, bsdiff4_bytes, bsdiff4_s,
    )  # fmt: skip


def cell(value: float | None, width: int, digits: int = 0) -> str:
    return f"{'-' if value is None else f'{value:.{digits}f}':>{width}}"


def print_row(row: Row) -> None:
    print(
        f"{row.series:<10} {row.name[:52]:<52} {row.codec:<12}"
        f"{cell(row.patch_bytes, 9)}{cell(row.zstd_bytes, 9)}{cell(row.bsdiff4_bytes, 9)} "
        f"{cell(row.encode_s, 7, 2)}{cell(row.zstd_s, 7, 2)}{cell(row.bsdiff4_s, 7, 2)}{cell(row.decode_mb_per_s, 7)}",
        flush=True,
    )


def total(rows: list[Row], field: str) -> float | None:
    values = [getattr(row, field) for row in rows]
    return None if any(value is None for value in values) else sum(values)


def print_sums(rows: list[Row]) -> None:
    names = ("new MB", "ours K", "zstd K", "bsdiff K", "ours s", "bsdiff s")
    print(f"\n{'series':<12}{'pairs':>6}" + "".join(f"{name:>9}" for name in names))
    for series in dict.fromkeys(row.series for row in rows):
        some = [row for row in rows if row.series == series]
        sizes = [total(some, field) for field in ("patch_bytes", "zstd_bytes", "bsdiff4_bytes")]
        in_k = "".join(cell(None if size is None else size / 1000, 9) for size in sizes)
        times = "".join(cell(total(some, field), 9, 1) for field in ("encode_s", "bsdiff4_s"))
        print(f"{series:<12}{len(some):>6}{(total(some, 'new_bytes') or 0) / 1e6:>9.1f}{in_k}{times}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Sizes and times of deltas, beside zstd and bsdiff4.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--series", action="append", default=[])
    parser.add_argument("--match", default="*")
    parser.add_argument("--effort", choices=["fast", "normal", "best"], default="normal")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with_peers = peers()
    rows = []
    if not options.json:
        print("left out:", ", ".join(sorted({"zstd", "bsdiff4"} - with_peers)) or "nothing")
        sizes = "".join(f"{name:>9}" for name in ("ours", "zstd-19", "bsdiff4"))
        times = "".join(f"{name:>7}" for name in ("enc s", "zstd s", "bsd s", "MB/s"))
        print(f"{'series':<10} {'pair':<52} {'codec':<12}{sizes} {times}")
    for pair in pairs_of(options.corpus, options.series, options.match):
        row = measure(pair, options.effort, options.runs, with_peers)
        rows.append(row)
        if not options.json:
            print_row(row)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif rows:
        print_sums(rows)


if __name__ == "__main__":
    main()
