"""Fuzzing of the delta decoder by hand, for as long as one likes; the test suite runs the outside one briefly.

    python -m tests.fuzz outside [--seconds 600] [--seed 1]
    python -m tests.fuzz inside [--seconds 3600] [--directory DIR] [--input FILE]

`outside` (outside.py) goes through `delta.decode` as a hostile peer would, guided by what the kernel executes in its
sandbox. `inside` (inside.py, inside.c) runs the kernel natively under libFuzzer and sanitizers; inputs found earlier in
DIR are used again, and `--input` repeats a single one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the delta decoder.")
    ways = parser.add_subparsers(dest="way", required=True)
    outside = ways.add_parser("outside")
    outside.add_argument("--seconds", type=int, default=600)
    outside.add_argument("--seed", type=int, default=1)
    inside = ways.add_parser("inside")
    inside.add_argument("--seconds", type=int, default=3600)
    inside.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "lowcloud-fuzz")
    inside.add_argument("--input", type=Path)
    options = parser.parse_args()
    if options.way == "inside":
        from tests.fuzz.inside import run

        return run(options.directory, options.seconds, one_input=options.input)
    from tests.fuzz.outside import fuzz_for

    print(fuzz_for(options.seconds, seed=options.seed).summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
