"""The supervisor's end of the zygote: starts it, hands it orders, replaces it when it dies.

Orders wait in the zygote's socket while it starts. An order that a dying zygote had not carried out is seen by the
guest's control socket closing; whoever gave it gives it again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from agent.runtime import GuestOrder
from agent.sandbox import linux
from agent.sandbox.zygote_protocol import FORK, MAX_CHANNEL_BYTES, READY, UNFIT
from agent.supervisor.event_loop import Loop

RESTART_DELAYS_S: Final = (0.0, 0.1, 0.5, 2.0, 10.0)
"""After that many deaths in a row before `ready`; the last one goes on."""
MAX_ORDERS_WAITING_BYTES: Final = 1 << 20


class ZygoteUnusable(Exception):
    """The engine cannot run guests here: the message says why."""


class ZygoteAway(Exception):
    """The zygote has just died, or is overloaded; it is worth trying again."""


class ZygoteLink:
    """See the module's head. `child_environment` is what the zygote, and thereby nothing of a guest, sees."""

    def __init__(self, loop: Loop, child_environment: dict[str, str], log: Callable[[str], None]) -> None:
        self.pid = 0
        self.unfit = ""
        """Why this engine cannot run guests; empty while nothing is wrong."""
        self._loop = loop
        self._environment = child_environment
        self._log = log
        self._deaths = 0
        self._stopping = False
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_ORDERS_WAITING_BYTES)
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent.sandbox.zygote", str(far.fileno())],
                env=self._environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                pass_fds=[far.fileno()],
            )
        self.pid = self._process.pid
        self._channel = near
        self._loop.watch(near.fileno(), self._read)

    def fork(self, order: GuestOrder, far_descriptors: list[int]) -> None:
        """Have a guest forked. Raises ZygoteUnusable, ZygoteAway."""
        if self.unfit:
            raise ZygoteUnusable(self.unfit)
        if self._channel is None:
            raise ZygoteAway("the zygote is being started")
        body = msgspec.msgpack.encode(order)
        file = os.memfd_create("order", os.MFD_CLOEXEC)
        try:
            os.truncate(file, len(body))
            os.pwrite(file, body, 0)
            linux.send_with_fds(self._channel, FORK, [file, *far_descriptors])
        except OSError as error:
            raise ZygoteAway(f"the zygote takes no order: {error}") from error
        finally:
            os.close(file)

    def note_exit(self) -> None:
        """The zygote was reaped."""
        self._close()
        if self._stopping or self.unfit:
            return
        delay = RESTART_DELAYS_S[min(self._deaths, len(RESTART_DELAYS_S) - 1)]
        self._deaths += 1
        self._log(f"the zygote {self.pid} ended; a new one starts in {delay} s")
        if delay:
            self._loop.after(delay, self.start)
        else:
            self.start()

    def stop(self) -> None:
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    def _read(self) -> None:
        if self._channel is None:
            return
        try:
            message = self._channel.recv(MAX_CHANNEL_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message == READY:
            self._deaths = 0
        elif message.startswith(UNFIT):
            self.unfit = message.removeprefix(UNFIT).decode(errors="replace")
            self._log(f"the engine cannot be used: {self.unfit}")
        elif not message:
            self._close()

    def _close(self) -> None:
        if self._channel is not None:
            self._loop.unwatch(self._channel.fileno())
            self._channel.close()
            self._channel = None
