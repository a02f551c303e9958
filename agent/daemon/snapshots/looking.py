"""Looking at a whole volume: what is in it, reading only the files that have changed since the last look.

A file is as it was where its inode, size, and times of change are (the kernel sets the latter, a guest cannot). Clocks
tick coarsely, so a file that had just changed when it was read counts as changed at the next look.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent.daemon.durable import FileDamaged, seal, unseal, write_file
from agent.daemon.snapshots.content import Keep, read_pieces
from agent.daemon.snapshots.walk import End, Found, open_file, read_link, walk
from cas.tree import MAX_INT, Directory, Entry, File, Item, Link, Runs, Symlink, data_bytes_of

TICK_NS: Final = 20_000_000
"""More than a tick of any kernel's clock for files: at least 100 a second."""
NEVER: Final = -1
MAGIC: Final = b"lcseen\0\0"
VERSION: Final = 1
MAX_SEEN_BYTES: Final = 512 << 20
_PERMISSIONS: Final = 0o777


class Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file at its last look. `changed_ns` is its ctime, NEVER where it cannot be relied on."""

    size: int
    modified_ns: int
    changed_ns: int
    runs: Runs

    def is_still(self, facts: os.stat_result) -> bool:
        now = (facts.st_size, _time(facts), facts.st_ctime_ns)
        return now == (self.size, self.modified_ns, self.changed_ns)


Memory = dict[int, Seen]
"""By inode."""


class Look(NamedTuple):
    items: list[Item]
    seen: Memory
    entries: int
    data_bytes: int
    left_out: int
    read_files: int
    read_bytes: int


class TooLong(Exception):
    """The deadline has come before the look was done."""


def look(
    root: int,
    seen: Memory,
    keep: Keep,
    *,
    in_time: Callable[[], bool] = lambda: True,
    now_ns: Callable[[], int] = time.time_ns,
) -> Look:
    """Raises VolumeUnfit, TooLong, OSError, and what `keep` raises."""
    return _Look(seen, keep, in_time, now_ns).at(root)


class _Look:
    def __init__(self, seen: Memory, keep: Keep, in_time: Callable[[], bool], now_ns: Callable[[], int]) -> None:
        self._before = seen
        self._keep = keep
        self._in_time = in_time
        self._now_ns = now_ns
        self._items: list[Item] = []
        self._seen: Memory = {}
        self._files = 0
        self._links: dict[int, int] = {}
        """The place among the files of each inode that has several names."""
        self._entries = self._data_bytes = self._left_out = self._read_files = self._read_bytes = 0

    def at(self, root: int) -> Look:
        for found in walk(root):
            if not self._in_time():
                raise TooLong
            if isinstance(found, End):
                self._items.append(None)
                continue
            try:
                entry = self._entry(found)
            except FileNotFoundError:
                continue
            if entry is None:
                self._left_out += 1
            else:
                self._items.append(entry)
                self._entries += 1
        return Look(
            self._items,
            self._seen,
            self._entries,
            self._data_bytes,
            self._left_out,
            self._read_files,
            self._read_bytes,
        )

    def _entry(self, found: Found) -> Entry | None:
        mode = found.facts.st_mode
        permissions = mode & _PERMISSIONS
        if stat.S_ISREG(mode):
            return self._file(found, permissions)
        if stat.S_ISDIR(mode):
            return Directory(found.name, permissions, _time(found.facts))
        if stat.S_ISLNK(mode):
            return Symlink(found.name, _time(found.facts), read_link(found))
        return None

    def _file(self, found: Found, permissions: int) -> Entry:
        facts = found.facts
        if facts.st_nlink > 1 and facts.st_ino in self._links:
            return Link(found.name, self._links[facts.st_ino])
        seen = self._before.get(facts.st_ino)
        if seen is None or not seen.is_still(facts):
            seen, facts = self._read(found, seen)
        self._seen[facts.st_ino] = seen
        if facts.st_nlink > 1:
            self._links[facts.st_ino] = self._files
        self._files += 1
        file = File(found.name, permissions, _time(facts), seen.size, seen.runs)
        self._data_bytes += data_bytes_of(file)
        return file

    def _read(self, found: Found, seen: Seen | None) -> tuple[Seen, os.stat_result]:
        descriptor = open_file(found)
        try:
            facts, now_ns = os.fstat(descriptor), self._now_ns()
            runs, read_bytes = read_pieces(
                descriptor, facts.st_size, () if seen is None else seen.runs, self._keep_in_time
            )
        finally:
            os.close(descriptor)
        self._read_files += 1
        self._read_bytes += read_bytes
        changed_ns = facts.st_ctime_ns if facts.st_ctime_ns < now_ns - TICK_NS else NEVER
        return Seen(facts.st_size, _time(facts), changed_ns, runs), facts

    def _keep_in_time(self, digest: bytes, piece: bytes, before: bytes | None) -> None:
        if not self._in_time():
            raise TooLong
        self._keep(digest, piece, before)


def _time(facts: os.stat_result) -> int:
    """When it was changed, in so far as a tree can say so: a guest may set a time that is centuries away."""
    return max(-MAX_INT, min(facts.st_mtime_ns, MAX_INT))


# --- between snapshots ----------------------------------------------------------------------------------------------


def load_memory(path: Path) -> Memory:
    """What the last snapshot saw; nothing where that is not known, which costs reading everything."""
    try:
        data = unseal(path, MAGIC, VERSION, max_bytes=MAX_SEEN_BYTES)
        return msgspec.msgpack.decode(data, type=Memory)
    except (OSError, FileDamaged, msgspec.MsgspecError):
        return {}


def save_memory(path: Path, seen: Memory) -> None:
    """Raises OSError."""
    write_file(path, seal(MAGIC, VERSION, msgspec.msgpack.encode(seen)))
