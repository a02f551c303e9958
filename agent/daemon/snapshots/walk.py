"""Walking through a volume: depth first, each directory in the order of its names' bytes.

The guest owns what is here and may change it meanwhile. So each directory is opened below its parent by one name, no
link is followed, `..` is never taken (a directory that the guest moves would lead elsewhere), and no file system but
the volume's own is entered. What is gone when it is looked at again was not there.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from cas.tree import MAX_DEPTH, MAX_ENTRIES

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
SPARE_DESCRIPTORS: Final = 64


class VolumeUnfit(Exception):
    """A volume that no snapshot can hold; the message says why."""


class Found(NamedTuple):
    name: bytes
    facts: os.stat_result
    directory: int
    """A descriptor of the directory that it is in, valid until the next one is asked for."""


class End(NamedTuple):
    """The directory that began last and has not ended ends."""


def allow_depth() -> None:
    """A descriptor for each level of the deepest tree. Raises ValueError, OSError where the machine allows fewer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_DEPTH + SPARE_DESCRIPTORS), hard))


def walk(root: int) -> Iterator[Found | End]:
    """Everything below a directory, which stays the caller's to close. Raises VolumeUnfit, OSError."""
    device = os.fstat(root).st_dev
    found = 0
    open_directories = [root]
    names = [_names(root)]
    try:
        while names:
            if not names[-1]:
                names.pop()
                if names:
                    os.close(open_directories.pop())
                    yield End()
                continue
            name, here = names[-1].pop(), open_directories[-1]
            try:
                facts = os.stat(name, dir_fd=here, follow_symlinks=False)
                below = None
                if facts.st_dev != device:
                    continue
                if stat.S_ISDIR(facts.st_mode):
                    below = os.open(name, _DIRECTORY, dir_fd=here)
            except (FileNotFoundError, NotADirectoryError):
                continue
            found += 1
            if found > MAX_ENTRIES:
                raise VolumeUnfit(f"it has more than {MAX_ENTRIES} entries")
            yield Found(name, facts, here)
            if below is not None:
                open_directories.append(below)
                if len(open_directories) > MAX_DEPTH + 1:
                    raise VolumeUnfit(f"its directories are more than {MAX_DEPTH} deep")
                names.append(_names(below))
    finally:
        for descriptor in open_directories[1:]:
            os.close(descriptor)


def open_file(found: Found) -> int:
    """A descriptor of a regular file, even where the guest has put something else under the name by now: then raises
    FileNotFoundError. Raises OSError."""
    try:
        descriptor = os.open(found.name, _FILE, dir_fd=found.directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, or a socket
            raise FileNotFoundError(f"{found.name!r} is no file any more") from error
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise FileNotFoundError(f"{found.name!r} is no file any more")


def read_link(found: Found) -> bytes:
    """Where a symbolic link leads. As `open_file`, where it is none any more."""
    try:
        return os.fsencode(os.readlink(found.name, dir_fd=found.directory))
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise FileNotFoundError(f"{found.name!r} is no symbolic link any more") from error
        raise


def _names(directory: int) -> list[bytes]:
    """The last one first."""
    return sorted(map(os.fsencode, os.listdir(directory)), reverse=True)
