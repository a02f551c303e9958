"""More memory for a guest while it runs: two numbers of its process are raised from outside.

The engine asks a number in its own memory, the limit of each linear memory, whenever the program grows one. Our code in
the guest's process tells where that number is before anything of the program runs (`wire.Sandboxed`), and later words
are not listened to, so a program that takes its process over cannot choose another place; and what is written there is
that process's memory and nobody else's. The second number is the process's own limit of data (`RLIMIT_DATA`), of which
the guest's filter leaves it no call to change it. Its control group is the agent's to change.

Eight aligned bytes are written at once. Should the engine read half of it, that limit holds for one attempt, and the
process's own limits hold beside it.
"""

from __future__ import annotations

import os
import resource
import select
from typing import Final

from agent.runtime import GuestFailed
from agent.supervisor.guest_record import Guest

WORD_BYTES: Final = 8


def set_memory(guest: Guest, memory_bytes: int) -> None:
    """Let its program have more memory from here on. Raises GuestFailed, and then nothing has changed for it."""
    name, address, was = guest.order.process, guest.limit_address, guest.order.memory_bytes
    if memory_bytes < was:
        raise GuestFailed(
            f"{name} has {was} bytes of memory, perhaps in use; it can be given more while it runs, not less"
        )
    if address is None or guest.pidfd is None:
        raise GuestFailed(f"{name}: where this host's engine keeps a guest's limit of memory is not known")
    try:
        memory = os.open(f"/proc/{guest.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise GuestFailed(f"{name}: its limit of memory cannot be reached: {error.strerror}") from error
    try:
        # The number of the process could be another's by now; an end that comes later changes nothing any more.
        if select.select([guest.pidfd], [], [], 0)[0]:
            raise GuestFailed(f"{name} has just ended")
        if os.pread(memory, WORD_BYTES, address) != _word(was):
            raise GuestFailed(f"{name}: its limit of memory is not where it was")
        _raise_data_limit(guest, memory_bytes - was)
        os.pwrite(memory, _word(memory_bytes), address)
    except OSError as error:
        raise GuestFailed(f"{name}: its limit of memory cannot be changed: {error.strerror}") from error
    finally:
        os.close(memory)


def _word(number: int) -> bytes:
    return number.to_bytes(WORD_BYTES, "little")


def _raise_data_limit(guest: Guest, by_bytes: int) -> None:
    """Raises OSError."""
    try:
        _prlimit(guest.pid, by_bytes)
    except PermissionError:
        if guest.order.uid is None:
            raise
        _as_user(guest.order.uid, guest.pid, by_bytes)


def _prlimit(pid: int, by_bytes: int) -> None:
    soft, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        most = soft + by_bytes
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (wanted, hard))


def _as_user(uid: int, pid: int, by_bytes: int) -> None:
    """The limits of another user's process are that user's to change, or a capability's that containers rarely have
    (`CAP_SYS_RESOURCE`). Raises PermissionError."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            _prlimit(pid, by_bytes)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise PermissionError(1, "the limit of its process may not be changed")
