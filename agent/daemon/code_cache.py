"""Compiled code on this host: made here, for this engine, checked before every use.

Loading compiled code is trusting it, so an entry is used only if its head says that this host's engine made it from
this binary, and the code is byte for byte what the head says. Anything else (another engine's, torn, damaged) is
removed and made again. The directory must be writable by the agent only. An entry is two files: `KEY.code`, exactly
what the engine loads, and `KEY.head`, a sealed `CodeHead`, written last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal

import msgspec
from blake3 import blake3

from agent.daemon.durable import FileDamaged, seal, sync_directory, unseal, write_file
from cas.digest import PREFIX, Digest

MAGIC: Final = b"lccode"
VERSION: Final = 1
LIMIT_BYTES: Final = 4 << 30
PIECE_BYTES: Final = 1 << 20


class CodeHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an entry was made from, by what, and what it must contain."""

    binary: Digest
    fingerprint: str
    kind: Literal["core", "component"]
    code_bytes: int
    code_digest: Digest


class Code(msgspec.Struct, frozen=True):
    """Compiled code, ready to load."""

    path: Path
    kind: Literal["core", "component"]


class CodeCache:
    """The compiled code of one host and one engine. Its methods block; call them in a thread."""

    def __init__(self, directory: Path, fingerprint: str, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory
        self._fingerprint = fingerprint
        self._limit_bytes = limit_bytes
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)

    def get(self, binary: Digest) -> Code | None:
        """The checked entry of a binary, or None where there is none that may be used."""
        code, head_path = self._paths(binary)
        head = self._sound_head(binary)
        if head is None:
            self._remove(binary)
            return None
        os.utime(head_path)
        return Code(path=code, kind=head.kind)

    def holds(self, binary: Digest) -> bool:
        """Whether `get` would find it; unlike `get` this changes nothing, not even what was used last."""
        return self._sound_head(binary) is not None

    def put(self, binary: Digest, kind: Literal["core", "component"], compiled: Path) -> Code:
        """Move the file that the compiler made into the cache; durable when this returns."""
        code, head_path = self._paths(binary)
        size, digest = _measure(compiled)
        head = CodeHead(binary, self._fingerprint, kind, size, digest)
        compiled.chmod(0o600)
        compiled.replace(code)
        sync_directory(self._directory)
        write_file(head_path, seal(MAGIC, VERSION, msgspec.msgpack.encode(head)))
        return Code(path=code, kind=kind)

    def prune(self, needed: Collection[Digest], *, to_bytes: int | None = None) -> int:
        """Remove entries that are not needed, the longest unused first, until the cache is within its limit (or within
        `to_bytes`); entries of other engines always. Returns the bytes removed."""
        limit = self._limit_bytes if to_bytes is None else to_bytes
        kept = {self._key(binary) for binary in needed}
        sizes = {path.stem: path.stat().st_size for path in self._directory.glob("*.code")}
        total = sum(sizes.values())
        removed = 0
        for stem in sorted(sizes, key=self._last_used):
            stale = not stem.endswith(self._suffix())
            if not stale and (stem in kept or total - removed <= limit):
                continue
            self._remove_files(stem)
            removed += sizes[stem]
        return removed

    # --- inside ------------------------------------------------------------------------------------------------------

    def _sound_head(self, binary: Digest) -> CodeHead | None:
        code, head_path = self._paths(binary)
        try:
            head = msgspec.msgpack.decode(unseal(head_path, MAGIC, VERSION), type=CodeHead)
        except (FileNotFoundError, FileDamaged, msgspec.MsgspecError):
            return None
        made_for_this = head.binary == binary and head.fingerprint == self._fingerprint
        return head if made_for_this and _measure(code) == (head.code_bytes, head.code_digest) else None

    def _suffix(self) -> str:
        return hashlib.blake2b(self._fingerprint.encode(), digest_size=8).hexdigest()

    def _key(self, binary: Digest) -> str:
        return f"{binary.removeprefix(PREFIX)}-{self._suffix()}"

    def _paths(self, binary: Digest) -> tuple[Path, Path]:
        key = self._key(binary)
        return self._directory / f"{key}.code", self._directory / f"{key}.head"

    def _last_used(self, stem: str) -> float:
        try:
            return (self._directory / f"{stem}.head").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _remove(self, binary: Digest) -> None:
        self._remove_files(self._key(binary))

    def _remove_files(self, stem: str) -> None:
        for ending in ("head", "code"):
            (self._directory / f"{stem}.{ending}").unlink(missing_ok=True)


def _measure(path: Path) -> tuple[int, Digest]:
    """Size and digest of a file; of one that is not there, those of no file."""
    hasher = blake3()
    size = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
                size += len(piece)
    except FileNotFoundError:
        return -1, ""
    return size, PREFIX + hasher.hexdigest()
