"""What was measured, one JSON object a line, so that a long benchmark can be continued and a part of it done again.

A result belongs to a tool of a certain version and to a pair of files by their digests: nothing else decides whether it
can stand for a new measurement. A later line replaces an earlier one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock


@dataclass(frozen=True)
class Result:
    tool: str
    version: str
    base: str
    """Digest of the file, as `target`."""
    target: str
    run: str
    """When the run began that measured this, in UTC."""
    total_bytes: int
    """Base and target together."""
    patch_bytes: int
    encode_s: float
    decode_s: float
    start_s: float
    start_bytes: int | None
    encode_peak_bytes: int | None
    decode_peak_bytes: int | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.tool, self.base, self.target


class Results:
    """The newest result of every tool and pair. `file`: where they are kept; None for this run alone."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = Lock()
        self._by_key: dict[tuple[str, str, str], Result] = {}
        for line in file.read_text().splitlines() if file and file.is_file() else ():
            self._keep(Result(**json.loads(line)))

    def _keep(self, result: Result) -> None:
        self._by_key[result.key] = result

    def add(self, result: Result) -> None:
        with self._lock:
            self._keep(result)
            if self._file:
                with self._file.open("a") as lines:
                    lines.write(json.dumps(asdict(result)) + "\n")

    def find(self, tool: str, base: str, target: str) -> Result | None:
        return self._by_key.get((tool, base, target))
