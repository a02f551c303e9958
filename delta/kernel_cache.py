"""The kernel's compiled code, kept between processes: compiling takes 0.2 s, as long as decoding 20 MB.

Loading compiled code is trusting it as one trusts a program, so an entry is used only where nobody but this user (and
root) can have written it: the directory is opened without following a link and must belong to the effective user with
no rights for anyone else, and so must the file; both are checked on what was opened, not on its name. Whoever can
write there can already replace this user's programs. The digest in front of the code finds torn and damaged files, and
the key in the file's name says which kernel, engine and machine it was made for; the engine itself refuses code of
another version, another configuration or for features that this processor lacks.

Nothing here is ever needed: wherever something is missing, not writable or not as it should be, the kernel is compiled.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

MAGIC = b"lckc\x01"
"""Magic and version; the BLAKE3-256 of the code and the code follow."""
HEAD_BYTES = len(MAGIC) + 32
MOST_BYTES = 16 << 20
KEPT = 8
"""Entries; the ones that were written longest ago go first."""
SUFFIX = ".kernel"


def default_directory() -> Path | None:
    """The user's cache directory, as the XDG Base Directory Specification has it; None where there is none."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "lowcloud"
    with contextlib.suppress(RuntimeError, KeyError):
        home = Path.home()
        if home.is_absolute() and home.is_dir():
            return home / ".cache" / "lowcloud"
    return None


def load(directory: Path, key: str) -> bytes | None:
    """The code that was stored under `key`; None where there is none that may be trusted."""
    try:
        with _opened(directory) as folder:
            content = _read(folder, key + SUFFIX)
    except OSError:
        return None
    if content[: len(MAGIC)] != MAGIC or content[len(MAGIC) : HEAD_BYTES] != blake3(content[HEAD_BYTES:]).digest():
        return None
    return content[HEAD_BYTES:]


def store(directory: Path, key: str, code: bytes) -> None:
    """Keep `code` for later processes, if that is possible. An entry appears whole or not at all."""
    try:
        _make(directory)
        with _opened(directory) as folder:
            temporary = f"{key}.{os.getpid()}.new"
            _write(folder, temporary, MAGIC + blake3(code).digest() + code)
            os.rename(temporary, key + SUFFIX, src_dir_fd=folder, dst_dir_fd=folder)
            _remove_old(folder)
    except OSError:
        return


def _make(directory: Path) -> None:
    """Raises OSError where that would be in somebody else's home, as under sudo: they could not use it either."""
    if directory.is_dir():
        return
    above = next(parent for parent in directory.parents if parent.is_dir())
    if above.stat().st_uid != os.geteuid():
        raise PermissionError("in a directory of somebody else's")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """A descriptor of the directory. Raises OSError where it is not this user's alone."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check(os.fstat(folder))
        yield folder
    finally:
        os.close(folder)


def _check(status: os.stat_result) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError("others may have written here")


def _read(folder: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(file, "rb") as content:
        status = os.fstat(file)
        _check(status)
        if not stat.S_ISREG(status.st_mode) or not HEAD_BYTES < status.st_size <= MOST_BYTES:
            raise OSError("not an entry")
        return content.read(MOST_BYTES)


def _write(folder: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)  # left by a killed process of the same number
    file = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(content)
    except OSError:
        os.unlink(name, dir_fd=folder)
        raise


def _remove_old(folder: int) -> None:
    """What a crash or an earlier version left behind."""
    entries = [name for name in os.listdir(folder) if name.endswith((SUFFIX, ".new"))]
    ages = sorted(entries, key=lambda name: os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns)
    for name in ages[:-KEPT]:
        os.unlink(name, dir_fd=folder)
