"""What a guest sees of the file system: its configuration files, scratch space and volumes. The plan is pure.

A guest gets directories, not files (WASI preopens), so configuration files are written into a tree of the guest's own:
one read-only directory for each topmost parent of a configuration file. Writable directories are the volumes and, where
the specification asks for scratch space, `/tmp`. A guest's libraries resolve a path by the longest directory that
contains it, so a writable directory may lie inside a configuration directory; the reverse would hide files from the
guest, or let it write where it must not, and is refused. Secrets have trees of their own, which lie in memory; so a
directory that holds one holds nothing else.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

from agent.api.answers import Reason
from agent.api.base import Struct
from agent.api.processes import ProcessSpec
from agent.daemon.refusal import Refused
from agent.runtime import Preopen
from cas.digest import Digest

SCRATCH: Final = "/tmp"
CONFIG_DIRECTORY: Final = "config"
SCRATCH_DIRECTORY: Final = "scratch"
SECRET_DIRECTORY: Final = "secret"
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
    secrets: dict[str, Digest]
    """Relative path of each secret, and the blob it is sealed in. These, and their roots, lie in memory."""
    secret_roots: dict[str, str]

    def preopens(self, own: Path, volume_paths: dict[str, Path], in_memory: Path | None = None) -> tuple[Preopen, ...]:
        """`own`: the guest's directory. `volume_paths`: where each volume's content is. `in_memory`: the guest's
        directory for secrets."""
        readable = [Preopen(str(own / relative), guest, False) for guest, relative in self.roots.items()]
        for guest, relative in self.secret_roots.items():
            readable.append(Preopen(str((in_memory or own) / relative), guest, False))
        writable = [Preopen(str(volume_paths[name]), guest, True) for guest, name in self.volumes.items()]
        scratch = [Preopen(str(own / SCRATCH_DIRECTORY), SCRATCH, True)] if self.scratch else []
        return (*readable, *writable, *scratch)


def plan_files(spec: ProcessSpec) -> FilesPlan:
    """Lay a specification's files out. Raises Refused(BAD_REQUEST) where they cannot all be seen by the guest."""
    for what, paths in (("configuration files", spec.config), ("secrets", spec.secrets)):
        if len(paths) > MAX_CONFIG_FILES:
            raise _refused(spec, f"has {len(paths)} {what}; at most {MAX_CONFIG_FILES} are possible")
    if len(spec.volume) > MAX_VOLUMES:
        raise _refused(spec, f"has {len(spec.volume)} volumes; at most {MAX_VOLUMES} are possible")
    for path in (*spec.config, *spec.secrets):
        if any(len(part.encode()) > MAX_NAME_BYTES for part in path.split("/")):
            raise _refused(spec, f"has the file {path[:40]}…, a name in which is too long for a file")
    writable = dict.fromkeys(spec.volume, "volume")
    if spec.disk_bytes:
        if SCRATCH in writable:
            raise _refused(spec, f"has a volume at {SCRATCH}, where its scratch space is")
        writable[SCRATCH] = "scratch space"
    _check_writable(spec, writable)
    _check_files(spec, spec.config, "configuration file", writable)
    _check_files(spec, spec.secrets, "secret", writable)
    _check_alone(spec, writable)
    roots, files = _laid_out(spec.config, CONFIG_DIRECTORY)
    secret_roots, secrets = _laid_out(spec.secrets, SECRET_DIRECTORY)
    return FilesPlan(
        files=files,
        roots=roots,
        volumes=dict(spec.volume),
        scratch=bool(spec.disk_bytes),
        secrets=secrets,
        secret_roots=secret_roots,
    )


def _laid_out(blobs: dict[str, Digest], directory: str) -> tuple[dict[str, str], dict[str, Digest]]:
    """The read-only directories that hold these files, by the guest's name, and the relative path of each file."""
    roots = _topmost({str(PurePosixPath(path).parent) for path in blobs})
    places = {root: f"{directory}/{number}" for number, root in enumerate(roots)}
    files = {}
    for path, digest in blobs.items():
        root = next(parent for parent in _parents(path) if parent in places)
        files[f"{places[root]}/{PurePosixPath(path).relative_to(root)}"] = digest
    return places, files


def _check_writable(spec: ProcessSpec, writable: dict[str, str]) -> None:
    for path, what in writable.items():
        for parent in _parents(path):
            if parent in writable:
                raise _refused(spec, f"has its {what} {path} inside its {writable[parent]} {parent}")


def _check_files(spec: ProcessSpec, files: dict[str, Digest], kind: str, writable: dict[str, str]) -> None:
    for path in files:
        for parent in [path, *_parents(path)]:
            if parent in writable:
                raise _refused(spec, f"has the {kind} {path} inside its {writable[parent]} {parent}")
            if parent != path and parent in files:
                raise _refused(spec, f"has {parent} both as a {kind} and as the directory of {path}")
    for path, what in writable.items():
        for parent in _parents(path):
            if parent in files:
                raise _refused(spec, f"has its {what} {path} below {parent}, which is a {kind}")


def _check_alone(spec: ProcessSpec, writable: dict[str, str]) -> None:
    """A directory that holds a secret holds nothing else."""
    holds = {str(PurePosixPath(path).parent): path for path in spec.secrets}
    others = dict.fromkeys(spec.config, "configuration file") | writable
    for path, what in others.items() if holds else ():
        for parent in [path, *_parents(path)]:
            if parent in holds:
                raise _refused(spec, f"has its {what} {path} in the directory of its secret {holds[parent]}")
            if parent in spec.secrets:
                raise _refused(spec, f"has its {what} {path} below {parent}, which is a secret")


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
