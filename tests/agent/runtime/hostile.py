"""A guest's process in which native code runs instead of a WebAssembly program: what a program that had broken out of
the engine could do. Started by the tests as `python -m tests.agent.runtime.hostile ORDER OUTPUT CONTROL` (descriptors);
it closes the same sandbox around itself as every guest, then tries each attempt that its arguments name, and prints
`<attempt> <what came of it>` for each: `ok`, or the error's name. A fourth descriptor is its network namespace.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401 - what Python imports on demand must be here before the sandbox closes
import errno
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from agent.runtime import GuestOrder
from agent.sandbox import guest, linux
from agent.supervisor.wire import Born, Running, Sandboxed

_libc = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: int) -> None:
    """A raw system call (x86-64)."""
    linux.syscall("call", number, *arguments)


def tcp() -> socket.socket:
    fresh = socket.socket()
    fresh.setblocking(False)
    return fresh


def connect(address: str, port: str) -> str:
    """Connect, wait for the outcome, say what the other end says."""
    with tcp() as connection:
        failure = connection.connect_ex((address, int(port)))
        if failure not in (0, errno.EINPROGRESS):
            raise OSError(failure, "connect")
        connection.setblocking(True)
        return connection.recv(100).decode()


def blocking_connect(address: str, port: str) -> None:
    with socket.socket() as connection:
        connection.connect((address, int(port)))


def fast_open(address: str, port: str) -> None:
    with socket.socket() as connection:
        connection.sendto(b"x", 0x20000000, (address, int(port)))


def bind(address: str, port: str) -> None:
    with tcp() as listener:
        listener.bind((address, int(port)))
        listener.listen()


def listen_unbound() -> None:
    with tcp() as listener:
        listener.listen()


def pair_over_loopback() -> str:
    """What asyncio does where there is no socketpair."""
    with tcp() as listener, tcp() as one:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        failure = one.connect_ex(listener.getsockname())
        assert failure in (0, errno.EINPROGRESS), errno.errorcode[failure]
        listener.setblocking(True)
        other, _ = listener.accept()
        with other:
            other.sendall(b"through the pair")
            one.setblocking(True)
            return one.recv(100).decode()


def own_port_on_another_address() -> None:
    with tcp() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        connect("127.0.0.2", str(listener.getsockname()[1]))


def own_port_once_it_is_closed() -> None:
    with tcp() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
    connect("127.0.0.1", port)


def take_over_the_group(port: str) -> None:
    """Become the one that decides who gets connections."""
    with tcp() as listener:
        listener.bind(("127.0.0.1", int(port)))
        listener.listen()
        code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0), 8)
        listener.setsockopt(socket.SOL_SOCKET, 51, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))


def udp_echo_once(port: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", int(port)))
        server.setblocking(True)
        os.write(1, b"bound\n")
        data, peer = server.recvfrom(100)
        server.sendto(data.upper(), peer)
        return f"answered {data.decode()}"


def udp_connected(address: str, port: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((address, int(port)))
        client.setblocking(True)
        client.send(b"ask")
        return client.recv(100).decode()


def udp_from_listener(own_port: str, *targets: str) -> None:
    """Send from a declared listener, in this order, whatever becomes of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", int(own_port)))
        for target in targets:
            address, _, port = target.partition("/")
            server.sendto(b"out", (address, int(port)))


def udp_to_anyone(address: str, port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", (address, int(port)))


def read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    return os.read(descriptor, 100).decode(errors="replace").split("\n")[0]


def write(path: str) -> None:
    os.write(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), b"written")


def memory(mib: str) -> None:
    kept = [bytearray(1 << 20) for _ in range(int(mib))]
    assert kept


def threads(count: str) -> str:
    threading.stack_size(32 << 10)
    for made in range(int(count)):
        try:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        except RuntimeError:
            return f"stopped before {(made // 100 + 1) * 100}"
    return "ok"


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def limits() -> None:
    unlimited = ctypes.create_string_buffer(b"\xff" * 16, 16)
    call(302, 0, resource.RLIMIT_DATA, ctypes.addressof(unlimited), 0)


LIMIT_ADDRESS = 0x1000_0000
"""What our own code in a guest's process tells the supervisor, as if the engine kept its limit there."""


def say_where(address: str) -> None:
    """Name the supervisor another place for the limit of memory, on every descriptor that takes it."""
    message = msgspec.msgpack.encode(Sandboxed(int(address)))
    taken = 0
    for descriptor in range(3, 64):
        try:
            taken += os.write(descriptor, message) > 0
        except OSError:
            continue
    if not taken:
        raise OSError(errno.EBADF, "no descriptor takes it")


def answer_itself() -> None:
    """Take a question from a notification descriptor, if one were left open."""
    for descriptor in range(3, 64):
        if _libc.ioctl(descriptor, ctypes.c_ulong(0xC0502100), ctypes.create_string_buffer(80)) == 0:
            return
    raise OSError(ctypes.get_errno(), "no descriptor")


ATTEMPTS: dict[str, Callable[..., str | None]] = {
    "connect": connect,
    "blocking-connect": blocking_connect,
    "fast-open": fast_open,
    "bind": bind,
    "listen-unbound": listen_unbound,
    "pair": pair_over_loopback,
    "own-port-elsewhere": own_port_on_another_address,
    "own-port-closed": own_port_once_it_is_closed,
    "take-over": take_over_the_group,
    "udp-echo": udp_echo_once,
    "udp-connected": udp_connected,
    "udp-from-listener": udp_from_listener,
    "udp-to-anyone": udp_to_anyone,
    "read": read,
    "write": write,
    "memory": memory,
    "threads": threads,
    "fork": fork,
    "executable-memory": executable_memory,
    "limits": limits,
    "answer-itself": answer_itself,
    "say-where": say_where,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "affinity": lambda: os.sched_setaffinity(0, range(2)),
    "signal-parent": lambda: os.kill(os.getppid(), 0),
    "signal-any": lambda pid: os.kill(int(pid), signal.SIGKILL),
    "become-root": lambda: os.setuid(0),
    "unix-socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "netlink-socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
    "raw-socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "udp-socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "tcp-socket": lambda: socket.socket().close(),
    "multipath-socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close(),
    "ptrace": lambda: call(101, 16, os.getppid()),
    "process-memory": lambda: call(310, os.getppid(), 0, 0, 0, 0, 0),
    "mount": lambda: call(165, 0, 0, 0, 0, 0),
    "unshare": lambda: call(272, 0x10000000),
    "bpf": lambda: call(321, 0, 0, 0),
    "io-uring": lambda: call(425, 1, 0),
    "keys": lambda: call(250, 0, -3, 0),
    "user-faults": lambda: call(323, 0),
    "other-numbers": lambda: call(0x40000000 | 39),
}


def main(order_file: int, output: int, control_descriptor: int, network: int | None = None) -> None:
    body = os.pread(order_file, os.fstat(order_file).st_size, 0)
    order = msgspec.msgpack.decode(body, type=GuestOrder)
    control = socket.socket(fileno=control_descriptor)
    guest.tell(control, Born(os.getpid()))
    if network is not None:
        linux.join_network(network)
    guest.become_separate(order, control.fileno(), output)
    rules = guest.open_directories(order)
    guest.take_user(order.uid)
    guest.limit_memory(order.memory_bytes)
    guest.close_sandbox(order, control, rules, LIMIT_ADDRESS)
    guest.tell(control, Running())
    for attempt in order.args:
        name, *arguments = attempt.split(",")
        try:
            result = ATTEMPTS[name](*arguments) or "ok"
        except OSError as error:
            result = errno.errorcode.get(error.errno or 0, str(error))
        except MemoryError:
            result = "MemoryError"
        os.write(1, f"{attempt} {result}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
