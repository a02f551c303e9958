"""Giving a directory tree to the user that a guest runs as. Needs root.

What a guest may write to is its user's. What it may only read stays root's and is its group's, so that the program
could not change it even where nothing else stood in its way. Trees may be as deep as a disk allows, and hold whatever a
hostile guest has left there: nothing recurses, no path grows, no link is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_MODE: Final = 0o750
_FILE_MODE: Final = 0o440
ROOT: Final = 0


def give(path: str, uid: int) -> None:
    """Make a tree a user's own. Its top is given last: where that is the user's already, everything is, so this costs
    one call in every start but the first. Raises OSError."""
    top = os.open(path, _OPEN)
    if os.fstat(top).st_uid == uid:
        os.close(top)
        return
    _walk(top, lambda name, at, _: os.chown(name, uid, uid, dir_fd=at, follow_symlinks=False))
    Path(path).chmod(0o700)
    os.chown(path, uid, uid)


def let_read(path: str, uid: int) -> None:
    """Let a user read a tree of ours, and not change it. Raises OSError."""

    def change(name: str, at: int, facts: os.stat_result) -> None:
        if stat.S_ISLNK(facts.st_mode):
            return
        os.chown(name, ROOT, uid, dir_fd=at, follow_symlinks=False)
        os.chmod(name, _DIRECTORY_MODE if stat.S_ISDIR(facts.st_mode) else _FILE_MODE, dir_fd=at)

    _walk(os.open(path, _OPEN), change)
    os.chown(path, ROOT, uid)
    Path(path).chmod(_DIRECTORY_MODE)


def let_read_file(path: str, uid: int) -> None:
    """Let a user read one file of ours. Raises OSError."""
    os.chown(path, ROOT, uid, follow_symlinks=False)
    Path(path).chmod(_FILE_MODE)


def _walk(top: int, change: Callable[[str, int, os.stat_result], None]) -> None:
    """Call `change` with the name, the directory and the facts of everything below a directory, and close it."""
    here = top
    try:
        left = [_change_all(here, change)]
        while True:
            if left[-1]:
                there = os.open(left[-1].pop(), _OPEN, dir_fd=here)
                left.append(_change_all(there, change))
            else:
                left.pop()
                if not left:
                    return
                there = os.open("..", _OPEN, dir_fd=here)
            os.close(here)
            here = there
    finally:
        os.close(here)


def _change_all(directory: int, change: Callable[[str, int, os.stat_result], None]) -> list[str]:
    """The names of the directories in it, once everything in it is changed."""
    below = []
    with os.scandir(directory) as entries:
        for entry in entries:
            facts = entry.stat(follow_symlinks=False)
            change(entry.name, directory, facts)
            if stat.S_ISDIR(facts.st_mode):
                below.append(entry.name)
    return below
