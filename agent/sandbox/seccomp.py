"""System-call filters of a guest's process: what it may call, and what the supervisor answers in its place.

Two filters, installed one after the other by the guest itself:

- **Questions** (only for guests with listeners or connections): `bind`, `listen`, `connect`, and `socket` for datagrams
  stop the caller until the supervisor has answered (`SECCOMP_RET_USER_NOTIF`). The notification descriptor goes to the
  supervisor; `agent.supervisor.notify` answers.
- **Allow-list**: everything that is not listed fails with EPERM. Where a call is harmless only with certain arguments,
  those that are passed by value are checked; what is passed in memory can be changed by another thread after a check,
  so calls that hide their meaning there are refused (`sendmsg`), or made to look absent (`clone3`).

Of two filters' verdicts the kernel takes the stricter one, and "refuse" is stricter than "ask".

Format: `struct seccomp_data` and the `SECCOMP_*` constants of `linux/seccomp.h`. Written for x86-64 and aarch64.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
from typing import Final, NamedTuple

from agent.sandbox import bpf, linux
from agent.sandbox.bpf import Op, give, if_equal, load

RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_USER_NOTIF: Final = 0x7FC00000
RET_ALLOW: Final = 0x7FFF0000

_SET_MODE_FILTER: Final = 1
_FLAG_NEW_LISTENER: Final = 1 << 3
_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5

_NR: Final = 0
_ARCH: Final = 4

AF_INET: Final = 2
AF_INET6: Final = 10
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
_SOCK_TYPE_MASK: Final = 0xF
_IPPROTO_TCP: Final = 6
_IPPROTO_UDP: Final = 17
_MSG_FASTOPEN: Final = 0x20000000
_PROT_EXEC: Final = 4
_CLONE_THREAD: Final = 0x00010000
_CLONE_NAMESPACES: Final = 0x7E020080
"""Every CLONE_NEW* flag."""

_FCNTL_COMMANDS: Final = (0, 1, 2, 3, 4, 1030)
"""Duplicating, and reading and setting flags; not owners and signals."""
_IOCTL_REQUESTS: Final = (0x5421, 0x541B, 0x5401)
"""FIONBIO, FIONREAD, TCGETS (is this a terminal?). Above all not the notification descriptor's own requests."""
_PRCTL_OPTIONS: Final = (linux.PR_SET_NAME, 0x53564D41)
"""Naming threads and anonymous memory."""
_SOCKET_OPTIONS: Final = {
    1: (2, 7, 8, 9),
    _IPPROTO_TCP: (1, 4, 5, 6, 18),
    0: (2,),
    41: (16, 26),
}
"""Level to options: reuse of addresses, buffers, keep-alive; no delay, keep-alive's times, user timeout; hop limits;
IPv6 only. Above all not SO_ATTACH_REUSEPORT_*: it would let a guest decide who gets a connection; and not SO_LINGER,
SO_SNDTIMEO: the supervisor relies on the guest's socket not to make it wait."""

# Name: number on x86-64, number on aarch64 (None: it has no such call).
_ALLOWED: Final[dict[str, tuple[int, int | None]]] = {
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "futex": (202, 98),
    "recvfrom": (45, 207),
    "write": (1, 64),
    "read": (0, 63),
    "accept4": (288, 242),
    "epoll_ctl": (233, 21),
    "close": (3, 57),
    "shutdown": (48, 210),
    "clock_gettime": (228, 113),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_create1": (291, 20),
    "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "brk": (12, 214),
    "madvise": (28, 233),
    "mincore": (27, 232),
    "membarrier": (324, 283),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "openat": (257, 56),
    "openat2": (437, 437),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "faccessat2": (439, 439),
    "lseek": (8, 62),
    "getdents64": (217, 61),
    "readlinkat": (267, 78),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "linkat": (265, 37),
    "symlinkat": (266, 36),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "fadvise64": (221, 223),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "utimensat": (280, 88),
    "getcwd": (79, 17),
    "dup": (32, 23),
    "dup3": (292, 24),
    "pipe2": (293, 59),
}
_CHECKED: Final[dict[str, tuple[int, int]]] = {
    "socket": (41, 198),
    "bind": (49, 200),
    "listen": (50, 201),
    "connect": (42, 203),
    "setsockopt": (54, 208),
    "sendto": (44, 206),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "prctl": (157, 167),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
}
_SECCOMP: Final = (317, 277)
_PID_TO_COME: Final = 0x7FEDCBA9
"""Larger than any pid (PID_MAX_LIMIT is 2^22)."""


class SandboxUnavailable(Exception):
    """This host cannot close the sandbox. The message says what is missing."""


class Architecture(NamedTuple):
    """What a filter has to know of a processor architecture."""

    audit: int
    """`AUDIT_ARCH_*`: what the kernel tells a filter."""
    column: int
    """Place in the tables of this module."""


_ARCHITECTURES: Final = {"x86_64": Architecture(0xC000003E, 0), "aarch64": Architecture(0xC00000B7, 1)}


def architecture(machine: str | None = None) -> Architecture:
    """Raises SandboxUnavailable for one that the tables do not have."""
    name = machine or linux.machine()
    if name not in _ARCHITECTURES:
        raise SandboxUnavailable(f"system-call filters are written for x86-64 and aarch64, not for {name}")
    return _ARCHITECTURES[name]


def number_of(name: str, arch: Architecture) -> int:
    """The system call's number."""
    number = (_CHECKED.get(name) or _ALLOWED[name])[arch.column]
    if number is None:
        raise KeyError(name)
    return number


class NetworkRights(NamedTuple):
    """What a guest's sockets may be, in terms that a filter can check."""

    tcp: bool
    udp: bool
    send_to_anyone: bool
    """A UDP listener answers whoever wrote to it, so it may name an address when it sends; others may not."""


def question_filter(arch: Architecture) -> list[Op]:
    """The first filter: what the supervisor is asked."""
    asked = [if_equal(number_of(name, arch), "ask") for name in ("bind", "listen", "connect")]
    return [
        *_of_this_architecture(arch),
        *asked,
        if_equal(number_of("socket", arch), None, "allow"),
        _argument(1),
        Op(bpf.AND, _SOCK_TYPE_MASK),
        if_equal(SOCK_DGRAM, "ask"),
        give(RET_ALLOW, label="allow"),
        give(RET_USER_NOTIF, label="ask"),
    ]


def allow_filter(arch: Architecture, pid: int, network: NetworkRights) -> list[Op]:
    """The second filter: what may be called at all. `pid` is the guest's own."""
    numbers = [number[arch.column] for number in _ALLOWED.values()]
    checks: dict[str, list[Op]] = {
        "mmap": _no_bit(2, _PROT_EXEC),
        "mprotect": _no_bit(2, _PROT_EXEC),
        "clone": _thread_only(),
        "clone3": [give(RET_ERRNO | errno.ENOSYS)],
        "fcntl": _one_of(1, _FCNTL_COMMANDS),
        "ioctl": _one_of(1, _IOCTL_REQUESTS),
        "prctl": _one_of(0, _PRCTL_OPTIONS),
        "tgkill": _one_of(0, (pid,)),
        "prlimit64": [_argument(0), if_equal(0, None, "refuse"), *_null(2)],
        **_network_checks(network),
    }
    return [
        *_of_this_architecture(arch),
        *[if_equal(number, "allow") for number in numbers if number is not None],
        *[if_equal(number_of(name, arch), name) for name in checks],
        give(RET_ERRNO | errno.EPERM),
        give(RET_ALLOW, label="allow"),
        *[op for name, check in checks.items() for op in _block(name, check)],
    ]


def _network_checks(network: NetworkRights) -> dict[str, list[Op]]:
    # A connection could also be opened by a first `sendto` with an address and MSG_FASTOPEN, past `connect`; and what a
    # guest tells its supervisor goes through `send`, which is a `sendto` without an address.
    without_address = _null(4)
    if not (network.tcp or network.udp):
        return {"sendto": without_address}
    answering = [_argument(3), Op(bpf.JUMP_ANY_BIT, _MSG_FASTOPEN, "refuse", "allow")]
    return {
        "socket": _socket_check(network),
        "bind": [give(RET_ALLOW)],
        "listen": [give(RET_ALLOW)],
        "connect": [give(RET_ALLOW)],
        "setsockopt": _option_check(),
        "sendto": answering if network.send_to_anyone else without_address,
    }


def _socket_check(network: NetworkRights) -> list[Op]:
    """IPv4 or IPv6; a stream over TCP or datagrams over UDP (not, say, multipath TCP, which has its own rules)."""
    return [
        _argument(0),
        if_equal(AF_INET, "family"),
        if_equal(AF_INET6, None, "refuse"),
        _argument(1, label="family"),
        Op(bpf.AND, _SOCK_TYPE_MASK),
        if_equal(SOCK_STREAM, "stream" if network.tcp else "refuse"),
        if_equal(SOCK_DGRAM, "datagram" if network.udp else "refuse", "refuse"),
        _argument(2, label="datagram"),
        if_equal(0, "allow"),
        if_equal(_IPPROTO_UDP, "allow", "refuse"),
        _argument(2, label="stream"),
        if_equal(0, "allow"),
        if_equal(_IPPROTO_TCP, "allow", "refuse"),
    ]


def _option_check() -> list[Op]:
    ops = [_argument(1)]
    ops += [if_equal(level, f"level-{level}") for level in _SOCKET_OPTIONS]
    ops.append(give(RET_ERRNO | errno.EPERM))
    for level, options in _SOCKET_OPTIONS.items():
        ops.append(_argument(2, label=f"level-{level}"))
        ops += [if_equal(option, "allow") for option in options]
        ops.append(give(RET_ERRNO | errno.EPERM))
    return ops


def _of_this_architecture(arch: Architecture) -> list[Op]:
    """Another architecture's numbers mean other calls. Leaves the call's number loaded. (x32's numbers have bit 30 set,
    so no table holds them.)"""
    return [load(_ARCH), if_equal(arch.audit, "native"), give(RET_KILL_PROCESS), load(_NR, label="native")]


def _argument(index: int, *, high: bool = False, label: str | None = None) -> Op:
    """Load half of an argument; both architectures are little-endian."""
    return load(16 + 8 * index + (4 if high else 0), label=label)


def _null(index: int) -> list[Op]:
    """Only where a pointer is null."""
    return [_argument(index), if_equal(0, None, "refuse"), _argument(index, high=True), if_equal(0, "allow", "refuse")]


def _no_bit(index: int, bits: int) -> list[Op]:
    return [_argument(index), Op(bpf.JUMP_ANY_BIT, bits, "refuse", "allow")]


def _one_of(index: int, values: tuple[int, ...]) -> list[Op]:
    return [_argument(index), *[if_equal(value, "allow") for value in values]]


def _thread_only() -> list[Op]:
    """A new thread, not a new process, and in no namespace of its own. (`clone3` hides its flags in memory; told that
    it does not exist, the C library uses `clone`.)"""
    return [
        _argument(0),
        Op(bpf.JUMP_ANY_BIT, _CLONE_NAMESPACES, "refuse"),
        Op(bpf.JUMP_ANY_BIT, _CLONE_THREAD, "allow", "refuse"),
    ]


def _block(name: str, check: list[Op]) -> list[Op]:
    """A check under its name, with places of its own for `allow` and `refuse`; what falls through is refused."""

    def local(label: str | None) -> str | None:
        return None if label is None else f"{name}:{label}"

    ops = [Op(op.code, op.value, local(op.then), local(op.otherwise), local(op.label)) for op in check]
    ops[0] = ops[0]._replace(label=name)
    return [
        *ops,
        give(RET_ERRNO | errno.EPERM, label=f"{name}:refuse"),
        give(RET_ALLOW, label=f"{name}:allow"),
    ]


def install_questions() -> int:
    """Install the first filter on this thread; the notification descriptor. Raises SandboxUnavailable, OSError."""
    arch = architecture()
    flags = _FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV
    return _install("system-call questions (Linux 5.19)", arch, _questions(), flags)


def install_allow_list(pid: int, network: NetworkRights) -> None:
    """Install the second filter on this thread. Raises SandboxUnavailable, OSError."""
    arch = architecture()
    code = _allow_template(network).replace(_PID_TO_COME.to_bytes(4, "little"), pid.to_bytes(4, "little"))
    _install("system-call allow-list", arch, code, 0)


def prepare() -> None:
    """Assemble the filters beforehand, in the process that will fork the guests."""
    with contextlib.suppress(SandboxUnavailable):
        _questions()
        for rights in itertools.product((False, True), repeat=3):
            _allow_template(NetworkRights(*rights))


@functools.cache
def _questions() -> bytes:
    return bpf.assemble(question_filter(architecture()))


@functools.cache
def _allow_template(network: NetworkRights) -> bytes:
    """The second filter, with a number that is nobody's where the guest's pid belongs."""
    return bpf.assemble(allow_filter(architecture(), _PID_TO_COME, network))


def _install(what: str, arch: Architecture, code: bytes, flags: int) -> int:
    program = bpf.Program(code)
    return linux.syscall(what, _SECCOMP[arch.column], _SET_MODE_FILTER, flags, program.struct)
