"""Which process may write, and how long another one waits for it.

LMDB has a writer lock of its own, but whoever waits for it waits for ever. So every process takes this lock first, and
gives up with StoreBusy after a while. A process that waits also holds the *turn*: nobody else may queue before it, so
a process that writes without pause cannot starve the others. Both locks are POSIX record locks: they end with the
process that holds them, however it ends, and a forked child does not inherit them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from cas.errors import StoreBusy

WAIT_TIMEOUT_S = 30.0
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.02


class FileLock:
    """An exclusive lock between processes on one small file. Within a process, one thread at a time may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def try_acquire(self) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def release(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._fd)


class WriteLock:
    """The right to write to a store, taken in turns by its processes."""

    def __init__(
        self,
        directory: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._turn = FileLock(directory / "turn.lock")
        self._write = FileLock(directory / "write.lock")
        self._directory = directory
        self._monotonic = monotonic
        self._pause = pause

    def acquire(self, timeout_s: float) -> None:
        """Raises StoreBusy."""
        deadline = self._monotonic() + timeout_s
        self._wait(self._turn, deadline, timeout_s)
        try:
            self._wait(self._write, deadline, timeout_s)
        finally:
            self._turn.release()

    def release(self) -> None:
        self._write.release()

    def close(self) -> None:
        self._turn.close()
        self._write.close()

    def _wait(self, lock: FileLock, deadline: float, timeout_s: float) -> None:
        pause_s = _FIRST_PAUSE_S
        while not lock.try_acquire():
            if self._monotonic() >= deadline:
                raise StoreBusy(f"the store {self._directory} was locked by another writer for {timeout_s:g} s")
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
