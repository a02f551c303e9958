"""What happens in a guest's process, from the fork to the end of its program.

The order matters. What needs rights comes first (loading the compiled code, mounting and opening the guest's
directories), what takes them away after it, and nothing of the guest's program runs before the sandbox is closed. Until
then the process is single-threaded: Landlock and seccomp bind the calling thread and what it starts later, so a thread
that existed already would stay free; this is checked.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from typing import Final, NoReturn

import msgspec

from agent.api.processes import Endpoint
from agent.runtime import MEMORY_OVERHEAD_BYTES, GuestOrder
from agent.sandbox import cgroups, landlock, linux, mounts, ownership, seccomp
from agent.sandbox.engine import EXIT_NOT_STARTED, MAX_REASON_BYTES, Directory, Engine, Program
from agent.supervisor.wire import Born, Failed, FromGuest, Running, Sandboxed

MAX_OPEN_FILES: Final = 4096
MAX_PROCESSES: Final = 512
"""Threads of one guest's uid; set only where the guest has a uid of its own, because the limit counts per user."""


def run_guest(
    engine: Engine, order: GuestOrder, control: socket.socket, output: int, network: int | None = None
) -> NoReturn:
    """Become the guest. Never returns: the process ends with the program's exit code. `network`: the namespace that it
    is to be in, if it is not the host's."""
    exit_code = EXIT_NOT_STARTED
    try:
        tell(control, Born(os.getpid()))
        if network is not None:
            linux.join_network(network)
        become_separate(order, control.fileno(), output)
        code = engine.load(order.code_path, order.code_kind)
        rules = open_directories(order)
        prepared = engine.prepare(code, program_of(order))
        take_user(order.uid)
        limit_memory(order.memory_bytes)
        close_sandbox(order, control, rules, prepared.limit_address)
        ended = prepared.run(lambda: tell(control, Running()))
        exit_code = ended.exit_code
        if ended.reason:
            tell(control, Failed(ended.reason))
    except BaseException as error:
        with contextlib.suppress(OSError):
            tell(control, Failed(f"{type(error).__name__}: {error}"))
    finally:
        os._exit(exit_code & 0xFF)


def program_of(order: GuestOrder) -> Program:
    """What the engine is told of an order."""
    environment = dict(order.env)
    for direction, endpoints_by_name in (("LISTEN", order.listen), ("CONNECT", order.connect)):
        for name, endpoint in endpoints_by_name.items():
            environment.setdefault(variable_of(direction, name), address_text(endpoint))
    return Program(
        args=(order.process, *order.args),
        env=environment,
        directories=tuple(Directory(p.host_path, p.guest_path, p.writable) for p in order.preopens),
        memory_bytes=order.memory_bytes,
        tcp=bool(order.endpoints),
        udp=any(e.protocol == "udp" for e in order.endpoints),
    )


def variable_of(direction: str, name: str) -> str:
    """The connection `kv-main` is found in `LOWCLOUD_CONNECT_KV_MAIN`."""
    return f"LOWCLOUD_{direction}_{name.upper().replace('-', '_')}"


def address_text(endpoint: Endpoint) -> str:
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{host}:{endpoint.port}"


def tell(control: socket.socket, message: FromGuest) -> None:
    if isinstance(message, Failed):
        message = Failed(message.reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))
    control.send(msgspec.msgpack.encode(message))


def become_separate(order: GuestOrder, control: int, output: int) -> None:
    """A session of its own, no descriptor but what it needs, and the limits of an ordinary process."""
    os.setsid()
    os.umask(0o077)
    os.chdir("/")
    linux.set_process_name(order.process)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    linux.close_all_but({0, 1, 2, control})
    # A reading end of its own output, never read from: while a killed supervisor has no successor yet, what the program
    # prints waits in the pipe instead of failing.
    os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    for directory in order.cgroups:
        cgroups.join(directory)
    if order.cpus:
        # After the groups: CPUs that are closed to others are closed to whoever is not in theirs.
        os.sched_setaffinity(0, order.cpus)


def open_directories(order: GuestOrder) -> int | None:
    """Mount what is the guest's alone, give it to the guest's user, and name it in rules (a descriptor; None where the
    kernel has no Landlock). Raises MountFailed, OSError."""
    mounts.mount_all(order.mounts)
    if order.uid is not None:
        for preopen in order.preopens:
            if preopen.writable:
                ownership.give(preopen.host_path, order.uid)
            else:
                ownership.let_read(preopen.host_path, order.uid)
    if not landlock.abi():
        return None
    return landlock.ruleset(landlock.Directory(p.host_path, p.writable) for p in order.preopens)


def take_user(uid: int | None) -> None:
    linux.drop_bounding_set()
    if uid is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def limit_memory(memory_bytes: int) -> None:
    """A ceiling for the whole process: the engine's limit holds for each linear memory, and a program may have several,
    and tables. RLIMIT_DATA counts private writable memory, not what the engine merely reserves (RLIMIT_AS would). Only
    the soft limit is set: the filter leaves no call to change either, and from outside it can be raised later."""
    now = linux.data_bytes()
    ceiling = now + memory_bytes + MEMORY_OVERHEAD_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def close_sandbox(
    order: GuestOrder, control: socket.socket, rules: int | None, limit_address: int | None = None
) -> None:
    threads = len(linux.threads_of(os.getpid()))
    if threads != 1:
        raise RuntimeError(f"{threads} threads run before the sandbox is closed; it would not bind them")
    linux.drop_capabilities()
    linux.no_new_privileges()
    if rules is not None:
        landlock.enforce(rules)
    network = network_of(order)
    sandboxed = msgspec.msgpack.encode(Sandboxed(limit_address))
    if network.tcp:
        questions = seccomp.install_questions()
        # Stays open here as well: a supervisor that succeeds a killed one takes it from this process, and until then a
        # question waits. The filter leaves this process no call to use it with.
        linux.send_with_fds(control, sandboxed, [questions])
        seccomp.install_allow_list(os.getpid(), network)
    else:
        seccomp.install_allow_list(os.getpid(), network)
        control.send(sandboxed)


def network_of(order: GuestOrder) -> seccomp.NetworkRights:
    """What the filter is told of an order."""
    return seccomp.NetworkRights(
        tcp=bool(order.endpoints),
        udp=any(e.protocol == "udp" for e in order.endpoints),
        send_to_anyone=any(e.protocol == "udp" for e in order.listen.values()),
    )
