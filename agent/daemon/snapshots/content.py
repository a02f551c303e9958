"""A file's bytes as pieces: only what is no hole is read, and what was there before is recognised by its digest."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from blake3 import blake3

from agent.daemon.snapshots.walk import VolumeUnfit
from cas.digest import RAW_BYTES
from cas.tree import MAX_FILE_BYTES, MAX_PIECES_IN_FILE, PIECE_BYTES, Runs, piece_count

Keep = Callable[[bytes, bytes, bytes | None], None]
"""Is given each piece that is new: its digest (raw), its bytes, and the digest of what was in its place before."""
_NOTHING: Final = bytes(PIECE_BYTES)


def read_pieces(descriptor: int, size: int, before: Runs, keep: Keep) -> tuple[Runs, int]:
    """The pieces of a file of this size, and how many bytes were read. `before`: its pieces when it was last looked at.
    A file that changes meanwhile gives pieces of no particular instant. Raises VolumeUnfit, OSError."""
    if size > MAX_FILE_BYTES:
        raise VolumeUnfit(f"a file in it has {size} bytes")
    earlier = _by_place(before)
    runs = _Runs()
    read = 0
    for place in _places_of_data(descriptor, size):
        piece = os.pread(descriptor, PIECE_BYTES, place * PIECE_BYTES)[: size - place * PIECE_BYTES]
        read += len(piece)
        if not piece or piece == _NOTHING[: len(piece)]:
            continue
        digest = blake3(piece).digest()
        was = earlier.get(place)
        if digest != was:
            keep(digest, piece, was)
        runs.add(place, digest)
    return runs.ended(piece_count(size)), read


class _Runs:
    """Builds a file's runs from its pieces, given by rising place."""

    def __init__(self) -> None:
        self._runs: list[bytes | int] = []
        self._digests = bytearray()
        self._place = 0

    def add(self, place: int, digest: bytes) -> None:
        if place > self._place:
            self._end_digests()
            self._runs.append(place - self._place)
        self._digests += digest
        self._place = place + 1

    def ended(self, pieces: int) -> Runs:
        self._end_digests()
        if pieces > self._place:
            self._runs.append(pieces - self._place)
        return tuple(self._runs)

    def _end_digests(self) -> None:
        if self._digests:
            self._runs.append(bytes(self._digests))
            self._digests.clear()


def _places_of_data(descriptor: int, size: int) -> Iterator[int]:
    """The places of the pieces that are more than a hole. Raises VolumeUnfit, OSError."""
    last, at, count = -1, 0, 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        for place in range(max(start // PIECE_BYTES, last + 1), piece_count(end)):
            last = place
            count += 1
            if count > MAX_PIECES_IN_FILE:
                raise VolumeUnfit(f"a file in it has more than {MAX_PIECES_IN_FILE * PIECE_BYTES} bytes of data")
            yield place
        at = max(end, at + 1)


def _by_place(runs: Runs) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    place = 0
    for run in runs:
        if isinstance(run, int):
            place += run
            continue
        for at in range(0, len(run), RAW_BYTES):
            found[place] = run[at : at + RAW_BYTES]
            place += 1
    return found
