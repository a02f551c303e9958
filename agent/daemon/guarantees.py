"""What this host can promise about a guest, and by what: the table that `host show` prints.

Nothing is promised that is not enforced from outside the guest's program, in this version, on this kernel. A row that
is not given says what is missing. `tests/agent/runtime/test_guarantees.py` tries to break every row that is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agent.api import Guarantee
from agent.sandbox import landlock, seccomp

_ACTIONS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")
_QUESTIONS_SINCE: Final = (5, 19)
_SIGNAL_SCOPE_ABI: Final = 6
_TRUNCATE_ABI: Final = 3


def guarantees() -> tuple[Guarantee, ...]:
    """The table for this host, now. Reads a few files of `/proc`, and changes nothing."""
    return (
        _memory(),
        _cores(),
        Guarantee("cpu share", False, "a share of a core is not enforced yet; it needs a cgroup"),
        Guarantee("disk", False, "sizes of volumes and scratch space are not enforced yet; what is used is shown"),
        _files(landlock.abi()),
        *_network(),
        _own_user(os.geteuid()),
        Guarantee("no new privileges", True, "no_new_privs, every capability dropped"),
        _system_calls(),
        _signals(landlock.abi()),
    )


def _memory() -> Guarantee:
    return Guarantee(
        "memory",
        True,
        "the engine's limit per linear memory; RLIMIT_DATA for the whole process, 96 MiB above the limit",
    )


def _cores() -> Guarantee:
    return Guarantee("cores", True, "CPU affinity, which the guest cannot change; cores are not closed to others")


def _files(abi: int) -> Guarantee:
    if abi == 0:
        return Guarantee(
            "files", False, "this kernel has no Landlock, or it is switched off: only the engine checks paths"
        )
    note = "" if abi >= _TRUNCATE_ABI else "; truncating read-only files is checked by the engine alone"
    return Guarantee("files", True, f"its configuration files and volumes only; Landlock ABI {abi}{note}")


def _network() -> list[Guarantee]:
    problem = _questions_problem()
    if problem:
        return [Guarantee(name, False, problem) for name in ("tcp listeners", "tcp connections", "udp")]
    return [
        Guarantee("tcp listeners", True, "the definition's only; the supervisor makes them (seccomp notification)"),
        Guarantee("tcp connections", True, "the definition's only, by address and port; the supervisor connects"),
        Guarantee("udp", True, "no datagram socket unless the definition names one; listeners are the supervisor's"),
        Guarantee(
            "udp egress", False, "a process with a UDP listener can send to any address; it needs a network namespace"
        ),
        Guarantee("names", True, "name resolution is switched off"),
    ]


def _own_user(uid: int) -> Guarantee:
    return Guarantee(
        "own user", False, f"all guests run as uid {uid}, without capabilities; none has a user of its own"
    )


def _system_calls() -> Guarantee:
    problem = _seccomp_problem()
    return Guarantee(
        "system calls", not problem, problem or "seccomp allow-list; no new processes, no executable memory"
    )


def _signals(abi: int) -> Guarantee:
    problem = _seccomp_problem()
    more = ", Landlock scope" if abi >= _SIGNAL_SCOPE_ABI else ""
    return Guarantee("signals", not problem, problem or f"cannot signal or trace another process: seccomp{more}")


def _seccomp_problem() -> str:
    try:
        seccomp.architecture()
    except seccomp.SandboxUnavailable as error:
        return str(error)
    return "" if _ACTIONS.exists() else "this kernel has no seccomp filters"


def _questions_problem() -> str:
    problem = _seccomp_problem()
    if problem:
        return problem
    if "user_notif" not in _ACTIONS.read_text().split() or kernel_version(os.uname().release) < _QUESTIONS_SINCE:
        return "this kernel has no seccomp notifications (Linux 5.19)"
    return ""


def kernel_version(release: str) -> tuple[int, ...]:
    """The first two numbers of `uname -r`."""
    numbers = release.split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())
