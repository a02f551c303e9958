"""Finding the pieces that other hosts ask for: in the spool, where a form is still arriving, or in the store.

A store gives out a blob from its start only, and undoes deltas on the way. So a large form that is asked for is written
to a file once, and its pieces come from there; the file has no name, so nothing of it outlives the agent. The bytes are
verified when the file is written, and again by whoever receives them.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

from agent.api.fetching import FormAsked
from cas.digest import Digest, from_raw
from cas.errors import BlobDamaged, BlobMissing, StoreFull
from cas.interface import ExchangeStore
from cas.manifest import PIECE_BYTES, pieces_in
from cas.partial import RESERVE_BYTES, Spool, free_bytes
from cas.swarm.messages import everything

SMALL_BYTES: Final = 1 << 20
"""Up to this size a form is read anew each time."""
SHELF_BYTES: Final = 2 << 30
"""So much is kept in files at most; a single form that is larger is given out all the same."""
REMEMBERED: Final = 4096


class Shelf:
    """The forms that this host can give out. Any thread may call anything; calls block."""

    def __init__(
        self,
        store: ExchangeStore,
        spool: Spool,
        directory: Path,
        *,
        shelf_bytes: int = SHELF_BYTES,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._store = store
        self._spool = spool
        self._directory = directory
        self._shelf_bytes = shelf_bytes
        self._free = free
        self._lock = threading.Lock()
        self._files: OrderedDict[Digest, _File] = OrderedDict()
        self._making: dict[Digest, threading.Lock] = {}
        self._known: OrderedDict[FormAsked, None] = OrderedDict()
        """Encodings of this store whose digest was looked at."""

    def held(self, asked: FormAsked) -> int:
        """The pieces of a form that are here, as a set."""
        arriving = self._spool.held(asked.form)
        whole = everything(pieces_in(asked.size))
        if arriving == whole or not self._in_store(asked):
            return arriving & whole
        return whole

    def arriving(self, asked: FormAsked) -> int:
        """As `held`, of what is still arriving only. Does not block."""
        return self._spool.held(asked.form) & everything(pieces_in(asked.size))

    def read(self, asked: FormAsked, index: int) -> bytes | None:
        """One piece; None where it is not here. What is damaged on this host is not here."""
        piece = self._spool.read(asked.form, index)
        if piece is not None or not 0 <= index < pieces_in(asked.size):
            return piece
        try:
            if not self._in_store(asked):
                return None
            if asked.size <= SMALL_BYTES:
                return b"".join(self._verified(asked))[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
            return self._file(asked).read(index)
        except (BlobMissing, BlobDamaged, StoreFull):
            return None

    # --- the store ---

    def _in_store(self, asked: FormAsked) -> bool:
        try:
            stat = self._store.stat(asked.blob)
            if asked.encoding == "plain":
                return asked.form == asked.blob and stat.size == asked.size
            if asked.encoding == "delta":
                fits = (stat.base, stat.stored_bytes) == (asked.base, asked.size) and stat.encoding == "delta"
                fits = fits or any((kept.base, kept.stored_bytes) == (asked.base, asked.size) for kept in stat.patches)
            else:
                fits = (stat.encoding, stat.stored_bytes) == ("zstd", asked.size)
            return fits and self._is(asked)
        except (BlobMissing, BlobDamaged):
            return False

    def _is(self, asked: FormAsked) -> bool:
        """Whether an encoding of this size is the form, or another one that is as long."""
        with self._lock:
            if asked in self._known:
                return True
        for _ in self._verified(asked):
            pass
        with self._lock:
            self._known[asked] = None
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return True

    def _verified(self, asked: FormAsked) -> Iterator[bytes]:
        """The form's bytes; raises BlobMissing at the end where they were others."""
        hasher = blake3()
        for chunk in self._chunks(asked):
            hasher.update(chunk)
            yield chunk
        if from_raw(hasher.digest()) != asked.form:
            raise BlobMissing(asked.form)

    def _chunks(self, asked: FormAsked) -> Iterable[bytes]:
        if asked.encoding == "plain":
            return self._store.stream(asked.blob)
        if asked.encoding == "delta":
            found = self._store.patch(asked.blob, [asked.base] if asked.base else [])
            if found is None:
                raise BlobMissing(asked.form)
            return [found[1]]
        stat, chunks = self._store.encoded(asked.blob)
        if stat.encoding != asked.encoding:
            raise BlobMissing(asked.form)
        return chunks

    # --- files ---

    def _file(self, asked: FormAsked) -> _File:
        with self._lock:
            making = self._making.setdefault(asked.form, threading.Lock())
        with making:
            with self._lock:
                found = self._files.get(asked.form)
                if found is not None:
                    self._files.move_to_end(asked.form)
                    return found
            try:
                made = self._make(asked)
                with self._lock:
                    self._files[asked.form] = made
            finally:
                with self._lock:
                    self._making.pop(asked.form, None)
        return made

    def _make(self, asked: FormAsked) -> _File:
        with self._lock:
            while self._files and sum(file.size for file in self._files.values()) + asked.size > self._shelf_bytes:
                self._files.popitem(last=False)
        if self._free(self._directory) < asked.size + RESERVE_BYTES:
            raise StoreFull(f"the disk of {self._directory} has no room to give out {asked.size} bytes")
        descriptor, name = tempfile.mkstemp(dir=self._directory, prefix="shelf-")
        made = _File(descriptor, asked.size)
        Path(name).unlink()
        try:
            for chunk in self._verified(asked):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
        except OSError as error:
            raise StoreFull(f"a form cannot be written to {self._directory}: {error}") from error
        return made


class _File:
    """Bytes in a file without a name, closed when nobody reads it any more."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size

    def read(self, index: int) -> bytes:
        return os.pread(self._descriptor, PIECE_BYTES, index * PIECE_BYTES)

    def __del__(self) -> None:
        os.close(self._descriptor)
