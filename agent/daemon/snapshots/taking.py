"""Taking a snapshot: as much as can be while the process runs, the rest while it is held.

The volume is looked at while the process goes on, which stores nearly everything. Then the process is held
(`agent.sandbox.pause`) and the volume looked at again: only what has changed since is read, and goes to a spool, so the
pause lasts as long as looking does, not as long as storing. What is named is what was seen while the process was held:
one instant, as after a power cut, except that nothing written before is lost.

Where a process may not be held (an agent without privileges, on some systems), looks are repeated until nothing has
changed between two: then the volume was as it was seen at every instant between them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from agent.daemon.snapshots.content import Keep
from agent.daemon.snapshots.keeping import Keeper, Spool
from agent.daemon.snapshots.looking import Look, Memory, TooLong, look
from agent.sandbox.pause import PauseFailed, paused

ATTEMPTS: Final = 3
MORE_LOOKS: Final = 3
LITTLE_BYTES: Final = 16 << 20
"""Read again in some milliseconds."""
LOOKS_AT_REST: Final = 20
BETWEEN_LOOKS_S: Final = 0.1


class NotAtRest(Exception):
    """The process writes too much for a snapshot under the limits given; the message says how."""


class Seen(NamedTuple):
    """The volume at one instant."""

    look: Look
    at_unix_ns: int
    paused_s: float
    read_bytes: int
    """Of all looks."""


class Taking:
    """`root`: a descriptor of the volume. `spool`: a directory for what is read during the pause."""

    def __init__(self, root: int, memory: Memory, keeper: Keeper, spool: Path) -> None:
        self._root = root
        self._memory = memory
        self._keeper = keeper
        self._spool = spool
        self._read_bytes = 0

    def of_nobody(self) -> Seen:
        """Where nobody else can write to the volume. Raises VolumeUnfit, OSError, StoreFull."""
        at_unix_ns = time.time_ns()
        return self._seen(self._look(), at_unix_ns, 0.0)

    def of_running(self, pid: int, max_pause_s: float) -> Seen:
        """Raises NotAtRest, PauseFailed, VolumeUnfit, OSError, StoreFull."""
        for _ in range(ATTEMPTS):
            self._approach()
            try:
                return self._held(pid, max_pause_s)
            except TooLong:
                continue
            except PermissionError:
                return self.at_rest()
        raise NotAtRest(f"what changes between two looks takes longer than {max_pause_s:g} s to read")

    def _approach(self) -> None:
        """Look until little has changed since, or as much as before: storing the first look may have taken minutes."""
        before = self._look().read_bytes
        for _ in range(MORE_LOOKS):
            if before <= LITTLE_BYTES:
                return
            now = self._look().read_bytes
            if now * 2 > before:
                return
            before = now

    def _held(self, pid: int, max_pause_s: float) -> Seen:
        with Spool(self._spool) as spool:
            begun = time.monotonic()
            with _in_a_hurry(), paused(pid, max_pause_s):
                at_unix_ns = time.time_ns()
                seen = self._look(spool.keep, lambda: time.monotonic() - begun < max_pause_s)
            paused_s = time.monotonic() - begun
            spool.pour(self._keeper)
        return self._seen(seen, at_unix_ns, paused_s)

    def at_rest(self) -> Seen:
        """Where a process may write that cannot be held. Raises NotAtRest, VolumeUnfit, OSError, StoreFull."""
        before = self._look()
        for _ in range(LOOKS_AT_REST):
            at_unix_ns = time.time_ns()
            now = self._look()
            if not now.read_files and now.items == before.items:
                return self._seen(now, at_unix_ns, 0.0)
            before = now
            time.sleep(BETWEEN_LOOKS_S)
        raise NotAtRest("its process may not be held on this host, and writes again and again")

    def _look(self, keep: Keep | None = None, in_time: Callable[[], bool] = lambda: True) -> Look:
        seen = look(self._root, self._memory, keep or self._keeper.keep, in_time=in_time)
        if keep is None:
            self._keeper.flush()
        self._memory = seen.seen
        self._read_bytes += seen.read_bytes
        return seen

    def _seen(self, seen: Look, at_unix_ns: int, paused_s: float) -> Seen:
        return Seen(seen, at_unix_ns, paused_s, self._read_bytes)


@contextmanager
def _in_a_hurry() -> Iterator[None]:
    """While a process waits, this one does not give way to others, where it may ask for that."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(before, 0))
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


__all__ = ["NotAtRest", "PauseFailed", "Seen", "Taking"]
