"""Asking a person before something happens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tools.errors import UsageError

if TYPE_CHECKING:
    from tools.output import Output

ANSWERS_YES = ("y", "yes")


def confirmed(question: str, out: Output, *, yes: bool) -> bool:
    """Whether to go on: `yes` was given, or somebody at the terminal says so. Raises UsageError where nobody can be
    asked, because going on or not would both be a guess."""
    if yes:
        return True
    if out.as_json or not sys.stdin.isatty():
        raise UsageError("nobody can be asked whether to go on", hint="give --yes, or run it in a terminal")
    out.flush()
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ANSWERS_YES
