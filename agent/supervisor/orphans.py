"""Which guests a supervisor left behind when it was killed, and the end of those that its successor cannot take over.

The file names processes by pid and start time, and the boot they belong to, so that a pid that was given to somebody
else meanwhile is never touched. It is not synced to disk: after a restart of the machine it means nothing anyway.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from agent.sandbox import linux
from agent.supervisor.wire import LivingGuest, SavedState

VERSION: Final = 1
END_DEADLINE_S: Final = 5.0
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class _NamedGuest(msgspec.Struct, frozen=True):
    guest: str
    pid: int
    start_ticks: int


class _Named(msgspec.Struct, frozen=True):
    """What the file of any version has."""

    boot: str
    living: tuple[_NamedGuest, ...]
    block: int | None = None


def save(path: Path, living: Iterable[LivingGuest], block: int | None) -> None:
    """Remember these guests, and the block of addresses of those in namespaces, in one step."""
    state = SavedState(VERSION, _boot(), tuple(living), block)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(msgspec.msgpack.encode(state))
    fresh.replace(path)


def load(path: Path) -> SavedState:
    """The guests in the file, of which some may have ended. A file that cannot be read names none; of one that another
    version has written in its own way, the processes are known, so that they can be ended."""
    nothing = SavedState(VERSION, _boot(), ())
    try:
        data = path.read_bytes()
        state = msgspec.msgpack.decode(data, type=_Named)
        if state.boot != nothing.boot:
            return nothing
        with contextlib.suppress(msgspec.DecodeError):
            whole = msgspec.msgpack.decode(data, type=SavedState)
            if whole.version == VERSION:
                return whole
    except (OSError, msgspec.DecodeError):
        return nothing
    living = tuple(LivingGuest(one.guest, one.pid, one.start_ticks) for one in state.living)
    return SavedState(VERSION, state.boot, living, state.block)


def end(guest: LivingGuest) -> bool:
    """End it, if it lives; returns when it has ended."""
    try:
        pidfd = os.pidfd_open(guest.pid)
    except OSError:
        return False
    try:
        if linux.process_start_ticks(guest.pid) != guest.start_ticks:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], END_DEADLINE_S)
        return True
    finally:
        os.close(pidfd)


def _boot() -> str:
    return BOOT_ID.read_text().strip()
