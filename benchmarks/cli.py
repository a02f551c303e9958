"""How fast the command starts, against a bare interpreter of the same machine in the same run.

    python benchmarks/cli.py [--runs 40] [--json FILE]

Each round starts every command once, in turn, so that a slow moment of the machine meets all of them; medians and their
ratios are printed. Reach: `--version` within 3, `history` within 4 times the bare interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REACH = {"--version": 3.0, "history": 4.0}
RELEASES = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cloud = Path(directory)
        _make_cloud(cloud)
        (cloud / "file").write_bytes(b"a small file")
        times = measure(_commands(), cloud, args.runs)
    bare = times["bare interpreter"]
    ratios = {name: ms / bare for name, ms in times.items()}
    for name, ms in times.items():
        reach = f"  (reach {REACH[name]})" if name in REACH else ""
        print(f"{name:<20} {ms:>8.2f} ms  {ratios[name]:>6.2f}{reach}")
    if args.json:
        rows = {name: {"ms": ms, "ratio": ratios[name], "reach": REACH.get(name)} for name, ms in times.items()}
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(ratios[name] <= reach for name, reach in REACH.items()) else 1


def measure(commands: dict[str, list[str]], cwd: Path, runs: int) -> dict[str, float]:
    """Median milliseconds of each command, with its modules compiled as those of an installed package are."""
    samples: dict[str, list[float]] = {name: [] for name in commands}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(cwd / "pycache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(runs):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=cwd, env=environment, check=True, stdout=subprocess.DEVNULL)
            samples[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(values) for name, values in samples.items()}


def _commands() -> dict[str, list[str]]:
    start = [sys.executable, "-P", "-c", "import sys; from tools.main import main; sys.exit(main())"]
    verbs: dict[str, list[str]] = {word: [*start, word] for word in ("--version", "--help", "history")}
    verbs["push"] = [*start, "push", "file"]
    return {"bare interpreter": [sys.executable, "-P", "-c", "pass"], **verbs}


def _make_cloud(directory: Path) -> None:
    """A cloud with a history."""
    sys.path.insert(0, str(ROOT))
    from deployer.cloud.cloud import Cloud
    from deployer.history import release

    with Cloud.create(directory) as cloud:
        parent = None
        definition = cloud.store.put(b"{}").digest
        for number in range(RELEASES):
            made = release.Release(
                definition=definition,
                plan=definition,
                parent=parent,
                at_unix_ns=1_800_000_000_000_000_000 + number,
                by="operator:bench",
                message=f"release {number}",
            )
            parent = release.publish(cloud.store, cloud.ref, made).digest


if __name__ == "__main__":
    sys.exit(main())
