"""A small event loop: descriptors, timers, and tasks written as generators. One thread, no engine, no asyncio.

The supervisor outlives every agent, so it is made of as little as possible. A task is a generator that yields `Wait`:
it is resumed with True when the descriptor is ready or the signal was given, or False when the time has come.
Everything else happens in callbacks, which must not block and must not raise: one that does is reported through
`on_error` and the loop goes on.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import select
import time
from collections.abc import Callable, Generator
from typing import Generic, NamedTuple, TypeVar

POLLIN = select.EPOLLIN
POLLOUT = select.EPOLLOUT

Callback = Callable[[], None]
T = TypeVar("T")


class Signal:
    """Something that tasks can wait for without a descriptor: `notify` resumes all that wait now."""

    def __init__(self) -> None:
        self.waiting: list[Callback] = []

    def notify(self) -> None:
        waiting, self.waiting = self.waiting, []
        for resume in waiting:
            resume()


class Wait(NamedTuple):
    """What a task waits for: a descriptor, a signal, or only the time; until a deadline on the loop's clock."""

    until: float
    descriptor: int | None = None
    events: int = POLLIN
    signal: Signal | None = None


Task = Generator[Wait, bool, T]


class Timer:
    """A callback that will run at a time, unless it is cancelled."""

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """See the module's head. `clock` is monotonic, in seconds."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, on_error: Callable[[BaseException], None] | None = None
    ) -> None:
        self.clock = clock
        self._on_error = on_error
        self._epoll = select.epoll()
        self._watched: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._stopped = False

    def watch(self, descriptor: int, callback: Callback, *, events: int = POLLIN) -> None:
        """Call back whenever the descriptor is ready, also when its other end is gone. One watch per descriptor."""
        if descriptor in self._watched:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._watched[descriptor] = callback

    def unwatch(self, descriptor: int) -> None:
        """Must come before the descriptor is closed. Does nothing where it is not watched."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def at(self, time_s: float, callback: Callback) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (time_s, next(self._numbers), timer))
        return timer

    def after(self, delay_s: float, callback: Callback) -> Timer:
        return self.at(self.clock() + delay_s, callback)

    def start(self, task: Task[T], *, done: Callable[[T], None], failed: Callable[[Exception], None]) -> RunningTask[T]:
        """Run a task up to its first wait, and on from there as its waits end."""
        running = RunningTask(self, task, done, failed)
        running.step(None)
        return running

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        while not self._stopped:
            self.run_once()
        self._epoll.close()

    def run_once(self) -> None:
        """Wait for the next thing to happen, and handle what has."""
        try:
            ready = self._epoll.poll(self._timeout())
        except InterruptedError:
            ready = []
        for descriptor, _ in ready:
            callback = self._watched.get(descriptor)
            if callback is not None:
                self._call(callback)
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._call(timer.callback)

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self.clock()) if self._timers else None

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)


class RunningTask(Generic[T]):
    """A task under way."""

    def __init__(
        self, loop: Loop, task: Task[T], done: Callable[[T], None], failed: Callable[[Exception], None]
    ) -> None:
        self._loop = loop
        self._task = task
        self._done = done
        self._failed = failed
        self._waits_for: int | None = None
        self._timer: Timer | None = None

    def step(self, ready: bool | None) -> None:
        """Resume the task; None starts it."""
        self._stop_waiting()
        try:
            wait = next(self._task) if ready is None else self._task.send(ready)
        except StopIteration as stop:
            self._done(stop.value)
            return
        except Exception as error:
            self._failed(error)
            return
        self._timer = self._loop.at(wait.until, lambda: self.step(False))
        if wait.descriptor is not None:
            self._waits_for = wait.descriptor
            self._loop.watch(wait.descriptor, lambda: self.step(True), events=wait.events)
        if wait.signal is not None:
            wait.signal.waiting.append(functools.partial(self._resume_soon, self._timer))

    def _resume_soon(self, waits_with: Timer) -> None:
        """Resume from the loop, not from whoever notified; unless the task has gone on by itself meanwhile."""
        if self._timer is waits_with and waits_with.callback is not None:
            waits_with.cancel()
            self._timer = self._loop.after(0, lambda: self.step(True))

    def cancel(self) -> None:
        """End the task where it waits; its `finally` blocks run, neither `done` nor `failed` is called."""
        self._stop_waiting()
        self._task.close()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waits_for is not None:
            self._loop.unwatch(self._waits_for)
            self._waits_for = None
