"""Readiness by a command: the process's own program, run once more with other arguments, says by its exit code whether
the version beside it is ready.

A check is a guest that lives for seconds. It has what its process has (configuration files, secrets, environment,
connections, limits, scratch space of its own), no volume and no listeners, and it reaches the listeners of exactly the
guest that it checks, also while that is dark (`agent.supervisor.checking`). No record names it, so it is never taken
for a version: one that a crash left over is ended like any guest that no record knows.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from agent.daemon.refusal import Refused
from agent.daemon.state import Version
from agent.runtime import GuestFailed, GuestId, GuestOrder, GuestState

FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 1.0
KILLED: Final = 137
MAX_LAST_LINE: Final = 200


class CheckBuilder(Protocol):
    """Makes what a check needs on disk."""

    async def check_order(self, version: Version, check: GuestId) -> GuestOrder:
        """How to run the command of a version's readiness rule. Raises Refused."""
        ...

    async def said_by_check(self, check: GuestId) -> str:
        """The last lines that a check has printed."""
        ...


class CheckFailed(GuestFailed):
    """The command did not end well in time. `output` is what it printed last; `cut_off`: it did not end by itself."""

    def __init__(self, message: str, output: str, *, cut_off: bool) -> None:
        super().__init__(message)
        self.output = output
        self.cut_off = cut_off


class Checking:
    """Runs checks until one passes. `run` runs one to its end within so many seconds, `discard` leaves nothing of
    it."""

    def __init__(
        self,
        builder: CheckBuilder,
        run: Callable[[GuestOrder, float], Awaitable[GuestState]],
        discard: Callable[[str, GuestId], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._builder = builder
        self._run = run
        self._discard = discard
        self._clock = clock

    async def wait_until_passed(self, version: Version, *, until: float) -> None:
        """Until a check of the version's guest ends with exit code 0. Raises CheckFailed when the time is over,
        GuestFailed where none can be run or the guest has ended, RuntimeUnavailable. May be cancelled: the check then
        ends."""
        retry_s = FIRST_RETRY_S
        told: CheckFailed | None = None
        while True:
            failed = await self._once(version, until)
            if failed is None:
                return
            if told is None or not failed.cut_off:
                told = failed
            if until - self._clock() <= retry_s:
                raise told
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    async def _once(self, version: Version, until: float) -> CheckFailed | None:
        check = new_check_id(version.spec.name)
        try:
            order = await self._builder.check_order(version, check)
            state = await self._run(order, max(0.0, until - self._clock()))
            return None if state.exit_code == 0 else _failed(version, state, await self._builder.said_by_check(check))
        except Refused as error:
            raise GuestFailed(f"its check cannot be run: {error.refusal.message}") from error
        except GuestFailed as error:
            if error.state is not None and error.state.guest != check:
                raise  # the guest that it checks has ended
            raise GuestFailed(f"its check cannot be run: {error}") from error
        finally:
            await asyncio.shield(asyncio.ensure_future(self._discard(version.spec.name, check)))


def _failed(version: Version, state: GuestState, output: str) -> CheckFailed:
    ready = version.spec.ready
    command = shlex.join(ready.command if ready else ())
    cut_off = state.exit_code == KILLED and not state.exit_reason
    how = "was not done in time" if cut_off else f"ended with exit code {state.exit_code}"
    lines = output.strip().splitlines() or [state.exit_reason]
    last = f": {lines[-1][:MAX_LAST_LINE]}" if lines[-1] else ""
    return CheckFailed(f"its check `{command}` {how}{last}", output, cut_off=cut_off)


def new_check_id(process: str) -> GuestId:
    """A name that no guest of a record ever has."""
    return f"{process}-check-{time.time_ns():016x}-{os.urandom(4).hex()}"
