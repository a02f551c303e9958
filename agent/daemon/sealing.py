"""A host's own key, to which its secrets are sealed, and the memory where they lie open for the guests that need them.

The key is made here when it is first asked for and never leaves this machine: `<state>/sealing.key`, mode 0600. What is
sealed to it (`cas.sealed`) is opened only into a directory in memory (a tmpfs, mode 0700) that no other user may enter,
one directory for each guest, gone with the guest; after a reboot the files are opened again from the blobs. Where a
machine offers no such place the guest's directory on disk has to do, with the same modes, and the log says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.daemon import durable, trees
from cas import sealed
from cas.digest import digest_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_NAME: Final = "sealing.key"
MAGIC: Final = b"lcsealkey"
VERSION: Final = 1
SHARED_MEMORY: Final = Path("/dev/shm")
MOUNTS: Final = Path("/proc/self/mounts")
FILE_MODE: Final = 0o400
ATTEMPTS: Final = 8

_log = logging.getLogger(__name__)


class SealingKey:
    """The key in a state directory. Reading it costs an import that agents without secrets can do without, so it is
    read, or made, when it is first needed. May be used from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._key: X25519PrivateKey | None = None

    def public(self) -> str:
        """The public half, 64 hex digits. Raises durable.FileDamaged, OSError."""
        return sealed.public_bytes(self._private()).hex()

    def unseal(self, data: bytes) -> bytes:
        """What is in a sealed blob. Raises sealed.SealedInvalid, durable.FileDamaged, OSError."""
        return sealed.unseal(data, self._private())

    def _private(self) -> X25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        with self._lock:
            if self._key is None:
                if not self._path.exists():
                    made = X25519PrivateKey.generate().private_bytes_raw()
                    durable.write_file(self._path, durable.seal(MAGIC, VERSION, made))
                raw = durable.unseal(self._path, MAGIC, VERSION)
                if len(raw) != sealed.KEY_BYTES:
                    raise durable.FileDamaged(self._path, f"holds {len(raw)} bytes, which is no key")
                self._key = X25519PrivateKey.from_private_bytes(raw)
            return self._key


class OpenedSecrets:
    """Where this agent's opened secrets lie, a directory for each guest: in memory if that can be had, otherwise with
    the guest's other files. The directory in memory is there only while a guest needs it."""

    def __init__(self, state_dir: Path, otherwise: Path) -> None:
        digest = digest_of(os.fsencode(state_dir.resolve())).removeprefix("b3:")
        self._memory = SHARED_MEMORY / f"lowcloud-{os.geteuid()}-{digest[:16]}"
        self._otherwise = otherwise

    def make(self, guest: str, files: Iterable[str]) -> Path:
        """The guest's directory, with those in which these files (relative paths) are to lie. Raises OSError."""
        own = self._made(guest)
        for relative in {str(Path(file).parent) for file in files}:
            (own / relative).mkdir(mode=0o700, parents=True, exist_ok=True)
        return own

    def clear(self, guest: str) -> None:
        """Remove what a guest had in memory."""
        try:
            trees.remove_tree(self._memory / guest)
        except OSError as error:
            _log.warning("%s cannot be removed: %s", self._memory / guest, error)
        with contextlib.suppress(OSError):  # another guest's are there, or none ever were
            self._memory.rmdir()

    def sweep(self, known: Collection[str]) -> None:
        """Remove what guests had in memory that no record knows. Raises OSError."""
        if self._memory.is_dir() and _own(self._memory):
            for path in self._memory.iterdir():
                if path.name not in known:
                    self.clear(path.name)

    def _made(self, guest: str) -> Path:
        for _ in range(ATTEMPTS):
            if not (_is_memory(SHARED_MEMORY) and _own(self._memory)):
                break
            try:
                (self._memory / guest).mkdir(mode=0o700)
            except FileNotFoundError:
                continue  # the last other guest has just gone, and the directory with it
            return self._memory / guest
        _log.warning("%s cannot be used: opened secrets of %s lie on disk", self._memory, guest)
        return self._otherwise / guest


def _is_memory(path: Path) -> bool:
    try:
        mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return False
    return any(len(parts) > 2 and parts[1] == str(path) and parts[2] == "tmpfs" for parts in mounts)


def _own(directory: Path) -> bool:
    """Make a directory that only this user may enter. Anyone may write to shared memory, so one that is there already
    counts only if it is a directory of this user's with these very rights, and no link."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        facts = directory.lstat()
        return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) == 0o700
    except OSError:
        return False
    return True
