"""Standard input, for which one can wait and be interrupted at any moment.

A signal that comes just before a blocking read is noticed only once that has read something: Ctrl-C would do nothing
until the other side sends more. So something to read is waited for in turns, between which signals are noticed.
"""

from __future__ import annotations

import os
import select
from io import FileIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TURN_S: Final = 0.2


class StandardInput(FileIO):
    """Unbuffered. Closing it leaves that of the process open."""

    def __init__(self) -> None:
        super().__init__(os.dup(0))

    def read(self, size: int | None = -1, /) -> bytes:
        self._wait()
        return super().read(size)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._wait()
        return super().readinto(buffer)

    def _wait(self) -> None:
        while not select.select([self], [], [], TURN_S)[0]:
            pass
