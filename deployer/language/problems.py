"""What is wrong in a definition file, with the place where a person has to look.

Imports nothing but the error classes, so that the command can show problems without the machinery that found them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deployer.errors import BadInput

MAX_PROBLEMS_SHOWN = 100


class Problem(NamedTuple):
    """One mistake. Lines and columns count from 1; they are 0 where the whole file is meant."""

    path: str
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        return f"{place}: {self.message}" + (f"\n  hint: {self.hint}" if self.hint else "")


class DefinitionInvalid(BadInput):
    """Everything that is wrong with a definition (or a lock file), in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        shown = [str(problem) for problem in problems[:MAX_PROBLEMS_SHOWN]]
        if len(problems) > MAX_PROBLEMS_SHOWN:
            shown.append(f"… and {len(problems) - MAX_PROBLEMS_SHOWN} more")
        super().__init__("\n".join(shown))
        self.problems = tuple(problems)
