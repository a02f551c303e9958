"""A version that has taken over and must show itself: what counts as failing, and the way back. Mostly pure.

While a record has a `probation`, its `current` is watched. It fails by ending badly, by not starting again after a
reboot, or by not answering the readiness rule any more (asked every `LOOK_EVERY_S`); then the version from before is
`current` again and takes over by its own rule. It stands by still running when the time is over, or by having run to a
good end. What only decides is here; `agent.daemon.supervision` acts.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from agent.api.processes import ProcessSpec
from agent.daemon.guests import Guests
from agent.daemon.standing import Standing
from agent.daemon.state import Probation, Record, Retiring, Version
from agent.runtime import GuestFailed, GuestState

LOOK_EVERY_S: Final = 1.0


def probation_of(record: Record, version: Version, *, now_unix: float) -> Probation | UnsetType:
    """The probation that `version` begins when it takes over from what the record says. None for the first version of
    a process, which has nothing to go back to, and none for a return to the version that would be gone back to."""
    before = record.watched.was if record.watched else record.current
    watched_s = version.spec.update.watched_s
    if before is None or not watched_s or before.digest == version.digest:
        return UNSET
    return Probation(was=msgspec.structs.replace(before, guest=None), until_unix=now_unix + watched_s)


def stood(record: Record) -> Record:
    """The record once the probation is over."""
    return msgspec.structs.replace(record, probation=UNSET)


def gone_back(record: Record, *, now_unix: float) -> Record:
    """The record once `current` has failed its probation: it retires, and the version from before is to be started."""
    if record.watched is None:
        return record
    failed = record.current
    retiring: tuple[Retiring, ...] = ()
    if failed is not None and failed.guest is not None:
        retiring = (Retiring(version=failed, until_unix=now_unix + failed.spec.update.drain_s),)
    return msgspec.structs.replace(
        record,
        current=record.watched.was,
        retiring=(*record.retiring, *retiring),
        finished=None,
        troubles=UNSET,
        boot=UNSET,
        restarts=0,
        probation=UNSET,
    )


def hands_over(old: ProcessSpec, new: ProcessSpec) -> bool:
    """Must the old version end before the new one starts?"""
    return new.update.order == "stop-first" or bool(old.volume) or bool(new.volume)


def ended_well(spec: ProcessSpec, state: GuestState) -> bool:
    """May a guest have ended like this without its version being at fault?"""
    return state.exit_code == 0 and not spec.listen


async def problem_of(standing: Standing, guests: Guests) -> str:
    """Watch `current`, whose guest serves, until its probation ends; what went wrong, empty where nothing did. Raises
    RuntimeUnavailable. May be cancelled at any time and begun anew."""
    while True:
        record, running = standing.record, standing.running
        if record.watched is None or record.current is None or running is None:
            return ""
        state = standing.exit_of(running.guest)
        if state is not None:
            code, reason = state.exit_code, f": {state.exit_reason}" if state.exit_reason else ""
            return "" if ended_well(record.current.spec, state) else f"it ended with exit code {code}{reason}"
        left_s = record.watched.until_unix - guests.clock()
        try:
            async with asyncio.timeout(max(0.0, min(left_s, LOOK_EVERY_S))):
                await standing.ended.wait()
            continue
        except TimeoutError:
            problem = await _readiness_problem(record.current, guests)
        if problem or left_s <= LOOK_EVERY_S:
            return problem


async def _readiness_problem(version: Version, guests: Guests) -> str:
    if version.spec.ready is None:
        return ""
    try:
        await guests.wait_ready(version)
    except GuestFailed as error:
        return str(error)
    return ""
