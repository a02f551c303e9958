"""Opening a file that a person named, when it may be anything: a directory, a pipe without a writer, a device."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotReadable(Exception):
    """The file cannot be read. The message says why, without the file's name."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
        """There is nothing of this name."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Never waits. Raises NotReadable."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise NotReadable("there is no such file", missing=True) from None
    except OSError as error:
        raise NotReadable(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise NotReadable("is not a file name") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise NotReadable("is a directory")
        if not stat.S_ISREG(mode):
            raise NotReadable("is not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
