"""Successive versions of real programs in our store, beside git (with and without gc) and ostree, in the same run.

    python benchmarks/store.py CORPUS [--series oxc rolldown ruby] [--match '*wasi.wasm' ruby.wasm] [--json]

CORPUS holds SERIES/VERSION/FILE. Every version is added in order, by a process of its own measurements: time, peak
memory, bytes on disk; then the newest version of every series is read, by a fresh process each time for all.
Peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.delta_sizes import version_order

READS = 5
KIB = 1 << 10
MIB = 1 << 20

READ_OURS = """
import sys
from pathlib import Path
from cas.store import Store
with Store.open(Path(sys.argv[1]), create=False) as store:
    sys.stdout.buffer.write(store.read(store.history(sys.argv[2])[0]))
"""


@dataclass(frozen=True)
class Version:
    series: str
    path: Path


@dataclass
class Row:
    system: str
    add_s: float
    stored_bytes: int
    newest_read_s: float
    """Sum over the series of the median time in which a fresh process gives the newest version."""
    peak_mib: float | None


def versions_of(corpus: Path, series: list[str], match: list[str]) -> list[Version]:
    found = []
    for name in series:
        for directory in sorted((corpus / name).iterdir(), key=version_order):
            found += [Version(f"{name}/{path.name}", path) for glob in match for path in sorted(directory.glob(glob))]
    return found


def newest_of(versions: list[Version]) -> dict[str, Version]:
    return {version.series: version for version in versions}


def run(*command: str, cwd: Path | None = None, data: bytes | None = None) -> bytes:
    return subprocess.run(command, cwd=cwd, input=data, check=True, stdout=subprocess.PIPE).stdout


def directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def median_s(act: Callable[[], bytes], expected: Path) -> float:
    times = []
    for _ in range(READS):
        start = time.perf_counter()
        got = act()
        times.append(time.perf_counter() - start)
        assert got == expected.read_bytes()
    return statistics.median(times)


def add_ours(directory: Path, versions: list[Version]) -> tuple[float, int, float]:
    from cas.store import Store

    with Store.open(directory) as store:
        start = time.perf_counter()
        for version in versions:
            store.put(version.path.read_bytes(), name=version.series)
        elapsed = time.perf_counter() - start
        used = store.access.env.used_bytes()
    return elapsed, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB


def ours(scratch: Path, versions: list[Version]) -> Row:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elapsed, used, peak = pool.apply(add_ours, (scratch / "ours", versions))
    command = [sys.executable, "-c", READ_OURS, str(scratch / "ours")]
    read = sum(median_s(lambda c=[*command, s]: run(*c), v.path) for s, v in newest_of(versions).items())
    return Row("lowcloud", elapsed, used, read, peak)


def git(scratch: Path, versions: list[Version]) -> list[Row]:
    repository = scratch / "git"
    repository.mkdir()
    run("git", "init", "-q", cwd=repository)
    run("git", "config", "user.email", "bench@example.org", cwd=repository)
    run("git", "config", "user.name", "bench", cwd=repository)
    start = time.perf_counter()
    for version in versions:
        target = repository / version.series
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(version.path, target)
        run("git", "add", version.series, cwd=repository)
        run("git", "commit", "-q", "-m", version.path.parent.name, cwd=repository)
    add_s = time.perf_counter() - start
    rows = []
    for name in ("git", "git + gc"):
        if name == "git + gc":
            start = time.perf_counter()
            run("git", "gc", "-q", cwd=repository)
            add_s += time.perf_counter() - start
        read = sum(
            median_s(lambda s=s: run("git", "cat-file", "blob", f"HEAD:{s}", cwd=repository), v.path)
            for s, v in newest_of(versions).items()
        )
        rows.append(Row(name, add_s, directory_bytes(repository / ".git"), read, None))
    return rows


def ostree(scratch: Path, versions: list[Version]) -> Row:
    """A commit for each version and a static delta from the one before."""
    repository = scratch / "ostree"
    run("ostree", "init", "--mode=archive", f"--repo={repository}")
    start = time.perf_counter()
    last: dict[str, str] = {}
    for version in versions:
        tree = scratch / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        shutil.copyfile(version.path, tree / "file")
        branch = version.series.replace("/", "-")
        commit = run("ostree", f"--repo={repository}", "commit", f"--branch={branch}", str(tree)).decode().strip()
        if branch in last:
            command = ["static-delta", "generate", f"--from={last[branch]}", f"--to={commit}"]
            run("ostree", f"--repo={repository}", *command)
        last[branch] = commit
    add_s = time.perf_counter() - start
    read = sum(
        median_s(lambda s=s: run("ostree", f"--repo={repository}", "cat", s.replace("/", "-"), "/file"), v.path)
        for s, v in newest_of(versions).items()
    )
    return Row("ostree + static delta", add_s, directory_bytes(repository), read, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--series", nargs="+", default=["oxc", "rolldown", "ruby"])
    parser.add_argument("--match", nargs="+", default=["*wasi.wasm", "ruby.wasm"])
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    versions = versions_of(asked.corpus, asked.series, asked.match)
    raw = sum(version.path.stat().st_size for version in versions)
    largest = max(version.path.stat().st_size for version in versions)
    absent = [name for name in ("git", "ostree") if not shutil.which(name)]
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        rows = [ours(scratch, versions)]
        if not asked.only_ours:
            rows += git(scratch, versions) if "git" not in absent else []
            rows += [ostree(scratch, versions)] if "ostree" not in absent else []
    if asked.json:
        print(json.dumps({"raw_bytes": raw, "largest_bytes": largest, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{len(versions)} versions, {raw / MIB:.1f} MiB raw, the largest {largest / MIB:.1f} MiB; absent: {absent}")
    print(f"{'':24}{'add s':>8}{'stored MB':>11}{'read s':>8}{'peak MiB':>10}")
    for row in rows:
        peak = f"{row.peak_mib:.0f}" if row.peak_mib else ""
        print(f"{row.system:24}{row.add_s:8.1f}{row.stored_bytes / 1e6:11.2f}{row.newest_read_s:8.2f}{peak:>10}")


if __name__ == "__main__":
    main()
