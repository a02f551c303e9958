"""Small files that are whole or absent, and that say what they are.

`write_file` replaces a file in one step and returns when the new bytes survive power loss. A *sealed* file starts with
magic, version and the digest of its content, so that one that is damaged, torn or of another version is never believed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cas.digest import RAW_BYTES, digest_of, to_raw

MAX_SEALED_BYTES: Final = 16 << 20
ASIDE: Final = ".damaged"
_VERSION_BYTES: Final = 2


class FileDamaged(Exception):
    """A sealed file that is not what its head says, or of a version this program does not know."""

    def __init__(self, path: Path, what: str, *, hint: str = "restore it from a backup, or remove it") -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.hint = hint


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by these bytes, durably: after a crash at any instant it holds the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def set_aside(path: Path) -> Path:
    """Give something that is not what belongs under its name a free name of its own beside it, so that it is in
    nobody's way and not lost; the new path."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}{ASIDE}-{number}")):
        number += 1
    path.rename(aside)
    return aside


def is_aside(path: Path) -> bool:
    return ASIDE in path.name


def remove_file(path: Path) -> None:
    """Remove a file, durably; nothing happens where it is absent."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(magic: bytes, version: int, payload: bytes) -> bytes:
    """`magic`, `version` (2 bytes, little-endian), BLAKE3-256 of the payload (32 bytes), payload."""
    return magic + version.to_bytes(_VERSION_BYTES, "little") + to_raw(digest_of(payload)) + payload


def unseal(path: Path, magic: bytes, version: int, *, max_bytes: int = MAX_SEALED_BYTES) -> bytes:
    """The payload of a sealed file. Raises FileDamaged, and FileNotFoundError where there is none."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    head = len(magic) + _VERSION_BYTES + RAW_BYTES
    if len(data) > max_bytes:
        raise FileDamaged(path, f"larger than {max_bytes} bytes")
    if len(data) < head or not data.startswith(magic):
        raise FileDamaged(path, "does not start as a file of its kind does")
    found = int.from_bytes(data[len(magic) : len(magic) + _VERSION_BYTES], "little")
    if found != version:
        raise FileDamaged(path, f"has format version {found}; this program reads {version}", hint="upgrade lowcloud")
    if to_raw(digest_of(data[head:])) != data[head - RAW_BYTES : head]:
        raise FileDamaged(path, "its content is not what its head says")
    return data[head:]
