"""What deltas are measured on: CORPUS/SERIES/VERSION/FILE; every two successive versions of a file are a pair.

Versions are ordered by the numbers in their names. `python -m benchmarks.fetch` makes such a folder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    series: str
    old: Path
    new: Path

    @property
    def versions(self) -> str:
        return f"{self.old.parent.name} → {self.new.parent.name}"


def version_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.\-_]|(?<=\d)(?=\D)", path.name)]


def pairs_of(corpus: Path, series: list[str], match: str) -> Iterator[Pair]:
    """All pairs of the named series (of all, where none is named) whose file's name matches."""
    for directory in sorted(path for path in corpus.iterdir() if path.is_dir()):
        if series and directory.name not in series:
            continue
        versions = sorted((path for path in directory.iterdir() if path.is_dir()), key=version_order)
        for old, new in itertools.pairwise(versions):
            for file in sorted(new.glob(match)):
                if (old / file.name).is_file():
                    yield Pair(directory.name, old / file.name, file)
