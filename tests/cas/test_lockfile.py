"""The lock between writing processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cas.errors import StoreBusy
from cas.lockfile import FileLock, WriteLock

HOLDER = """
import sys
from pathlib import Path
from cas.lockfile import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.try_acquire()
print("held", flush=True)
sys.stdin.read()
"""


class SteppingClock:
    """Time that passes only while somebody pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("which", ["write.lock", "turn.lock"])
def test_waiting_for_another_process_ends_with_a_clear_error(tmp_path: Path, which: str) -> None:
    clock = SteppingClock()
    lock = WriteLock(tmp_path, monotonic=clock.monotonic, pause=clock.pause)
    process = holder(tmp_path / which)
    with pytest.raises(StoreBusy, match="5 s") as caught:
        lock.acquire(5)
    assert "fuser" in caught.value.hint
    assert 5 <= clock.now < 6
    process.kill()
    process.communicate()
    lock.acquire(0)
    lock.release()
    lock.close()


def test_a_waiting_process_comes_before_the_one_that_just_wrote(tmp_path: Path) -> None:
    clock = SteppingClock()
    lock = WriteLock(tmp_path, monotonic=clock.monotonic, pause=clock.pause)
    lock.acquire(0)
    waiting = holder(tmp_path / "turn.lock")
    lock.release()
    with pytest.raises(StoreBusy):
        lock.acquire(1)
    waiting.communicate("")
    lock.acquire(0)
    lock.close()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    process = holder(tmp_path / "x.lock")
    lock = FileLock(tmp_path / "x.lock")
    assert not lock.try_acquire()
    process.kill()
    process.communicate()
    assert lock.try_acquire()
    lock.close()
