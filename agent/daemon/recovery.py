"""What an agent does about a process that it finds: finish what had been decided, undo what had not. Pure.

| found | done |
|---|---|
| a stop had begun | finish it: every guest of the process ends, the record goes |
| a version was starting | undo it: its guest ends, `current` stays |
| a version was flipping and its guest lives | finish it: it becomes `current`, the old guest retires |
| a version was flipping and its guest is dead | undo it |
| `current` runs | adopt its guest; make it serve if it does not yet |
| `current` had finished by its restart rule, or was given up | leave it |
| `current` is not running (crash, reboot, lost supervisor) | start it |
| guests that retire | go on draining what is left of their time |
| a guest that no record knows, or whose record is damaged | end it (`agent.daemon.processes` does) |
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import UNSET

from agent.api.base import Struct
from agent.daemon.probation import probation_of
from agent.daemon.state import Record, Retiring, Version
from agent.runtime import GuestId, GuestState


class Recovery(Struct, frozen=True):
    """What to do about one process, in this order."""

    record: Record
    """The record as it must be saved first."""
    flip: GuestId | None = None
    """Make sure that this guest serves."""
    adopt: GuestId | None = None
    """It runs; watch it."""
    start: bool = False
    """Start `current`."""
    undone: GuestId | None = None
    """A guest to end at once; it never served."""
    stop: bool = False
    """End every guest and remove the record."""


def recover(record: Record, guests: Mapping[GuestId, GuestState], *, now_unix: float) -> Recovery:
    """Decide from a record and the guests that the supervisor knows."""
    if record.stopping:
        return Recovery(record=record, stop=True)
    undone: GuestId | None = None
    flip: GuestId | None = None
    if record.pending is not None:
        version = record.pending.version
        if record.pending.phase == "flipping" and _alive(version.guest, guests):
            flip = version.guest
            record = taken_over(record, now_unix=now_unix)
        else:
            undone = version.guest
            record = msgspec.structs.replace(record, pending=None)
    current = record.current
    if current is None:
        return Recovery(record=record, undone=undone, stop=True)
    if _alive(current.guest, guests):
        serving = current.guest is not None and guests[current.guest].serving
        return Recovery(record=record, flip=flip if serving else current.guest, adopt=current.guest, undone=undone)
    return Recovery(record=record, start=record.finished is None, undone=undone)


def taken_over(record: Record, *, now_unix: float) -> Record:
    """The record once its pending version has taken over."""
    if record.pending is None:
        raise ValueError(f"no version of {record.process} wants to take over")
    version = record.pending.version
    same = record.current is not None and record.current.digest == version.digest and not record.pending.nonce
    return msgspec.structs.replace(
        record,
        current=version,
        pending=None,
        retiring=(*record.retiring, *_retired(record.current, now_unix)),
        finished=None,
        troubles=UNSET,
        boot=UNSET,
        restarts=record.restarts if same else 0,
        nonce=record.pending.nonce or record.nonce,
        probation=probation_of(record, version, now_unix=now_unix),
    )


def _retired(version: Version | None, now_unix: float) -> tuple[Retiring, ...]:
    if version is None or version.guest is None:
        return ()
    return (Retiring(version=version, until_unix=now_unix + version.spec.update.drain_s),)


def _alive(guest: GuestId | None, guests: Mapping[GuestId, GuestState]) -> bool:
    return guest is not None and guest in guests and guests[guest].exit_code is None
