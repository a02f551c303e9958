"""Volumes: directories that outlive the processes that write to them.

`<state>/volumes/NAME/` holds `data` (what the guest sees) and `volume` (a sealed `VolumeHead`). A volume's size is what
it was promised: the sum of all promises is held against the host's disk. Whether the kernel also enforces it is a row
of the host's guarantees.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

import msgspec

from agent.daemon import trees
from agent.daemon.durable import FileDamaged, is_aside, seal, set_aside, sync_directory, unseal, write_file

MAGIC: Final = b"lcvolume"
VERSION: Final = 1
DATA: Final = "data"
HEAD: Final = "volume"
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")

_log = logging.getLogger(__name__)


class VolumeHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size_bytes: int


class Volumes:
    """The volumes of one host. Methods that touch the disk block; call them in a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
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

    def path(self, name: str) -> Path:
        """The directory that a guest sees."""
        return self._directory / name / DATA

    def create(self, name: str, size_bytes: int) -> None:
        """Make a volume, or record its new size."""
        home = self._directory / name
        home.mkdir(mode=0o700, exist_ok=True)
        (home / DATA).mkdir(mode=0o700, exist_ok=True)
        write_file(home / HEAD, seal(MAGIC, VERSION, msgspec.msgpack.encode(VolumeHead(name, size_bytes))))
        sync_directory(self._directory)
        self._sizes[name] = size_bytes

    def delete(self, name: str) -> None:
        """Delete a volume and what is in it; gone at once even where removing takes long or is interrupted."""
        home = self._directory / name
        doomed = self._directory / f".deleted-{name}"
        trees.remove_tree(doomed)
        home.rename(doomed)
        sync_directory(self._directory)
        self._sizes.pop(name, None)
        trees.remove_tree(doomed)

    def used_bytes(self, name: str) -> int:
        """Bytes that the volume's files take on disk."""
        return trees.used_bytes(self.path(name))


def _read_size(home: Path) -> int:
    """A volume whose head is damaged or was never written keeps its data; its size is asked for again as 0."""
    try:
        return msgspec.msgpack.decode(unseal(home / HEAD, MAGIC, VERSION), type=VolumeHead).size_bytes
    except (FileNotFoundError, IsADirectoryError, FileDamaged, msgspec.MsgspecError):
        return 0
