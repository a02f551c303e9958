"""What a guest sees of the file system: its configuration files, scratch space and volumes. The plan is pure.

A guest gets directories, not files (WASI preopens), so configuration files are written into a tree of the guest's own:
one read-only directory for each topmost parent of a configuration file. Writable directories are the volumes and, where
the specification asks for scratch space, `/tmp`. A guest's libraries resolve a path by the longest directory that
contains it, so a writable directory may lie inside a configuration directory; the reverse would hide files from the
guest, or let it write where it must not, and is refused.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

from agent.api import ProcessSpec, Reason, Struct
from agent.daemon.refusal import Refused
from agent.runtime import Preopen
from cas.digest import Digest

SCRATCH: Final = "/tmp"
CONFIG_DIRECTORY: Final = "config"
SCRATCH_DIRECTORY: Final = "scratch"
MAX_CONFIG_FILES: Final = 4096
MAX_VOLUMES: Final = 256
MAX_NAME_BYTES: Final = 255


class FilesPlan(Struct, frozen=True):
    """What to put where before a guest starts. Relative paths are below the guest's own directory on the host."""

    files: dict[str, Digest]
    """Relative path of each configuration file, and the blob it holds."""
    roots: dict[str, str]
    """Guest directory of each read-only preopen, and its relative path."""
    volumes: dict[str, str]
    """Guest directory of each volume, and the volume's name."""
    scratch: bool

    def preopens(self, own: Path, volume_paths: dict[str, Path]) -> tuple[Preopen, ...]:
        """`own`: the guest's directory. `volume_paths`: where each volume's content is."""
        readable = [Preopen(str(own / relative), guest, False) for guest, relative in self.roots.items()]
        writable = [Preopen(str(volume_paths[name]), guest, True) for guest, name in self.volumes.items()]
        scratch = [Preopen(str(own / SCRATCH_DIRECTORY), SCRATCH, True)] if self.scratch else []
        return (*readable, *writable, *scratch)


def plan_files(spec: ProcessSpec) -> FilesPlan:
    """Lay a specification's files out. Raises Refused(BAD_REQUEST) where they cannot all be seen by the guest."""
    if len(spec.config) > MAX_CONFIG_FILES:
        raise _refused(spec, f"has {len(spec.config)} configuration files; at most {MAX_CONFIG_FILES} are possible")
    if len(spec.volume) > MAX_VOLUMES:
        raise _refused(spec, f"has {len(spec.volume)} volumes; at most {MAX_VOLUMES} are possible")
    for path in spec.config:
        if any(len(part.encode()) > MAX_NAME_BYTES for part in path.split("/")):
            raise _refused(spec, f"has the configuration file {path[:40]}…, a name in which is too long for a file")
    writable = dict.fromkeys(spec.volume, "volume")
    if spec.disk_bytes:
        if SCRATCH in writable:
            raise _refused(spec, f"has a volume at {SCRATCH}, where its scratch space is")
        writable[SCRATCH] = "scratch space"
    _check_writable(spec, writable)
    _check_config(spec, writable)
    roots = _topmost({str(PurePosixPath(path).parent) for path in spec.config})
    places = {root: f"{CONFIG_DIRECTORY}/{number}" for number, root in enumerate(roots)}
    files = {}
    for path, digest in spec.config.items():
        root = next(parent for parent in _parents(path) if parent in places)
        files[f"{places[root]}/{PurePosixPath(path).relative_to(root)}"] = digest
    return FilesPlan(files=files, roots=places, volumes=dict(spec.volume), scratch=bool(spec.disk_bytes))


def _check_writable(spec: ProcessSpec, writable: dict[str, str]) -> None:
    for path, what in writable.items():
        for parent in _parents(path):
            if parent in writable:
                raise _refused(spec, f"has its {what} {path} inside its {writable[parent]} {parent}")


def _check_config(spec: ProcessSpec, writable: dict[str, str]) -> None:
    for path in spec.config:
        for parent in [path, *_parents(path)]:
            if parent in writable:
                raise _refused(spec, f"has the configuration file {path} inside its {writable[parent]} {parent}")
            if parent != path and parent in spec.config:
                raise _refused(spec, f"has {parent} both as a configuration file and as the directory of {path}")
    for path, what in writable.items():
        for parent in _parents(path):
            if parent in spec.config:
                raise _refused(spec, f"has its {what} {path} below {parent}, which is a configuration file")


def _topmost(directories: set[str]) -> list[str]:
    """Those that lie in no other of them, in order."""
    return sorted(one for one in directories if directories.isdisjoint(_parents(one)))


def _parents(path: str) -> list[str]:
    """Every directory that contains a path, the innermost first."""
    return [str(parent) for parent in PurePosixPath(path).parents]


def _refused(spec: ProcessSpec, what: str) -> Refused:
    return Refused(
        Reason.BAD_REQUEST, f"{spec.name} {what}", hint="give each file and volume a directory of its own in the guest"
    )
