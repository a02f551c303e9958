"""Successive versions of real programs in our store, beside what else keeps versions of files.

    python -m benchmarks.store CORPUS [--only lowcloud ...] [--kept FILE] [--plot FILE.svg]
                                      [--series oxc rolldown ruby] [--match '*wasi.wasm' ruby.wasm]

CORPUS holds SERIES/VERSION/FILE. Every version is added in order, each by a fresh process; then the newest version of
every series is read by a fresh process, five times. Times are of the commands alone: user and system time, and wall
time. Peers that are not installed are left out and named.

`--kept` is a JSON file of rows: what is measured replaces the rows of the same systems in it, and the table shows all,
so that peers, which do not change, need not run every time.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.corpus import version_order
from benchmarks.measure import Cost
from benchmarks.peers import SYSTEMS, Peer, directory_bytes

READS = 5


@dataclass(frozen=True)
class Version:
    series: str
    path: Path


@dataclass
class Row:
    system: str
    stored_bytes: int
    add_cpu_s: float
    add_wall_s: float
    read_cpu_s: float
    """Sum over the series of the median in which a fresh process gives the newest version."""
    read_wall_s: float
    next_bytes: dict[str, int]
    """By series: what takes the last version but one to the last."""
    peak_over_largest: float
    """Peak memory of the largest process that adds or reads, by the size of the largest blob."""


def versions_of(corpus: Path, series: list[str], match: list[str]) -> list[Version]:
    return [
        Version(name, path)
        for name in series
        for directory in sorted((corpus / name).iterdir(), key=version_order)
        for glob in match
        for path in sorted(directory.glob(glob))
    ]


def measure(peer: Peer, versions: list[Version], scratch: Path) -> Row:
    added = Cost()
    next_bytes: dict[str, int] = {}
    newest: dict[str, Path] = {}
    for version in versions:
        cost, next_bytes[version.series] = peer.add(version.series, version.path)
        added += cost
        newest[version.series] = version.path
    added += peer.finish()
    reads = {series: _reads(peer, series, path, scratch) for series, path in newest.items()}
    largest = max(version.path.stat().st_size for version in versions)
    every = [cost for costs in reads.values() for cost in costs]
    return Row(
        peer.name,
        directory_bytes(peer.directory),
        added.cpu_s,
        added.wall_s,
        sum(statistics.median(cost.cpu_s for cost in costs) for costs in reads.values()),
        sum(statistics.median(cost.wall_s for cost in costs) for costs in reads.values()),
        next_bytes,
        max(cost.peak_bytes for cost in [added, *every]) / largest,
    )


def _reads(peer: Peer, series: str, expected: Path, scratch: Path) -> list[Cost]:
    costs = []
    out = scratch / "read"
    for _ in range(READS):
        costs.append(peer.read(series, out))
        if not filecmp.cmp(out, expected, shallow=False):
            raise SystemExit(f"{peer.name} gave back other bytes of {series}")
        out.unlink()
    return costs


def table(rows: list[Row]) -> str:
    series = list(rows[0].next_bytes)
    lines = [
        f"| | stored MB | add, CPU s | wall s | read newest, CPU ms | wall ms | n-1 to n, KB ({' / '.join(series)}) "
        "| peak / largest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        steps = " / ".join(f"{row.next_bytes[name] / 1e3:.0f}" for name in series)
        lines.append(
            f"| {row.system} | {row.stored_bytes / 1e6:.1f} | {row.add_cpu_s:.1f} | {row.add_wall_s:.1f} "
            f"| {row.read_cpu_s * 1e3:.0f} | {row.read_wall_s * 1e3:.0f} | {steps} | {row.peak_over_largest:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row]) -> str:
    from benchmarks.store_plot import Panel, draw  # Late: what measures must be small itself.

    git = next((row for row in rows if row.system == "git + gc"), None)
    return draw(
        [
            Panel(
                "Stored, MB",
                {row.system: row.stored_bytes / 1e6 for row in rows},
                ("half of git + gc", git.stored_bytes / 2e6) if git else None,
            ),
            Panel(
                "From the last version but one to the last, KB",
                {r.system: sum(r.next_bytes.values()) / 1e3 for r in rows},
            ),
            Panel("Adding all, seconds of CPU", {row.system: row.add_cpu_s for row in rows}),
            Panel(
                "Reading the newest of each, ms of CPU",
                {row.system: row.read_cpu_s * 1e3 for row in rows},
                ("twice git + gc", 2e3 * git.read_cpu_s) if git else None,
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--only", nargs="+", choices=[system.name for system in SYSTEMS])
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--series", nargs="+", default=["oxc", "rolldown", "ruby"])
    parser.add_argument("--match", nargs="+", default=["*wasi.wasm", "ruby.wasm"])
    asked = parser.parse_args()
    versions = versions_of(asked.corpus, asked.series, asked.match)
    sizes = [version.path.stat().st_size for version in versions]
    print(f"{len(versions)} versions, {sum(sizes) / 1e6:.1f} MB raw, the largest {max(sizes) / 1e6:.1f} MB")
    kept = json.loads(asked.kept.read_text()) if asked.kept and asked.kept.exists() else {}
    for system in SYSTEMS:
        if asked.only and system.name not in asked.only:
            continue
        if not shutil.which(system.needs):
            print(f"not installed: {system.needs}")
            continue
        with tempfile.TemporaryDirectory() as directory:
            kept[system.name] = asdict(measure(system(Path(directory)), versions, Path(directory)))
        if asked.kept:
            asked.kept.write_text(json.dumps(kept, indent=1))
    rows = [Row(**kept[system.name]) for system in SYSTEMS if system.name in kept]
    print(table(rows))
    if asked.plot:
        asked.plot.write_text(plot(rows))


if __name__ == "__main__":
    main()
