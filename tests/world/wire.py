"""A long line between two machines: what goes in at one end comes out at the other after a delay, at a bounded rate.

    python -m tests.world.wire NAME_A NAMESPACE_A NAME_B NAMESPACE_B --delay-ms 40 --mbit 20

`tc netem` does this in the kernel; not every kernel has it. Here each end is a TUN device in the namespace of a router,
and this process carries the packets: a packet leaves once those before it have, at the given rate, and arrives a delay
later. What would wait longer than `--queue-ms` is dropped, as a router's full queue drops it. It runs before ordinary
processes, so that a busy machine does not make the line longer. It prints a line when both ends are there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import struct
import subprocess
import time
from collections import deque
from typing import Final

TUNSETIFF: Final = 0x400454CA
IFF_TUN_WITHOUT_HEADER: Final = 0x0001 | 0x1000
MTU: Final = 1500
READ_AT_ONCE: Final = 64
PRIORITY: Final = 10


class Line:
    """One direction."""

    def __init__(self, source: int, sink: int, delay_s: float, bytes_s: float, queue_s: float) -> None:
        self.source = source
        self._sink = sink
        self._delay_s = delay_s
        self._bytes_s = bytes_s
        self._queue_s = queue_s
        self._free_s = 0.0
        self._packets: deque[tuple[float, bytes]] = deque()

    @property
    def due_s(self) -> float | None:
        return self._packets[0][0] if self._packets else None

    def take(self, now_s: float) -> None:
        for _ in range(READ_AT_ONCE):
            try:
                packet = os.read(self.source, MTU + 36)
            except BlockingIOError:
                return
            leaves_s = max(now_s, self._free_s)
            if leaves_s - now_s <= self._queue_s:
                self._free_s = leaves_s + len(packet) / self._bytes_s
                self._packets.append((self._free_s + self._delay_s, packet))

    def give(self, now_s: float) -> None:
        while self._packets and self._packets[0][0] <= now_s:
            _, packet = self._packets.popleft()
            with contextlib.suppress(OSError):  # an end that is down loses what comes
                os.write(self._sink, packet)


def open_end(name: str, namespace: str) -> int:
    """A TUN device in a namespace; it lives as long as this descriptor. Raises OSError, CalledProcessError."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_WITHOUT_HEADER))
    subprocess.run(["ip", "link", "set", name, "netns", namespace], check=True)
    return end


def carry(lines: list[Line]) -> None:
    """For ever."""
    while True:
        due = [line.due_s for line in lines if line.due_s is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select([line.source for line in lines], [], [], wait_s)
        for line in lines:
            if line.source in ready:
                line.take(time.monotonic())
            line.give(time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser(description="a long line between two namespaces")
    for word in ("name_a", "namespace_a", "name_b", "namespace_b"):
        parser.add_argument(word)
    parser.add_argument("--delay-ms", type=float, required=True)
    parser.add_argument("--mbit", type=float, required=True)
    parser.add_argument("--queue-ms", type=float, default=200.0)
    given = parser.parse_args()
    ends = open_end(given.name_a, given.namespace_a), open_end(given.name_b, given.namespace_b)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    print("ready", flush=True)
    delay_s, bytes_s, queue_s = given.delay_ms / 1000, given.mbit * 125_000, given.queue_ms / 1000
    carry([Line(one, other, delay_s, bytes_s, queue_s) for one, other in (ends, ends[::-1])])


if __name__ == "__main__":
    main()
