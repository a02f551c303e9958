"""What the parts of a store share: the environment, the clock, the bounds, and the way to the writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from cas.batch import Batch
from cas.environment import Environment
from cas.errors import StoreFull
from cas.writer import Job, writer_of

RESERVE_BYTES = 64 << 20
"""Disk space that a store leaves free for what else lives on the disk."""
OVERHEAD_BYTES = 1 << 20
"""Pages that a transaction rewrites besides what it adds."""

Result = TypeVar("Result")


class Access:
    """A store's way to its environment."""

    def __init__(
        self,
        env: Environment,
        *,
        clock: Callable[[], float],
        write_timeout_s: float,
        quota_bytes: int | None,
        reserve_bytes: int,
    ) -> None:
        self.env = env
        self.clock = clock
        self.write_timeout_s = write_timeout_s
        self.quota_bytes = quota_bytes
        self.reserve_bytes = reserve_bytes

    def write(self, change: Callable[[Batch], Result], size_bytes: int = 0) -> Result:
        """Make a change and return once it is durable. `size_bytes` is what it adds, and 0 where it adds no blobs: so
        that a full store can still be collected. Raises StoreFull, StoreBusy and what the change raises."""
        return self.submit(change, size_bytes).wait()

    def submit(
        self, change: Callable[[Batch], Result], size_bytes: int = 0, *, after: Job[Any] | None = None
    ) -> Job[Result]:
        """As `write`, without waiting; fails where the job that it comes `after` has failed. Raises StoreFull."""
        if size_bytes:
            self.ensure_room(size_bytes)
        writer = writer_of(self.env)
        return writer.submit(change, timeout_s=self.write_timeout_s, size_bytes=size_bytes, after=after)

    def ensure_room(self, size_bytes: int) -> None:
        """Raises StoreFull where so many more bytes would break the quota or leave too little of the disk."""
        path = self.env.path
        if self.quota_bytes is not None:
            used = self.env.used_bytes()
            if used + size_bytes > self.quota_bytes:
                raise StoreFull(
                    f"{size_bytes} more bytes do not fit into the quota of the store {path}: "
                    f"{used} of {self.quota_bytes} bytes are used"
                )
        disk = os.statvfs(path)
        free = disk.f_bavail * disk.f_frsize
        if free >= size_bytes + OVERHEAD_BYTES + self.reserve_bytes:
            return
        reusable = max(0, self.env.file_bytes() - self.env.used_bytes())
        if reusable < size_bytes + OVERHEAD_BYTES:
            raise StoreFull(
                f"{size_bytes} more bytes do not fit on the disk of the store {path}: {free} bytes are free, "
                f"of which {self.reserve_bytes} stay in reserve, and {reusable} can be used again inside the store"
            )
