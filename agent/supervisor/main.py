"""How the supervisor starts: into the background, one for a state directory, told when its socket is open.

Run as `python -P -m agent.supervisor.main STATE_DIR`; it returns when the socket is open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.sandbox import linux
from agent.supervisor import orphans
from agent.supervisor.event_loop import Loop
from agent.supervisor.supervisor import MAX_AGENTS, Supervisor
from agent.supervisor.wire import LOCK_NAME, LOG_NAME, SOCKET_NAME, STATE_NAME

MAX_LOG_BYTES: Final = 1 << 20


def main(arguments: list[str]) -> int:
    """Go into the background; 0 when the socket is open there, otherwise the reason is on standard error."""
    state_dir = Path(arguments[0])
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        if said == b"ok":
            return 0
        sys.stderr.write(said.decode(errors="replace") or "the supervisor ended while it started\n")
        return 1
    os.close(reading)
    try:
        run(state_dir, lambda: _say(writing, b"ok"))
    except BaseException as error:
        with contextlib.suppress(OSError):
            _say(writing, f"{type(error).__name__}: {error}\n".encode())
            traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _say(descriptor: int, text: bytes) -> None:
    os.write(descriptor, text)
    os.close(descriptor)


def run(state_dir: Path, on_open: Callable[[], None]) -> None:
    """Be the supervisor of a state directory until it is shut down."""
    os.setsid()
    os.umask(0o077)
    lock = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(f"another supervisor holds {state_dir / LOCK_NAME}") from None
    if not (_is_waited_for() or orphans.load(state_dir / STATE_NAME).living):
        raise RuntimeError("who started it has gone, and there are no guests to take over")
    _redirect_output(state_dir / LOG_NAME)
    linux.become_subreaper()
    linux.set_process_name("lowcloud-superv")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = Loop(on_error=lambda error: log("".join(traceback.format_exception(error))))
    supervisor = Supervisor(state_dir, loop, _listen(state_dir), log)
    _on_child(loop, supervisor.reap)
    supervisor.start()
    on_open()
    loop.run()


def _is_waited_for() -> bool:
    """Does anybody read why it cannot start? Nobody would end a supervisor whose agent has gone meanwhile."""
    looking = select.poll()
    looking.register(2, 0)
    return not any(event & select.POLLERR for _, event in looking.poll(0))


def log(text: str) -> None:
    """Into `supervisor.log`; lost where the disk is full, because nothing may end the supervisor."""
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text.rstrip()}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace"))


def _redirect_output(path: Path) -> None:
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(nothing)
    os.close(descriptor)


def _listen(state_dir: Path) -> socket.socket:
    """The socket agents come to. Reached through the directory's descriptor, because a socket's path may have at most
    107 bytes; only the owner may connect."""
    (state_dir / SOCKET_NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
    finally:
        os.close(directory)
    (state_dir / SOCKET_NAME).chmod(0o600)
    listener.listen(MAX_AGENTS)
    return listener


def _on_child(loop: Loop, reap: Callable[[], None]) -> None:
    """Call `reap` on the loop whenever a child has ended."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # A child's end must not interrupt what is done for another guest.
    signal.siginterrupt(signal.SIGCHLD, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def woken() -> None:
        os.read(reading, 4096)
        reap()

    loop.watch(reading, woken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
