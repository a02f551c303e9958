"""The journey at any size, by hand: `python -m tests.fleet --agents 20 --definitions 50 --seed 1`."""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.fleet import outside
from tests.fleet.fleet import Fleet
from tests.fleet.journey import Journey


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--definitions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the directory when something is wrong")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fleet-"))
    root.chmod(0o711)
    fleet = Fleet(root, args.agents)
    began = time.monotonic()
    done = False
    try:
        fleet.start()
        print(f"{args.agents} agents run after {time.monotonic() - began:.0f} s, in {root}", flush=True)
        told = Journey(
            fleet, args.seed, lambda line: print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)
        ).go(args.definitions)
        done = True
    finally:
        fleet.end()
        if done or not args.keep:
            outside.check_gone(fleet)
            shutil.rmtree(root)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{told.definitions} definitions, {told.applies} applies, {told.calls} calls, exit codes {dict(told.codes)}, "
        f"troubles {dict(told.troubles)}, {told.checks} checks from outside, {told.kept} processes kept; "
        f"{time.monotonic() - began:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of CPU"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
