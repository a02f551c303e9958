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


def save(path: Path, living: Iterable[LivingGuest]) -> None:
    """Remember these guests, in one step."""
    state = SavedState(VERSION, _boot(), tuple(living))
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(msgspec.msgpack.encode(state))
    fresh.replace(path)


def load(path: Path) -> tuple[LivingGuest, ...]:
    """The guests in the file, of which some may have ended. A file that cannot be read names none."""
    try:
        state = msgspec.msgpack.decode(path.read_bytes(), type=SavedState)
    except (OSError, msgspec.DecodeError):
        return ()
    return state.living if state.version == VERSION and state.boot == _boot() else ()


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
