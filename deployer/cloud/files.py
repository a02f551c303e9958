"""Files that must be whole or absent, and that only their owner may read: keys, certificates, bundles, settings."""

from __future__ import annotations

import os
from pathlib import Path

from deployer.errors import BadInput


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file so that a reader, also after a crash, sees all of the old bytes or all of the new ones. The file has
    its mode before it has its first byte. Raises BadInput where it cannot be written."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from error


def sync_directory(path: Path) -> None:
    """Make names that were created, moved or removed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """A small file. Raises BadInput where it cannot be read or is larger than `max_bytes`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise BadInput(f"{path} is larger than the {max_bytes} bytes that such a file can have")
    return data
