"""Volumes: directories that outlive the processes that write to them.

`<state>/volumes/NAME/` holds `data` (the directory that the guest sees) and `volume` (a sealed `VolumeHead`). A
volume's size is what it was promised: the sum of all promises is held against the host's disk. Where the agent may
mount, a volume is made as `image`, a sparse file with an ext4 file system of that size, which the guest's process
mounts on `data` for itself (`agent.sandbox.mounts`); so the size is a hard limit, of which the file system's own tables
take a few percent. Elsewhere it is a plain directory and the size a soft limit. What a volume was made as it stays.

A volume that is made of a snapshot is made in `.restoring-NAME` and takes its place in one step; beside the others are
`snapshots` and `seen`, which belong to `agent.daemon.snapshots`.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent.daemon import trees
from agent.daemon.durable import FileDamaged, is_aside, seal, set_aside, sync_directory, unseal, write_file
from agent.runtime import Mount
from agent.sandbox import linux, privileges

MAGIC: Final = b"lcvolume"
VERSION: Final = 1
DATA: Final = "data"
HEAD: Final = "volume"
IMAGE: Final = "image"
DELETED: Final = ".deleted-"
RESTORING: Final = ".restoring-"
MIN_IMAGE_BYTES: Final = 1 << 20
"""No file system is smaller."""
LARGE_JOURNAL_FROM_BYTES: Final = 256 << 20
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")

_log = logging.getLogger(__name__)


class VolumeHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    size_bytes: int
    restored_by: str = ""
    """The wish (`RestoreVolume.nonce`) that made it of a snapshot; "" where none did."""


class Fresh(NamedTuple):
    """A volume that is being made beside its place."""

    data: Path
    image: Path | None


class Volumes:
    """The volumes of one host. Methods that touch the disk block; call them in a thread."""

    def __init__(self, directory: Path, *, no_images: Callable[[], str] = privileges.no_images) -> None:
        self._directory = directory
        self._no_images = no_images
        self._sizes: dict[str, int] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(directory.iterdir()):
            if path.name.startswith(".") or is_aside(path):
                continue
            if not path.is_dir():
                _log.error("%s is no directory, so no volume; set aside as %s", path, set_aside(path).name)
            elif not _NAME.fullmatch(path.name):
                _log.error("%s is ignored: no volume has such a name", path)
            else:
                self._sizes[path.name] = _read_size(path)

    @property
    def sizes(self) -> dict[str, int]:
        """Promised bytes by volume."""
        return dict(self._sizes)

    def home(self, name: str) -> Path:
        """What belongs to a volume."""
        return self._directory / name

    def path(self, name: str) -> Path:
        """The directory that a guest sees."""
        return self._directory / name / DATA

    def mount(self, name: str) -> Mount | None:
        """What a guest's process has to mount first; None where the volume is a plain directory."""
        image = self._directory / name / IMAGE
        if not image.exists():
            return None
        return Mount(target=str(self.path(name)), size_bytes=image.stat().st_size, image=str(image))

    def create(self, name: str, size_bytes: int) -> None:
        """Make a volume, or grow it: an image in use has its new size when its process starts the next time. Raises
        OSError."""
        home = self._directory / name
        home.mkdir(mode=0o700, exist_ok=True)
        image = home / IMAGE
        if not (home / DATA).exists() and not self._no_images():
            make_image(image, size_bytes)
        elif image.exists() and image.stat().st_size < size_bytes:
            os.truncate(image, size_bytes)
        (home / DATA).mkdir(mode=0o700, exist_ok=True)
        write_file(home / HEAD, seal(MAGIC, VERSION, msgspec.msgpack.encode(VolumeHead(name, size_bytes))))
        sync_directory(self._directory)
        self._sizes[name] = size_bytes

    def delete(self, name: str) -> None:
        """Delete a volume and what is in it; gone at once even where removing takes long or is interrupted."""
        home = self._directory / name
        doomed = self._directory / f"{DELETED}{name}"
        trees.remove_tree(doomed)
        home.rename(doomed)
        sync_directory(self._directory)
        self._sizes.pop(name, None)
        trees.remove_tree(doomed)

    def restored_by(self, name: str) -> str:
        """The wish that made a volume of a snapshot; "" where none did, or there is no such volume."""
        head = _read_head(self._directory / name) if name in self._sizes else None
        return head.restored_by if head else ""

    def prepare(self, name: str, size_bytes: int, wish: str) -> Fresh:
        """An empty volume beside the place of this one, as good as it can be made here. Raises OSError."""
        home = self._beside(name)
        trees.remove_tree(home)
        (home / DATA).mkdir(mode=0o700, parents=True)
        home.chmod(0o700)
        image = None
        if not self._no_images():
            image = home / IMAGE
            make_image(image, size_bytes)
        head = VolumeHead(name, size_bytes, wish)
        write_file(home / HEAD, seal(MAGIC, VERSION, msgspec.msgpack.encode(head)))
        return Fresh(home / DATA, image)

    def swap_in(self, name: str) -> None:
        """Put what was prepared in its place, in one step; durable after `settle`. Raises OSError."""
        home, fresh = self._directory / name, self._beside(name)
        size_bytes = _read_size(fresh)
        if name in self._sizes:
            linux.exchange(fresh, home)
        else:
            fresh.rename(home)
        self._sizes[name] = size_bytes

    def settle(self, name: str) -> None:
        """Make durable what is in place, and remove what is left beside it. Raises OSError."""
        sync_directory(self._directory)
        trees.remove_tree(self._beside(name))

    def sweep(self) -> None:
        """Remove what was being deleted or made when the agent ended."""
        for path in self._directory.iterdir():
            if path.name.startswith((DELETED, RESTORING)):
                try:
                    trees.remove_tree(path)
                except OSError as error:
                    _log.warning("%s cannot be removed: %s", path, error)

    def _beside(self, name: str) -> Path:
        return self._directory / f"{RESTORING}{name}"

    def used_bytes(self, name: str) -> int:
        """Bytes that the volume takes on disk."""
        image = self._directory / name / IMAGE
        return image.stat().st_blocks * 512 if image.exists() else trees.used_bytes(self.path(name))


def make_image(image: Path, size_bytes: int, *, journal: bool = True) -> None:
    """A sparse file with an empty ext4 file system; under its name it is whole or absent. `journal`: it is to survive
    a crash. Raises OSError."""
    program = privileges.make_file_system()
    if program is None:
        raise FileNotFoundError(f"{privileges.MAKE_FILE_SYSTEM} is not installed")
    fresh = image.with_suffix(".new")
    with fresh.open("wb") as file:
        file.truncate(max(size_bytes, MIN_IMAGE_BYTES))
    options = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    if not journal:
        options += ["-O", "^has_journal"]
    elif size_bytes >= LARGE_JOURNAL_FROM_BYTES:
        options += ["-J", "size=16"]
    done = subprocess.run([program, *options, str(fresh)], capture_output=True, text=True, check=False)
    if done.returncode:
        fresh.unlink()
        raise OSError(f"{image}: {program} ended with status {done.returncode}: {done.stderr[-500:]}")
    fresh.replace(image)


def _read_size(home: Path) -> int:
    """A volume whose head is damaged or was never written keeps its data; its size is asked for again as 0."""
    head = _read_head(home)
    return head.size_bytes if head else 0


def _read_head(home: Path) -> VolumeHead | None:
    try:
        return msgspec.msgpack.decode(unseal(home / HEAD, MAGIC, VERSION), type=VolumeHead)
    except (FileNotFoundError, IsADirectoryError, FileDamaged, msgspec.MsgspecError):
        return None
