"""The zygote: a process that has the engine loaded and forks guests in milliseconds.

Started by the supervisor with one packet socket (its descriptor is the argument). It says `ready`, or `unfit: <reason>`
and ends. Then each message is one order to fork, with three descriptors: the order (msgpack in a memory file), the
writing end of the output pipe, and the guest's control socket; a fourth is the guest's network namespace. It holds no
state: if it dies, the supervisor starts
another one, and no guest notices.

It stays single-threaded (a fork of a threaded process is undefined ground), so it never compiles anything; the engine's
self-test, which does, runs in a child. A guest is forked as a sibling, so that its parent is the supervisor, which
thereby learns its exact exit status.

What the first guest would load lazily is loaded before the fork, and no collector runs after it: each page that a guest
writes to is copied, and copies are most of what a start costs and of what a small guest weighs.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
from typing import Final, NoReturn

import msgspec

from agent.runtime import GuestOrder
from agent.sandbox import linux, seccomp
from agent.sandbox.engine import Engine, EngineError, EngineUnfit, check_memory_limit, check_sockets
from agent.sandbox.guest import run_guest
from agent.sandbox.zygote_protocol import FORK, MAX_CHANNEL_BYTES, READY, UNFIT
from agent.supervisor.wire import MAX_MESSAGE_BYTES

_ORDERS: Final = msgspec.msgpack.Decoder(GuestOrder)
"""Made here, because making it means compiling every annotation of the type."""
_CLONE: Final = (56, 220)
"""By `seccomp.Architecture.column`."""
_CLONE_PARENT: Final = 0x00008000
_libc: Final = ctypes.PyDLL(None, use_errno=True)
"""Keeps the interpreter's lock during a call, so that a process forked by one has it too."""


def main(channel_descriptor: int) -> int:
    linux.die_with_parent(os.getppid(), signal.SIGKILL)
    linux.set_process_name("lowcloud-zygote")
    channel = socket.socket(fileno=channel_descriptor)
    try:
        component, resizable = self_test()
    except EngineError as error:
        channel.send(UNFIT + f"{error} ({error.hint})".encode()[: MAX_CHANNEL_BYTES - len(UNFIT)])
        return 1
    engine = Engine(resizable=resizable)
    engine.warm_up(component)
    seccomp.prepare()
    gc.collect()
    gc.freeze()
    channel.send(READY)
    while True:
        message, descriptors = linux.receive_with_fds(channel, MAX_CHANNEL_BYTES)
        if not message:
            return 0
        if message == FORK and len(descriptors) in (3, 4):
            fork_guest(engine, channel, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def self_test() -> tuple[bytes, bool]:
    """See in a child that the engine can be used; the component it was shown with, compiled, and whether a guest's
    limit of memory can be raised while it runs. Raises EngineUnfit."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            said, status = check_sockets() + bytes([check_memory_limit()]), 0
        except BaseException as error:
            said = f"{error}".encode()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(said)
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise EngineUnfit(said.decode(errors="replace")[:4000] or f"the engine's self-test ended with status {status}")
    return said[:-1], bool(said[-1])


def fork_guest(engine: Engine, channel: socket.socket, descriptors: list[int]) -> None:
    """Fork a guest whose parent is the supervisor."""
    if fork_sibling() == 0:
        try:
            channel.close()
            _be_guest(engine, *descriptors)
        finally:
            os._exit(1)


def fork_sibling() -> int:
    """Fork a process that has the same parent as this one; 0 in the new process. `os.fork` cannot; what it does beside
    the call is for threads, which there are none of. Raises OSError."""
    number = _CLONE[seccomp.architecture().column]
    pid: int = _libc.syscall(number, _CLONE_PARENT | signal.SIGCHLD, None, None, None, None)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "fork a guest")
    return pid


def _be_guest(
    engine: Engine, order_file: int, output: int, control_descriptor: int, network: int | None = None
) -> NoReturn:
    control = socket.socket(fileno=control_descriptor)
    size = os.fstat(order_file).st_size
    if size > MAX_MESSAGE_BYTES:
        os._exit(1)
    gc.disable()
    order = _ORDERS.decode(os.pread(order_file, size, 0))
    run_guest(engine, order, control, output, network)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
