"""What this process may do that an ordinary user may not: the ground of every hard guarantee that needs more than that.

Root alone says little: in a container it may lack capabilities, or users that exist outside. So each power is looked up
by what it takes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_UID_MAP: Final = Path("/proc/self/uid_map")
LOOP_CONTROL: Final = Path("/dev/loop-control")
MAKE_FILE_SYSTEM: Final = "mkfs.ext4"
SYSTEM_PATH: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"

# Capability numbers of `linux/capability.h`.
_FOR_USERS: Final = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7, "SYS_PTRACE": 19}
_FOR_MOUNTS: Final = {"SYS_ADMIN": 21}
_FOR_GROWING: Final = {"SYS_RESOURCE": 24}


def no_users(first: int, last: int) -> str:
    """Why guests cannot be given these users; "" where they can."""
    if os.geteuid() != 0:
        return f"the agent runs as user {os.geteuid()}, who cannot become another"
    missing = _missing(_FOR_USERS)
    if missing:
        return f"the agent lacks the capabilities {missing}"
    if not any(start <= first and last < start + count for start, count in _mapped_users()):
        return f"the users {first} to {last} do not exist in this user namespace"
    return ""


def no_mounts() -> str:
    """Why a guest cannot be given a mount namespace of its own; "" where it can."""
    if os.geteuid() != 0:
        return f"the agent runs as user {os.geteuid()}, who cannot mount"
    missing = _missing(_FOR_MOUNTS)
    return f"the agent lacks the capability {missing}" if missing else ""


def no_images() -> str:
    """Why a volume cannot be a file system of its own; "" where it can."""
    problem = no_mounts()
    if problem:
        return problem
    if not os.access(LOOP_CONTROL, os.R_OK | os.W_OK):
        return f"there is no {LOOP_CONTROL}"
    return "" if make_file_system() else f"{MAKE_FILE_SYSTEM} is not installed (package e2fsprogs)"


def no_growing() -> str:
    """Why a volume that is a file system cannot grow while it is in use; "" where it can."""
    missing = _missing(_FOR_GROWING)
    return f"the agent lacks the capability {missing}" if missing else ""


def make_file_system() -> str | None:
    """Where the program that makes an ext4 file system is."""
    return shutil.which(MAKE_FILE_SYSTEM, path=SYSTEM_PATH)


def _missing(wanted: dict[str, int]) -> str:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    return ", ".join(name for name, number in wanted.items() if not held >> number & 1)


def _mapped_users() -> list[tuple[int, int]]:
    """First user and number of users of each range that exists here."""
    lines = [line.split() for line in _UID_MAP.read_text().splitlines()]
    return [(int(inside), int(count)) for inside, _, count in lines]
