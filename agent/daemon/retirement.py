"""Letting go of guests that have a successor: each drains for what is left of its time, is ended and forgotten.

It happens beside everything else, so that the next call need not wait for slow connections; a call that wants to report
how long draining took waits for it with `wait`.
"""

from __future__ import annotations

import asyncio
import functools
import logging

import msgspec

from agent.daemon.guests import Guests, guest_of
from agent.daemon.standing import Standing
from agent.daemon.state import Retiring
from agent.runtime import GuestFailed, GuestId, RuntimeUnavailable

_log = logging.getLogger(__name__)


class Retirement:
    """The retiring guests of one process."""

    def __init__(self, standing: Standing, guests: Guests) -> None:
        self._standing = standing
        self._guests = guests
        self._tasks: dict[GuestId, asyncio.Task[None]] = {}

    def begin(self) -> None:
        """Start with every retiring guest of the record that is not being dealt with yet."""
        for retiring in self._standing.record.retiring:
            guest = guest_of(retiring.version)
            if guest not in self._tasks:
                task = asyncio.get_running_loop().create_task(self._retire(retiring))
                self._tasks[guest] = task
                task.add_done_callback(functools.partial(self._over, guest))

    async def wait(self) -> None:
        """Until every retirement that has begun is over."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def cancel(self) -> None:
        """Stop waiting; the guests stay as they are."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _over(self, guest: GuestId, _: asyncio.Task[None]) -> None:
        self._tasks.pop(guest, None)

    async def _retire(self, retiring: Retiring) -> None:
        version = retiring.version
        try:
            await self._guests.drain(version, deadline_s=max(0.0, retiring.until_unix - self._guests.clock()))
            await self._guests.discard(version)
            await self._standing.save(
                lambda record: msgspec.structs.replace(
                    record, retiring=tuple(one for one in record.retiring if one.version.guest != version.guest)
                )
            )
        except (RuntimeUnavailable, GuestFailed) as error:
            self._standing.settled = False
            _log.warning("%s retires later: %s", version.guest, error)
        except OSError:
            _log.exception("%s has ended, but its record could not be written", version.guest)
