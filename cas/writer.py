"""The one thread of a process that writes to a store, and the group commit that makes writing from many threads cheap.

A *job* is a function of a `Batch`. Whoever has one hands it to the writer and waits; the thread takes all jobs that
wait, runs them in one transaction, commits, and only then wakes their callers: what is acknowledged is durable. While
it commits, the next group gathers. A job may run more than once before it is committed, so it must not change anything
but the batch. If a job raises, the transaction is abandoned and the jobs run again, each in one of its own, so that
only the one at fault fails, and the jobs that were to come *after* it: nobody has to wait for one before handing in the
next.

A crash loses the jobs that were not acknowledged and nothing else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import lmdb

from cas.batch import Batch
from cas.environment import Environment, translated
from cas.errors import StoreUnreadable
from cas.lockfile import WriteLock

GROUP_JOBS = 4096
GROUP_BYTES = 64 << 20
"""At most so much is gathered into one transaction; more waits for the next."""

Result = TypeVar("Result")


class Job(Generic[Result]):
    """A change that waits to be made, and then its result."""

    __slots__ = ("_after", "_change", "_done", "_error", "_result", "size_bytes")

    def __init__(self, change: Callable[[Batch], Result], size_bytes: int, after: Job[Any] | None) -> None:
        self._change: Callable[[Batch], Result] | None = change
        self._after = after
        self.size_bytes = size_bytes
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self, batch: Batch) -> Result:
        """Raises what the job it comes after has raised."""
        if self._after is not None and self._after._error is not None:
            raise self._after._error
        assert self._change is not None, "a job does not run again once it is done"
        return self._change(batch)

    def succeed(self, result: Result) -> None:
        self._result = result
        self._end()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        self._change = self._after = None  # What it wrote, and all jobs before it, need not stay in memory.
        self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> Result:
        """The result once it is durable. Raises what the job raised, StoreBusy or StoreFull."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        result: Result = self._result
        return result


class Writer:
    """Runs jobs, in the order they came, in as few transactions as possible."""

    def __init__(self, env: Environment, lock: WriteLock) -> None:
        self._env = env
        self._lock = lock
        self._waiting: deque[Job[Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._timeout_s = 0.0
        self._thread = threading.Thread(target=self._serve, name="lowcloud-store-writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        change: Callable[[Batch], Result],
        *,
        timeout_s: float,
        size_bytes: int = 0,
        after: Job[Any] | None = None,
    ) -> Job[Result]:
        """`after`: an earlier job; where it fails, this one fails with the same error and changes nothing."""
        self._env.refuse_forked()
        job = Job(change, size_bytes, after)
        with self._changed:
            if self._closing:
                raise StoreUnreadable(f"the store {self._env.path} is closed")
            self._timeout_s = timeout_s
            self._waiting.append(job)
            # Not `notify`: where Ctrl-C cut an earlier call short, it wakes the waiter of then, and nobody wakes.
            self._changed.notify_all()
        return job

    def close(self) -> None:
        """Finish the jobs that wait, then end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._lock.close()

    def _serve(self) -> None:
        while group := self._next_group():
            try:
                self._lock.acquire(self._timeout_s)
            except BaseException as error:
                for job in group:
                    job.fail(error)
                continue
            try:
                self._run_group(group)
            finally:
                self._lock.release()

    def _next_group(self) -> list[Job[Any]]:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            group: list[Job[Any]] = []
            size_bytes = 0
            while self._waiting and len(group) < GROUP_JOBS and (not group or size_bytes < GROUP_BYTES):
                group.append(self._waiting.popleft())
                size_bytes += group[-1].size_bytes
            return group

    def _run_group(self, group: list[Job[Any]]) -> None:
        try:
            results = self._commit(group)
        except BaseException as error:
            if len(group) == 1:
                group[0].fail(error)
                return
            for job in group:
                self._run_group([job])
            return
        for job, result in zip(group, results, strict=True):
            job.succeed(result)

    def _commit(self, group: list[Job[Any]]) -> list[Any]:
        try:
            txn = self._env.lmdb.begin(write=True)
            try:
                batch = Batch(self._env, txn)
                results = [job.run(batch) for job in group]
                batch.finish()
            except BaseException:
                txn.abort()
                raise
            txn.commit()
        except lmdb.Error as error:
            raise translated(error, self._env.path) from error
        return results


def writer_of(env: Environment) -> Writer:
    """The environment's writer, started when it is first needed."""
    with env.writer_lock:
        if env.writer is None:
            env.refuse_forked()
            env.writer = Writer(env, WriteLock(env.path))
        return env.writer
