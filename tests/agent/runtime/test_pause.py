"""A process that is held goes on whatever becomes of who holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.daemon.compiler import subprocess_environment
from tests.agent.runtime.support import needs_root

COUNTING = """
import mmap, sys, threading
file = open(sys.argv[1], "r+b")
counts = mmap.mmap(file.fileno(), 4096)
def count(at):
    while True:
        counts[at:at+8] = (int.from_bytes(counts[at:at+8], "little") + 1).to_bytes(8, "little")
for at in range(8, 24, 8):
    threading.Thread(target=count, args=(at,), daemon=True).start()
print("runs", flush=True)
count(0)
"""
HOLDING = """
import sys
from agent.sandbox.pause import paused
try:
    with paused(int(sys.argv[1]), float(sys.argv[2])):
        print("holds", flush=True)
        sys.stdin.readline()
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


class Counting:
    """A process whose threads count."""

    def __init__(self, pid: int, counts: Path) -> None:
        self.pid = pid
        self._counts = counts

    def counts(self) -> bytes:
        return self._counts.read_bytes()

    def wait_going_on(self) -> None:
        """Every thread counts on; the test's own time limit ends it where one does not."""
        before = self.counts()
        while any(before[at : at + 8] == self.counts()[at : at + 8] for at in range(0, 24, 8)):
            assert Path(f"/proc/{self.pid}").exists()


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    counts = tmp_path / "counts"
    counts.write_bytes(bytes(4096))
    with subprocess.Popen([sys.executable, "-c", COUNTING, counts], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield Counting(process.pid, counts)
        finally:
            process.kill()


class Holder:
    """Another process that holds this one: holding uses the timer that ends a test which takes too long."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        self.said = process.stdout.readline().decode().strip()

    def let_go(self) -> None:
        self.process.communicate(b"\n")


@contextmanager
def holder(pid: int, within_s: float = 60.0) -> Iterator[Holder]:
    command = [sys.executable, "-P", "-c", HOLDING, str(pid), str(within_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=subprocess_environment()
    ) as process:
        try:
            yield Holder(process)
        finally:
            process.kill()


@needs_root
def test_every_thread_stands_still_while_held_and_goes_on_afterwards(counting: Counting) -> None:
    with holder(counting.pid) as one:
        assert one.said == "holds"
        held = counting.counts()
        assert all(counting.counts() == held for _ in range(1000))
        one.let_go()
        counting.wait_going_on()


@needs_root
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_on_when_its_holder_is_killed(counting: Counting, by: signal.Signals) -> None:
    with holder(counting.pid) as one:
        held = counting.counts()
        assert counting.counts() == held
        one.process.send_signal(by)
        one.process.wait()
        counting.wait_going_on()


@needs_root
def test_a_holder_that_is_stuck_is_ended_and_the_process_goes_on(counting: Counting) -> None:
    with holder(counting.pid, 0.1) as one:
        assert one.process.wait() == -signal.SIGALRM
        counting.wait_going_on()


@needs_root
def test_a_signal_that_comes_meanwhile_is_not_lost(counting: Counting) -> None:
    with holder(counting.pid) as one:
        os.kill(counting.pid, signal.SIGTERM)
        one.let_go()
    while Path(f"/proc/{counting.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass


@needs_root
def test_what_has_ended_or_is_held_by_another_is_not_held(counting: Counting) -> None:
    with holder(1 << 22) as one:
        assert one.said.startswith("PauseFailed")
    with holder(counting.pid) as one, holder(counting.pid) as other:
        assert one.said == "holds"
        assert other.said.startswith("PermissionError")
