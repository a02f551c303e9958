"""What a command cost: CPU time and peak memory of the process and all that it started, and wall time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KIB = 1 << 10


@dataclass(frozen=True)
class Cost:
    """Of several commands: times add up, the peak is the largest."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_s + other.cpu_s, self.wall_s + other.wall_s, max(self.peak_bytes, other.peak_bytes))


def measured(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    out: Path | None = None,
    given: Path | None = None,
    env: dict[str, str] | None = None,
) -> Cost:
    """Run a command, its output into the file `out`. Raises CalledProcessError. The caller must be small itself: before
    its `exec` a child counts as large as its parent."""
    with Path(out or os.devnull).open("wb") as sink, Path(given or os.devnull).open("rb") as source:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            stdin=source,
            stdout=sink,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Cost(used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss * KIB)
