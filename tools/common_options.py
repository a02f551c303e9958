"""The options that every verb takes, where a verb has actions (`audit verify`): they may stand there too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable


def add_to_actions(actions: Iterable[argparse.ArgumentParser]) -> None:
    """Let each action take `-C`, `-e` and `--json`, and leave alone what was given before it."""
    import argparse

    for action in actions:
        action.add_argument("-C", dest="directory", metavar="DIR", default=argparse.SUPPRESS, help="the cloud")
        action.add_argument("-e", dest="overlay", metavar="NAME", default=argparse.SUPPRESS, help="the overlay")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
