"""Directory trees that a guest has written to, which may be as deep as a disk allows.

The standard library walks a tree by recursion and by paths, so a few thousand nested directories, which a guest makes
in milliseconds, end it with RecursionError or ENAMETOOLONG. Here nothing recurses and no path grows. Symbolic links
are never followed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MAX_COUNTED_FILES: Final = 100_000
"""Counting what is used stops here; the number is a lower bound then."""
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Remove a directory and everything below it, which nobody changes meanwhile; nothing happens where it is absent.
    Raises OSError."""
    try:
        here = os.open(path, _OPEN)
    except FileNotFoundError:
        return
    try:
        # By level, from the top down to `here`: the directories that are still to be removed.
        left = [_remove_files(here)]
        while True:
            if left[-1]:
                here = _move(here, left[-1][-1])
                left.append(_remove_files(here))
                continue
            left.pop()
            if not left:
                break
            here = _move(here, "..")
            os.rmdir(left[-1].pop(), dir_fd=here)
    finally:
        os.close(here)
    path.rmdir()


def _move(here: int, name: str) -> int:
    there = os.open(name, _OPEN, dir_fd=here)
    os.close(here)
    return there


def _remove_files(directory: int) -> list[str]:
    """Remove what is no directory; the names of the directories."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in found if is_directory]


def used_bytes(path: Path) -> int:
    """Bytes that the files below a directory take on disk: a lower bound where there are very many, or where they lie
    deeper than a path can say."""
    total = counted = 0
    waiting = [str(path)]
    while waiting and counted <= MAX_COUNTED_FILES:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    counted += 1
                    if counted > MAX_COUNTED_FILES:
                        break
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # it has just been removed, or its path is too long
    return total
