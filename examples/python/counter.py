"""Counts, and goes on counting where it left off: its count is in a file on its volume."""

import argparse
import os
import sys
import time
from pathlib import Path

COUNT = Path("/data/count")


def read() -> int:
    try:
        return int(COUNT.read_text())
    except FileNotFoundError:
        return 0


def write(count: int) -> None:
    """In one step, so that a stop at any moment leaves the old or the new count."""
    beside = COUNT.with_suffix(".new")
    with beside.open("w") as file:
        file.write(str(count))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(COUNT)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--times", type=int, default=0, metavar="N", help="then end; 0: never")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]} on {sys.platform}, from {read()}")
    count = 0
    while not options.times or count < options.times:
        if count:
            time.sleep(options.every)
        count += 1
        write(read() + 1)
        print(f"count {read()}")


if __name__ == "__main__":
    main()
