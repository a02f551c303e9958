"""A guest as the supervisor holds it: its process, its messages, its output, and how it ended.

Everything here happens on the supervisor's loop. A guest is *ended* once its process was reaped, its last message read
and its output moved to the file; until then it counts as living.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from agent.runtime import GuestId, GuestOrder, GuestState
from agent.sandbox import cgroups, linux
from agent.supervisor.event_loop import Loop, Signal
from agent.supervisor.output_pipe import OutputFile, OutputPipe
from agent.supervisor.place import HOST, Place
from agent.supervisor.wire import MAX_GUEST_MESSAGE_BYTES, Born, Failed, FromGuest, Running, Sandboxed

if TYPE_CHECKING:
    from agent.supervisor.network.namespace import Namespace

MAX_KEPT_REFUSALS: Final = 8
MAX_TOLD_REFUSALS: Final = 100
MAX_MESSAGES_PER_TURN: Final = 16
EXIT_UNKNOWN: Final = 255
"""Of a guest that was taken over: another process is its parent."""


class Guest:
    """See the module's head. `on_sandboxed` gets the filter's notification descriptor, if one came."""

    def __init__(
        self,
        order: GuestOrder,
        loop: Loop,
        *,
        on_sandboxed: Callable[[Guest, int | None], None],
        on_ended: Callable[[Guest], None],
        namespace: Namespace | None = None,
    ) -> None:
        self.order = order
        self.namespace = namespace
        """Its own; None where it is in the host's network. Held until it has ended."""
        self.pid = 0
        self.pidfd: int | None = None
        self.started_unix = time.time()
        self.sandboxed = False
        self.running = False
        self.exit_code: int | None = None
        self.exit_reason = ""
        self.killed = False
        """Somebody asked for its end, so its exit is no news."""
        self.limit_address: int | None = None
        """Where its engine keeps its limit of memory, as our own code has told before the program ran."""
        self.refusals: collections.deque[str] = collections.deque(maxlen=MAX_KEPT_REFUSALS)
        """What its program asked the network for and did not get."""
        self._told_refusals = 0
        self.changed = Signal()
        self._loop = loop
        self._ending = False
        self._adopted = False
        self._on_sandboxed = on_sandboxed
        self._on_ended = on_ended
        output = OutputFile(order.output_path)  # first, because it fails on a full disk
        self._control, self._far_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        reading, self._far_output = os.pipe()
        self._output = OutputPipe(reading, output)
        if namespace is not None:
            namespace.hold()
        loop.watch(self._control.fileno(), self.read_messages)
        loop.watch(reading, self._read_output)

    def adopt(self, pid: int, pidfd: int, output: int, started_unix: float) -> None:
        """Be a guest that runs already, taken over from another supervisor. `output`: the reading end of its pipe. The
        descriptors are ours from here on."""
        self.close_far_descriptors()
        self._loop.unwatch(self._control.fileno())
        self._loop.unwatch(self._output.descriptor)
        self._output = self._output.on(output)
        self._loop.watch(output, self._read_output)
        self.pid, self.pidfd, self.started_unix = pid, pidfd, started_unix
        self.sandboxed = self.running = True
        self._adopted = True
        self._loop.watch(pidfd, lambda: self.note_exit(EXIT_UNKNOWN, "how is not known, its supervisor was replaced"))

    @property
    def place(self) -> Place:
        """Where its sockets are made."""
        return self.namespace or HOST

    def outside(self, address: str) -> str:
        """What reaches an address that its definition names from where its sockets are."""
        return address if self.namespace is None else self.namespace.outside(address)

    def declared(self, address: str) -> str:
        """Which address of its definition it means by this one."""
        return address if self.namespace is None or not address else self.namespace.declared(address)

    @property
    def name(self) -> str:
        return self.order.guest

    @property
    def checks(self) -> GuestId | None:
        """The guest that it checks; None where it is no check."""
        return self.order.checked.guest if self.order.checked else None

    @property
    def ended(self) -> bool:
        return self.exit_code is not None

    def note_refusal(self, text: str) -> None:
        """Keep what its program asked for and did not get, and say it in its output, once for each thing while it is
        remembered and at most so often: a program that asks without end must not write without end."""
        if text not in self.refusals and self._told_refusals < MAX_TOLD_REFUSALS:
            self._told_refusals += 1
            self._output.note(f"[lowcloud] {text}\n".encode())
        self.refusals.append(text)

    def far_descriptors(self) -> list[int]:
        """Output pipe, control socket, and its network namespace if it has one, as the guest gets them."""
        network = [self.namespace.descriptor] if self.namespace is not None else []
        return [self._far_output, self._far_control.fileno(), *network]

    def close_far_descriptors(self) -> None:
        """The zygote has them now: once it is gone as well, the guest's end is the end of both."""
        if self._far_output >= 0:
            os.close(self._far_output)
            self._far_output = -1
            self._far_control.close()

    def state(self, *, listening: bool, serving: bool) -> GuestState:
        return GuestState(
            guest=self.order.guest,
            process=self.order.process,
            pid=self.pid,
            started_unix=self.started_unix,
            listening=listening,
            serving=serving,
            exit_code=self.exit_code,
            exit_reason=self.exit_reason,
        )

    def how_it_ended(self) -> str:
        """A sentence about it."""
        reason = f": {self.exit_reason}" if self.exit_reason else ""
        refused = f"; {self.refusals[-1]}" if self.refusals else ""
        return f"it exited with code {self.exit_code}{reason}{refused}"

    def kill(self) -> None:
        """SIGKILL: a guest's program cannot handle signals, so a politer one would only be less sure."""
        if self.pidfd is not None and not self.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def set_cpus(self, cpus: tuple[int, ...]) -> None:
        """Move every thread of the guest. Raises OSError where none of the CPUs exists."""
        wanted = cpus or tuple(range(os.cpu_count() or 1))
        for thread in linux.threads_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, wanted)

    def note_exit(self, exit_code: int, reason: str = "") -> None:
        """The process was reaped, or never came to be."""
        if self._ending:
            return
        self._ending = True
        if not self._adopted:
            self.read_messages()
        self._loop.unwatch(self._control.fileno())
        self._control.close()
        self.close_far_descriptors()
        self._loop.unwatch(self._output.descriptor)
        self._output.finish()
        if self.pidfd is not None:
            self._loop.unwatch(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = None
        self.exit_code = exit_code
        if exit_code == 128 + signal.SIGKILL and cgroups.was_killed_for_memory(self.order.cgroups):
            reason = "it used more memory than its limit, and the kernel ended it"
        self.exit_reason = self.exit_reason or reason
        self.changed.notify()
        self._on_ended(self)
        if self.namespace is not None:
            self.namespace.let_go()

    def _read_output(self) -> None:
        if not self._output.pump():
            self._loop.unwatch(self._output.descriptor)

    def read_messages(self) -> None:
        """What has come over the control socket; nothing once the guest has ended."""
        if self.ended:
            return
        for _ in range(MAX_MESSAGES_PER_TURN):
            try:
                message, descriptors = linux.receive_with_fds(self._control, MAX_GUEST_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                self._loop.unwatch(self._control.fileno())
                if not self.pid:
                    self.note_exit(1, "the zygote ended before it could start this guest")
                return
            self._take_message(message, descriptors)

    def _take_message(self, message: bytes, descriptors: list[int]) -> None:
        kept: int | None = None
        try:
            content = msgspec.msgpack.decode(message, type=FromGuest)
        except msgspec.DecodeError:
            content = None
        match content:
            case Born() if not self.pid:
                self.pid = content.pid
                self.pidfd = os.pidfd_open(self.pid)
            case Sandboxed() if self.pid and not self.sandboxed:
                self.sandboxed = True
                self.limit_address = content.limit_address
                kept = descriptors[0] if descriptors else None
                self._on_sandboxed(self, kept)
            case Running() if self.sandboxed:
                self.running = True
            case Failed():
                self.exit_reason = self.exit_reason or content.reason[:MAX_GUEST_MESSAGE_BYTES]
            case _:
                pass
        for descriptor in descriptors:
            if descriptor != kept:
                os.close(descriptor)
        self.changed.notify()
