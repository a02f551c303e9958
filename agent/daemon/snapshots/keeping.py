"""Where the pieces of files go: into the store, or, while a process is held, into a file that is quickly written.

A piece whose place held another one before is kept as a delta of that one, so a page that changes in a large database
costs about that page. All others are stored whole: small ones many in one transaction, large ones compressed as fast as
a stream is, which for what programs write is as small as the level for programs and takes a sixth of the time.
Everything is leased before it is stored, so no collection takes away what the snapshot will name.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from cas import compression
from cas.digest import Digest, digest_of, from_raw
from cas.entries import ENCODING_NAMES
from cas.errors import CasError
from cas.interface import ExchangeStore, Stored

LEASE_S: Final = 86400.0
GATHER_BYTES: Final = 16 << 20
GATHER_PIECES: Final = 4096
LARGE_BYTES: Final = 64 << 10
LEAST_FOR_DELTA_BYTES: Final = 4096
WORTH: Final = 2
"""A delta is kept where it is so many times smaller than the piece."""


class Keeper:
    """Puts pieces into a store. `owner`: whose leases protect them until the snapshot is recorded."""

    def __init__(self, store: ExchangeStore, owner: str) -> None:
        self._store = store
        self._owner = owner
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self.blobs = 0
        self.stored_bytes = 0

    def keep(self, digest: bytes, piece: bytes, before: bytes | None) -> None:
        """As `agent.daemon.snapshots.content.Keep`. Raises StoreFull, StoreBusy."""
        if before is not None and len(piece) >= LEAST_FOR_DELTA_BYTES and self._keep_as_delta(digest, piece, before):
            return
        self._gathered.append(piece)
        self._gathered_bytes += len(piece)
        if self._gathered_bytes >= GATHER_BYTES or len(self._gathered) >= GATHER_PIECES:
            self.flush()

    def put(self, data: bytes, *, name: str | None = None) -> Stored:
        """A record of the snapshot. `name`: what makes the one before its base."""
        stored = self._store.put(data, name=name)
        self._store.lease([stored.digest], owner=self._owner, ttl_s=LEASE_S)
        self._count(stored)
        return stored

    def flush(self) -> None:
        """Everything that was given is durable when this returns."""
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        small = [piece for piece in gathered if len(piece) < LARGE_BYTES]
        large = {digest_of(piece): piece for piece in gathered if len(piece) >= LARGE_BYTES}
        if small:
            for stored in self._store.put_many(small, lease_owner=self._owner, ttl_s=LEASE_S):
                self._count(stored)
        if large:
            self._store.lease(large, owner=self._owner, ttl_s=LEASE_S)
            for digest in self._store.missing(large):
                self._keep_large(digest, large[digest])

    def _keep_large(self, digest: Digest, piece: bytes) -> None:
        kind, encoded = compression.smallest(piece, level=compression.STREAM_LEVEL)
        incoming = self._store.receive(digest, encoding=ENCODING_NAMES[kind], size=len(piece))
        try:
            incoming.write(encoded)
            self._count(incoming.commit())
        finally:
            incoming.abort()

    def _keep_as_delta(self, digest: bytes, piece: bytes, before: bytes) -> bool:
        import delta

        try:
            patch = delta.encode(self._store.read(from_raw(before)), piece, effort="fast")
            if len(patch) * WORTH > len(piece):
                return False
            self._store.lease([from_raw(digest)], owner=self._owner, ttl_s=LEASE_S)
            self._count(self._store.put_patch(from_raw(digest), patch, max_size=len(piece)))
        except (CasError, delta.DeltaError):
            return False  # the piece before is gone or damaged; a full store says so again when this is stored whole
        return True

    def _count(self, stored: Stored) -> None:
        self.blobs += stored.new
        self.stored_bytes += stored.stored_bytes


class _Spooled(NamedTuple):
    digest: bytes
    at: int
    size: int
    before: bytes | None


class Spool:
    """A nameless file that holds pieces until there is time to store them; gone with whoever has it open."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by this class's own exit
        self._pieces: list[_Spooled] = []
        self._at = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keep(self, digest: bytes, piece: bytes, before: bytes | None) -> None:
        """As `agent.daemon.snapshots.content.Keep`. Raises OSError."""
        self._file.write(piece)
        self._pieces.append(_Spooled(digest, self._at, len(piece), before))
        self._at += len(piece)

    def pour(self, keeper: Keeper) -> None:
        """Give everything on. Raises as `Keeper.keep`, OSError."""
        self._file.flush()
        for one in self._pieces:
            self._file.seek(one.at)
            keeper.keep(one.digest, self._file.read(one.size), one.before)
        keeper.flush()
