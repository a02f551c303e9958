"""Writing a snapshot out into an empty directory that nobody else has: names below descriptors, no link followed.

Files come with their permissions, times and other names; blocks of zeros are left as holes. Whose they are is decided
when a process starts with the volume. Nothing is durable before the file system as a whole is synchronised at the end.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Final

from cas.digest import RAW_BYTES, Digest, from_raw
from cas.interface import BlobStore
from cas.tree import PIECE_BYTES, Directory, File, Item, Link, Symlink, TreeInvalid

BLOCK_BYTES: Final = 4096
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ZEROS: Final = bytes(BLOCK_BYTES)


def restore(root: int, items: Iterable[Item], store: BlobStore) -> int:
    """Write everything, durably; how many bytes were written. `items` must have been checked (`cas.tree.read_tree`).
    Raises BlobMissing, BlobDamaged, TreeInvalid, OSError."""
    items = list(items)
    writer = _Writer(root, store, {item.file for item in items if isinstance(item, Link)})
    try:
        for item in items:
            writer.write(item)
    finally:
        writer.close()
    _sync_file_system(root)
    return writer.written_bytes


class _Writer:
    def __init__(self, root: int, store: BlobStore, linked: set[int]) -> None:
        self._root = root
        self._store = store
        self._linked = linked
        self._paths: dict[int, tuple[bytes, ...]] = {}
        """Where the files are that have other names, by their place among the files."""
        self._files = 0
        self._open: list[tuple[int, Directory]] = []
        self.written_bytes = 0

    def write(self, item: Item) -> None:
        match item:
            case None:
                self._leave()
            case Directory():
                os.mkdir(item.name, 0o700, dir_fd=self._here)
                self._open.append((os.open(item.name, _DIRECTORY, dir_fd=self._here), item))
            case File():
                if self._files in self._linked:
                    self._paths[self._files] = (*(directory.name for _, directory in self._open), item.name)
                self._files += 1
                self._file(item)
            case Link():
                self._link(item)
            case Symlink():
                os.symlink(item.target, item.name, dir_fd=self._here)
                times = (item.mtime_ns, item.mtime_ns)
                os.utime(item.name, ns=times, dir_fd=self._here, follow_symlinks=False)

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop()[0])

    @property
    def _here(self) -> int:
        return self._open[-1][0] if self._open else self._root

    def _leave(self) -> None:
        """What comes into a directory changes its time, so its own is set last."""
        descriptor, directory = self._open.pop()
        _finish(descriptor, directory.mode, directory.mtime_ns)

    def _file(self, file: File) -> None:
        descriptor = os.open(file.name, _NEW_FILE, 0o600, dir_fd=self._here)
        try:
            os.truncate(descriptor, file.size)
            at = 0
            for run in file.runs:
                if isinstance(run, int):
                    at += run * PIECE_BYTES
                    continue
                for start in range(0, len(run), RAW_BYTES):
                    digest = from_raw(run[start : start + RAW_BYTES])
                    piece = self._piece(digest, min(PIECE_BYTES, file.size - at))
                    self.written_bytes += _write_data(descriptor, piece, at)
                    at += PIECE_BYTES
        except BaseException:
            os.close(descriptor)
            raise
        _finish(descriptor, file.mode, file.mtime_ns)

    def _piece(self, digest: Digest, size: int) -> bytes:
        if self._store.stat(digest).size != size:
            raise TreeInvalid(f"the piece {digest} is not of {size} bytes, as its place says")
        return self._store.read(digest)

    def _link(self, link: Link) -> None:
        *directories, name = self._paths[link.file]
        at = os.dup(self._root)
        try:
            for one in directories:
                below = os.open(one, _DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            os.link(name, link.name, src_dir_fd=at, dst_dir_fd=self._here, follow_symlinks=False)
        finally:
            os.close(at)


def _write_data(descriptor: int, piece: bytes, at: int) -> int:
    """Write all blocks but those of zeros, neighbours in one; how many bytes."""
    written, begun = 0, None
    for start in range(0, len(piece) + BLOCK_BYTES, BLOCK_BYTES):
        block = piece[start : start + BLOCK_BYTES]
        if block and block != _ZEROS[: len(block)]:
            begun = start if begun is None else begun
        elif begun is not None:
            written += _write_all(descriptor, memoryview(piece)[begun:start], at + begun)
            begun = None
    return written


def _write_all(descriptor: int, data: memoryview, at: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)
    return done


def _finish(descriptor: int, mode: int, mtime_ns: int) -> None:
    """Permissions and time; closes it."""
    try:
        os.fchmod(descriptor, mode)
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"synchronise the file system: {os.strerror(number)}")
