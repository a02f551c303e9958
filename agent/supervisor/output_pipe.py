"""A guest's output: from its pipe into a file of bounded size that outlives the agent.

The supervisor reads a bounded piece per turn of its loop, so a guest that floods its output slows down itself and
nobody else: when the pipe is full, its writes wait. The file is renamed to `.1`, `.2`, … when it is full; the oldest
goes away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import termios
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 64 << 10
"""What is read per turn of the loop."""
FILE_BYTES: Final = 4 << 20
FILES: Final = 4
"""Kept at most, with the one that is written."""
MAX_PIPE_BYTES: Final = 4 << 20


class OutputFile:
    """An append-only file with older ones beside it."""

    def __init__(self, path: str, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._files = files
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size

    def append(self, data: bytes) -> None:
        """Raises OSError where the disk is full."""
        if self._size and self._size + len(data) > self._file_bytes:
            self._rotate()
        view = memoryview(data)
        while view:
            written = os.write(self._descriptor, view)
            view = view[written:]
            self._size += written

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)

    def _rotate(self) -> None:
        os.close(self._descriptor)
        for number in range(self._files - 1, 0, -1):
            younger = Path(self._path if number == 1 else f"{self._path}.{number - 1}")
            if younger.exists():
                younger.replace(f"{self._path}.{number}")
        self._descriptor = self._open()
        self._size = 0


class OutputPipe:
    """The reading end of a guest's output pipe and the file it goes to."""

    def __init__(self, descriptor: int, file: OutputFile) -> None:
        self.descriptor = descriptor
        self._file = file
        os.set_blocking(descriptor, False)

    def on(self, descriptor: int) -> OutputPipe:
        """Another pipe into the same file; this one is closed."""
        os.close(self.descriptor)
        return OutputPipe(descriptor, self._file)

    def pump(self) -> bool:
        """Move one piece. False at the end of the output (the pipe has no writer left)."""
        try:
            piece = os.read(self.descriptor, PIECE_BYTES)
        except BlockingIOError:
            return True
        if piece:
            # Where the disk is full the piece is lost: the guest must not hang on that.
            with contextlib.suppress(OSError):
                self._file.append(piece)
        return bool(piece)

    def note(self, line: bytes) -> None:
        """A line of ours between the guest's; lost where the disk is full."""
        with contextlib.suppress(OSError):
            self._file.append(line)

    def waiting_bytes(self) -> int:
        """How much the guest has written that was not moved yet."""
        answer = bytearray(4)
        fcntl.ioctl(self.descriptor, termios.FIONREAD, answer)
        return int.from_bytes(answer, sys.byteorder)

    def finish(self) -> None:
        """Take what is still in the pipe of a guest that has ended, and close. Bounded by what a pipe can hold."""
        for _ in range(MAX_PIPE_BYTES // PIECE_BYTES):
            if not self.waiting_bytes() or not self.pump():
                break
        os.close(self.descriptor)
        self._file.close()
