"""The few Linux calls that Python's standard library does not offer, through the C library.

Each function does one call and raises OSError, with the name of what failed, where the kernel refuses. Numbers are
those of `include/uapi` and, for system calls, of the architecture's table; the calls used here have the same number on
every architecture that has them at all (they were added after the tables were unified).
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
from pathlib import Path
from typing import Final

SYS_PIDFD_GETFD: Final = 438
SYS_CLOSE_RANGE: Final = 436

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

_CAPABILITY_VERSION_3: Final = 0x20080522
_LAST_CAPABILITY: Final = 63
"""No kernel has more; dropping one that does not exist is refused, and that is fine."""

MAX_PASSED_FDS: Final = 8
MAX_INTERRUPTIONS: Final = 1000

_libc = ctypes.CDLL(None, use_errno=True)


def machine() -> str:
    """`x86_64` or `aarch64` or whatever else `uname` says."""
    return platform.machine()


def syscall(what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A raw system call. Integers are passed as longs. Raises OSError naming `what`."""
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *passed)
    if result < 0:
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, f"{what}: {os.strerror(number_of_error)}")
    return result


def prctl(what: str, option: int, argument: int = 0) -> None:
    unused = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(argument), unused, unused, unused) < 0:
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, f"{what}: {os.strerror(number_of_error)}")


def no_new_privileges() -> None:
    """From here on neither this process nor a child can gain privileges, by any program it runs."""
    prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process, so that it learns how they ended."""
    prctl("become subreaper", PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, signal_number: int) -> None:
    """Have the kernel send a signal when the parent ends; ends at once if it has ended already."""
    prctl("parent death signal", PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(0)


def set_process_name(name: str) -> None:
    """What `ps` and `top` show (15 bytes)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl("process name", PR_SET_NAME, ctypes.addressof(buffer))


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not in `keep`."""
    first = 0
    for descriptor in [*sorted(keep), 1 << 31]:
        if descriptor > first:
            syscall("close_range", SYS_CLOSE_RANGE, first, descriptor - 1, 0)
        first = descriptor + 1


def drop_bounding_set() -> None:
    """Give up the possibility to gain a capability by running a program. Does nothing where there are none to give up.
    Must come before the user is changed, which takes the right to do this."""
    if os.geteuid() != 0:
        return
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl("capability bounding set", PR_CAPBSET_DROP, capability)
        except OSError:
            break


def drop_capabilities() -> None:
    """Give up every capability that this process has."""
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), 8)
    nothing = ctypes.create_string_buffer(bytes(24), 24)
    if _libc.capset(header, nothing) < 0:
        raise OSError(ctypes.get_errno(), "drop capabilities")


def ioctl(descriptor: int, request: int, argument: bytes | bytearray) -> int:
    """As `fcntl.ioctl`, which alone of Python's system calls is not made again when a signal interrupts it. A
    `bytearray` is filled in. Raises OSError."""
    for _ in range(MAX_INTERRUPTIONS):
        with contextlib.suppress(InterruptedError):
            answer = fcntl.ioctl(descriptor, request, argument)
            return answer if isinstance(answer, int) else 0
    raise InterruptedError(errno.EINTR, "ioctl interrupted again and again")


def pidfd_getfd(pidfd: int, descriptor: int) -> int:
    """A duplicate of another process's descriptor. Needs what `ptrace` would need."""
    return syscall("pidfd_getfd", SYS_PIDFD_GETFD, pidfd, descriptor, 0)


def send_with_fds(channel: socket.socket, message: bytes, descriptors: list[int]) -> None:
    """One message of a packet socket, with descriptors beside it."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([message], rights)


def receive_with_fds(channel: socket.socket, max_bytes: int) -> tuple[bytes, list[int]]:
    """One message of a packet socket and the descriptors that came with it (close-on-exec is set on them)."""
    room = socket.CMSG_SPACE(MAX_PASSED_FDS * array.array("i").itemsize)
    message, ancillary, _, _ = channel.recvmsg(max_bytes, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return message, list(descriptors)


def threads_of(pid: int) -> list[int]:
    """Raises OSError where there is no such process."""
    return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]


def data_bytes() -> int:
    """This process's private writable memory as RLIMIT_DATA counts it (`VmData` of `/proc/self/status`)."""
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmData:"))
    return int(kib) << 10


def process_start_ticks(pid: int) -> int | None:
    """When a process was started, in clock ticks after boot: with the pid it names a process for good. None when there
    is no such process. Field 22 of `/proc/<pid>/stat`; the name before it may hold spaces and brackets."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        fields = stat.rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if len(fields) > 19 else None


def disconnect(descriptor: int) -> None:
    """Dissolve a datagram socket's association (`connect` to AF_UNSPEC, which Python's socket cannot say)."""
    if _libc.connect(descriptor, bytes(16), 16) < 0:
        raise OSError(ctypes.get_errno(), "disconnect")


RENAME_EXCHANGE: Final = 2
AT_FDCWD: Final = -100


def exchange(one: Path, other: Path) -> None:
    """Give two directories each other's names, in one step."""
    if _libc.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) < 0:
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, f"exchange {one} and {other}: {os.strerror(number_of_error)}")


CLONE_NEWNS: Final = 0x00020000
CLONE_NEWNET: Final = 0x40000000
SIOCGSKNS: Final = 0x894C
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REC: Final = 0x4000
MS_SLAVE: Final = 1 << 19


def own_mounts() -> None:
    """What this process mounts from here on nobody else sees, and it goes with the process; what others unmount goes
    here too."""
    if _libc.unshare(CLONE_NEWNS) < 0:
        raise OSError(ctypes.get_errno(), "mount namespace")
    mount("nothing", "/", "none", MS_REC | MS_SLAVE)


def own_network() -> None:
    """This process is in a network namespace of its own from here on, an empty one."""
    if _libc.unshare(CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "network namespace")


def join_network(descriptor: int) -> None:
    """This thread is in that network namespace from here on; sockets that it has stay where they were made."""
    if _libc.setns(descriptor, CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "join a network namespace")


def namespace_of(sock: socket.socket) -> int:
    """A descriptor of the network namespace that a socket was made in. Raises OSError."""
    return fcntl.ioctl(sock, SIOCGSKNS)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """As the command of that name."""
    what = [os.fsencode(text) for text in (source, target, kind)]
    if _libc.mount(*what, ctypes.c_ulong(flags), os.fsencode(options)) < 0:
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, f"mount {source} at {target}: {os.strerror(number_of_error)}")
