"""What this host can promise about a guest, and by what: the table that `host show` prints.

Nothing is given that is not enforced from outside the guest's program, in this version, on this kernel; what is done
without that is soft. A row that is not given says what is missing. `tests/agent/runtime/test_guarantees.py` says which
tests try to break every row that is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from agent.api.facts import Guarantee
from agent.daemon.networking import DEFAULT, Mode, why_not
from agent.daemon.users import FIRST, LAST
from agent.sandbox import landlock, privileges, seccomp
from agent.sandbox.cgroups import CPUSET, MAX_THREADS

_ACTIONS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")
_QUESTIONS_SINCE: Final = (5, 19)
_SIGNAL_SCOPE_ABI: Final = 6
_TRUNCATE_ABI: Final = 3
_NOT_CLOSED: Final = "the agent may make no cpuset partition here (version 2 of control groups, as root)"
_NO_GROUP: Final = "the agent may make no control groups here"


def guarantees(
    groups: Mapping[str, int] | None = None, *, pinned_to: Sequence[int] = (0,), network: Mode = DEFAULT
) -> tuple[Guarantee, ...]:
    """The table for this host, now. `groups`: by which version of control groups each controller can be had
    (`agent.sandbox.cgroups`). `pinned_to`: the CPUs that are given to one process alone; none where several agents
    share them. `network`: which guests get a network namespace. Reads a few files of `/proc`, and changes nothing. Call
    it in a thread."""
    groups = groups or {}
    return (
        _memory(groups),
        _cores(groups, pinned_to),
        _cpu_share(groups),
        _threads(groups),
        _disk(),
        _files(landlock.abi()),
        *_network(network),
        _own_user(),
        Guarantee("no-new-privileges", True, "no_new_privs, every capability dropped"),
        _system_calls(),
        _signals(landlock.abi()),
    )


def _memory(groups: Mapping[str, int]) -> Guarantee:
    version = groups.get("memory")
    also = f", and a control group (version {version}), which counts sockets and files too" if version else ""
    return Guarantee(
        "memory",
        True,
        f"the engine's limit per linear memory; RLIMIT_DATA for the whole process, 96 MiB above the limit{also}",
    )


def _cores(groups: Mapping[str, int], pinned_to: Sequence[int]) -> Guarantee:
    if not pinned_to:
        how = "several agents share this machine, so no core is one process's alone"
        return Guarantee("cores", False, how, soft=True)
    if CPUSET not in groups:
        return Guarantee("cores", True, f"no other guest: CPU affinity. Other programs may run there: {_NOT_CLOSED}")
    first = f"CPU {min(pinned_to)} stays open to the machine's other programs, whoever has it"
    return Guarantee("cores", True, f"no other program: a partition of the machine's CPUs (cpuset). {first}")


def _cpu_share(groups: Mapping[str, int]) -> Guarantee:
    if "cpu" in groups:
        how = f"a control group (version {groups['cpu']}): its share where others want the core too, more where not"
        return Guarantee("cpu-share", True, how)
    return Guarantee("cpu-share", False, f"{_NO_GROUP}; the kernel shares evenly among threads", soft=True)


def _threads(groups: Mapping[str, int]) -> Guarantee:
    by_user = "" if privileges.no_users(FIRST, LAST) else f"RLIMIT_NPROC of its own user: {MAX_THREADS}"
    by_group = f"a control group (version {groups['pids']}): {MAX_THREADS}" if "pids" in groups else ""
    how = "; ".join(part for part in (by_group, by_user) if part)
    return Guarantee("threads", True, how) if how else Guarantee("threads", False, _NO_GROUP)


def _disk() -> Guarantee:
    problem = privileges.no_images()
    if not problem:
        how = "each volume a file system of its size (ext4, loop device), scratch a tmpfs"
        later = privileges.no_growing()
        grows = f"at its process's next start: {later}" if later else "while it is in use"
        return Guarantee("disk", True, f"{how}; a volume grows {grows}")
    how = f"what is used is shown, but no size is enforced: {problem}"
    return Guarantee("disk", False, how, soft=True)


def _files(abi: int) -> Guarantee:
    if abi == 0:
        return Guarantee(
            "files", False, "this kernel has no Landlock, or it is switched off: only the engine checks paths"
        )
    note = "" if abi >= _TRUNCATE_ABI else "; truncating read-only files is checked by the engine alone"
    return Guarantee("files", True, f"its configuration files and volumes only; Landlock ABI {abi}{note}")


def _network(mode: Mode) -> list[Guarantee]:
    problem = _questions_problem()
    if problem:
        return [Guarantee(name, False, problem) for name in ("tcp-listeners", "tcp-connections", "udp", "udp-egress")]
    also = ""
    if mode == "namespaces":
        also = "; and once more by nftables at the interface of its network namespace"
    return [
        Guarantee("tcp-listeners", True, "the definition's only; the supervisor makes them (seccomp notification)"),
        Guarantee(
            "tcp-connections", True, f"the definition's only, by address and port; the supervisor connects{also}"
        ),
        Guarantee("udp", True, "no datagram socket unless the definition names one; listeners are the supervisor's"),
        _udp_egress(mode),
        Guarantee("names", True, "name resolution is switched off"),
    ]


def _udp_egress(mode: Mode) -> Guarantee:
    problem = "the agent runs with --network listeners" if mode == "listeners" else why_not()
    if problem:
        return Guarantee("udp-egress", False, f"a process with a UDP listener can send to any address: {problem}")
    whose = "guests have" if mode == "namespaces" else "a guest with a UDP listener has"
    return Guarantee("udp-egress", True, f"{whose} a network namespace: answers and declared peers only (nftables)")


def _own_user() -> Guarantee:
    problem = privileges.no_users(FIRST, LAST)
    if problem:
        return Guarantee("own-user", False, f"all guests share a user: {problem}")
    return Guarantee("own-user", True, f"each process has its own from {FIRST} up, for ever, and its volumes with it")


def _system_calls() -> Guarantee:
    problem = _seccomp_problem()
    return Guarantee(
        "system-calls", not problem, problem or "seccomp allow-list; no new processes, no executable memory"
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
