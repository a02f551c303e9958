"""Which user each process of this host runs as, for ever: `<state>/users`.

A user of its own is what keeps one guest's files from another where everything else has failed, so a number is given to
one process only and stays with it, also while the process is away, because its volumes are still that user's. Numbers
come from a block that a state directory has for itself, of a range that no distribution, container or service manager
hands out. Only when a whole block has been given away are numbers of processes that are gone given again; whatever
volumes those left are made their next holder's before it can see them (`agent.sandbox.ownership`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import msgspec

from agent.daemon.durable import FileDamaged, seal, set_aside, unseal, write_file
from agent.sandbox import privileges
from cas.digest import digest_of

FILE: Final = "users"
MAGIC: Final = b"lcusers"
VERSION: Final = 1
FIRST: Final = 1_900_000_000
"""Beyond what systemd gives containers (up to 1,879,048,191)."""
BLOCK: Final = 8192
BLOCKS: Final = 30_000
LAST: Final = FIRST + BLOCK * BLOCKS - 1


class Users:
    """The numbers of one state directory. `in_use` tells which processes must keep theirs when numbers run out. May be
    used from any thread."""

    def __init__(self, state_dir: Path, in_use: Callable[[], Collection[str]] = tuple) -> None:
        self._path = state_dir / FILE
        self._in_use = in_use
        self._lock = threading.Lock()
        self.problem = privileges.no_users(FIRST, LAST)
        """Why guests have no users of their own here; "" where they do."""
        block = int(digest_of(os.fsencode(state_dir.resolve())).removeprefix("b3:")[:12], 16) % BLOCKS
        self._first = FIRST + block * BLOCK
        self._by_process = self._load()

    def of(self, process: str) -> int | None:
        """The user of a process, its own now; None without the privileges. Durable before it is used.
        Raises OSError."""
        if self.problem:
            return None
        with self._lock:
            if process not in self._by_process:
                if len(self._by_process) >= BLOCK:
                    kept = set(self._in_use())
                    self._by_process = {name: uid for name, uid in self._by_process.items() if name in kept}
                taken = set(self._by_process.values())
                free = next(uid for uid in range(self._first, self._first + BLOCK) if uid not in taken)
                grown = {**self._by_process, process: free}
                write_file(self._path, seal(MAGIC, VERSION, msgspec.msgpack.encode(grown)))
                self._by_process = grown
            return self._by_process[process]

    def _load(self) -> dict[str, int]:
        """A damaged file is set aside: the numbers are given anew, and volumes to their new owners with them."""
        try:
            return msgspec.msgpack.decode(unseal(self._path, MAGIC, VERSION), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except (FileDamaged, msgspec.MsgspecError):
            set_aside(self._path)
            return {}
