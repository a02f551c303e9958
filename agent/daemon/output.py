"""What guests have printed: one file per guest, rotated by the supervisor, read here.

`<state>/output/PROCESS/GUEST` is written now; `GUEST.1`, `GUEST.2`, … are older pieces. A guest's name sorts by the
time of its start, so all pieces of a process in order are its guests in order, each from its oldest piece to its
newest.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final

LOOK_EVERY_S: Final = 0.2
"""How often a follower looks for more."""
PIECE_BYTES: Final = 64 << 10
MAX_TAIL_BYTES: Final = 16 << 20
KEPT_GUESTS: Final = 8
"""Of so many guests of a process, the newest, output is kept."""
_OLDER = re.compile(r"(?P<guest>[a-z0-9-]+?)(?:\.(?P<age>\d{1,4}))?")


class OutputFiles:
    """The output of every process of a host. Its methods block briefly, but for `follow`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, process: str, guest: str) -> Path:
        """Where a new guest's output goes."""
        home = self._directory / process
        home.mkdir(mode=0o700, exist_ok=True)
        return home / guest

    def known(self, process: str) -> bool:
        return (self._directory / process).is_dir()

    def tail(self, process: str, limit: int, *, guest: str | None = None) -> bytes:
        """The last bytes that a process, or one of its guests, has printed; at most `limit`."""
        found: list[bytes] = []
        left = min(limit, MAX_TAIL_BYTES)
        for path in reversed(self._pieces(process, guest)):
            if left <= 0:
                break
            data = last_bytes(path, left)
            found.append(data)
            left -= len(data)
        return b"".join(reversed(found))

    async def follow(
        self, process: str, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> AsyncGenerator[bytes, None]:
        """Everything that is printed from now on, by whatever guest; nothing (`b""`) whenever it has looked in vain, so
        that who asks can see whether anybody still listens. Ends only by being closed."""
        followers = {guest: _Follower(path, from_end=True) for guest, path in self._newest(process).items()}
        try:
            while True:
                for guest, path in self._newest(process).items():
                    if guest not in followers:
                        followers[guest] = _Follower(path, from_end=False)
                for guest in [guest for guest, follower in followers.items() if follower.gone()]:
                    followers.pop(guest).close()
                for follower in followers.values():
                    while piece := follower.read():
                        yield piece
                yield b""
                await sleep(LOOK_EVERY_S)
        finally:
            for follower in followers.values():
                follower.close()

    def prune(self, process: str, *, keep: int = KEPT_GUESTS) -> None:
        """Remove the output of all but the newest guests."""
        for guest in sorted(self._newest(process))[:-keep]:
            for path in self._pieces(process, guest):
                path.unlink(missing_ok=True)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _pieces(self, process: str, guest: str | None) -> list[Path]:
        """The files of a process, or of one guest, oldest first."""
        found: list[tuple[str, int, Path]] = []
        for path in self._files(process):
            match = _OLDER.fullmatch(path.name)
            if match is not None and guest in (None, match["guest"]):
                found.append((match["guest"], -int(match["age"] or 0), path))
        return [path for _, _, path in sorted(found)]

    def _newest(self, process: str) -> dict[str, Path]:
        return {path.name: path for path in self._files(process) if "." not in path.name}

    def _files(self, process: str) -> list[Path]:
        home = self._directory / process
        return list(home.iterdir()) if home.is_dir() else []


class _Follower:
    """Reads on where a file grows, also past its rotation."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self._path = path
        self._file = path.open("rb")
        if from_end:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> bytes:
        """The next piece; empty where there is none yet."""
        if piece := self._file.read(PIECE_BYTES):
            return piece
        try:
            rotated = self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return b""
        if not rotated:
            return b""
        # Between the two looks more may have been written before the rotation; read that first.
        if piece := self._file.read(PIECE_BYTES):
            return piece
        self._file.close()
        self._file = self._path.open("rb")
        return self._file.read(PIECE_BYTES)

    def gone(self) -> bool:
        return not self._path.exists() and not self._path.with_name(f"{self._path.name}.1").exists()

    def close(self) -> None:
        self._file.close()


def last_bytes(path: Path, limit: int) -> bytes:
    """The end of a file; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""
