"""Running the real command, as its users do: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 120.0


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error object that --json puts on stderr (its last line)."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return found


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "tools.main", *map(str, words)]


def environment(**variables: str) -> dict[str, str]:
    """Without what the caller's own cloud would bring in; this checkout is the one that is run."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOWCLOUD_")}
    return {**inherited, "PYTHONPATH": str(ROOT), **variables}


def lowcloud(
    *words: str | Path, cwd: Path | None = None, stdin: bytes = b"", timeout_s: float = TIMEOUT_S, **variables: str
) -> Result:
    """Run one command to its end. It never shows a traceback, whatever is done to it."""
    done = subprocess.run(
        command(*words), cwd=cwd, env=environment(**variables), input=stdin, capture_output=True, timeout=timeout_s
    )
    result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in result.err + result.out, result.err
    return result


def succeed(*words: str | Path, cwd: Path | None = None, stdin: bytes = b"", timeout_s: float = TIMEOUT_S) -> Result:
    result = lowcloud(*words, cwd=cwd, stdin=stdin, timeout_s=timeout_s)
    assert result.code == 0, f"{' '.join(map(str, words))}: {result.code}\n{result.out}\n{result.err}"
    return result
