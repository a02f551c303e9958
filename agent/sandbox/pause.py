"""Stopping a guest's process for an instant, in a way that cannot outlast whoever stopped it.

The process is held as a debugger holds one (`PTRACE_SEIZE`, `PTRACE_INTERRUPT`): when the holder lets go, ends or is
killed, in whatever way, the kernel lets every thread go on. A stopped process (`SIGSTOP`) or a frozen control group
would stay so. A timer of the kernel ends the holder itself where it is stuck. Connections wait meanwhile; a system call
that was waiting begins anew, as after any signal. Threads belong to the thread that seized them: hold and let go in one
thread.

Requests: ptrace(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agent.sandbox import linux

_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_DETACH: Final = 17
_EVENT_STOP: Final = 128
_WAIT_ALL_THREADS: Final = 0x40000000
GRACE_S: Final = 1.0
"""A holder that is so much late is ended by the kernel."""
LOOK_S: Final = 0.0002


class PauseFailed(Exception):
    """The process goes on; the message says why it could not be held."""


@contextmanager
def paused(pid: int, within_s: float) -> Iterator[None]:
    """Hold every thread of a process. Where this takes longer than `within_s` and a grace, this very process is ended
    by SIGALRM. Raises PauseFailed, and PermissionError where this process may not hold that one. After PauseFailed this
    process must end: threads that did not stop in time are let go with it."""
    deadline = time.monotonic() + within_s
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, within_s + GRACE_S)
    held: dict[int, int] = {}
    """Thread to the signal that it is to be given when it goes on; 0 for none."""
    try:
        _hold_all(pid, held, deadline)
        yield
    finally:
        for thread, number in held.items():
            with contextlib.suppress(OSError):
                _ptrace("let go", _DETACH, thread, number)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hold_all(pid: int, held: dict[int, int], deadline: float) -> None:
    """A thread that is not held may start another, so look until all are."""
    while True:
        try:
            fresh = [thread for thread in linux.threads_of(pid) if thread not in held]
        except OSError as error:
            raise PauseFailed(f"the process {pid} has ended") from error
        if not fresh:
            return
        for thread in fresh:
            try:
                _ptrace("hold", _SEIZE, thread)
            except ProcessLookupError:
                continue
            held[thread] = 0
            _ptrace("stop", _INTERRUPT, thread)
        for thread in fresh:
            if thread in held and (number := _wait_stopped(thread, deadline)) is not None:
                held[thread] = number
            else:
                held.pop(thread, None)


def _wait_stopped(thread: int, deadline: float) -> int | None:
    """The signal that a thread was about to be given when it stopped; None where it has ended."""
    while True:
        try:
            ended, status = os.waitpid(thread, _WAIT_ALL_THREADS | os.WNOHANG)
        except ChildProcessError:
            return None
        if ended:
            if not os.WIFSTOPPED(status):
                return None
            return 0 if status >> 16 == _EVENT_STOP else os.WSTOPSIG(status)
        if time.monotonic() > deadline:
            raise PauseFailed("its threads did not stop in time")
        time.sleep(LOOK_S)


def _ptrace(what: str, request: int, thread: int, data: int = 0) -> None:
    if _libc.ptrace(request, thread, None, ctypes.c_void_p(data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
