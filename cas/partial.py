"""The spool: forms that are arriving, piece by piece, until the blob they make is in the store.

A form has two files: `<hex>.form`, what it is and its manifest, written whole or not at all, and `<hex>.part`, its
pieces, each at its place. Which pieces are there is written down nowhere: when a spool is opened, every piece is
checked against its manifest again. So there is nothing to keep in step, a kill at any instant loses no piece that was
written, and pieces that a power cut or a failing disk took are found out and fetched again. Layout in docs/formats.md.

It is for forms of many pieces; what is one piece goes straight into the store, many in one transaction.

Any thread may call anything; calls block, so asyncio programs use `asyncio.to_thread`. One process at a time has a
spool open. What is in it is private to the host, like a store.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from cas import manifest as manifests
from cas.digest import PREFIX, Digest, is_digest
from cas.errors import BlobMissing, ExchangeError, StoreFull, StoreUnreadable
from cas.interface import ExchangeStore, Stored
from cas.inventory import Form, manifest_for
from cas.manifest import PIECE_BYTES, Manifest, pieces_in
from cas.swarm.messages import everything

MAX_FORMS: Final = 4096
RESERVE_BYTES: Final = 64 << 20
"""Disk space that a spool leaves free."""
MAX_PATCH_BYTES: Final = 256 << 20

_NAME = re.compile(r"([0-9a-f]{64})\.(form|part)\Z")
_MAGIC = b"lcsp\x01"


class _Noted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a `.form` file says, behind its magic."""

    form: Form
    manifest: bytes


class Arriving(NamedTuple):
    form: Form
    manifest: Manifest
    held: int
    """The pieces that are here, as a set."""


def free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class Spool:
    """A directory of arriving forms."""

    def __init__(
        self, directory: Path, *, quota_bytes: int | None = None, free: Callable[[Path], int] = free_bytes
    ) -> None:
        """Opens it, makes it where it is missing, and checks every piece in it; files that are no sound part of a spool
        are removed. `quota_bytes` bounds the sizes of all forms together. Raises StoreUnreadable."""
        self._directory = directory
        self._quota_bytes = quota_bytes
        self._free = free
        self._lock = threading.Lock()
        self._forms: dict[Digest, Arriving] = {}
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = sorted(path.name for path in directory.iterdir())
        except OSError as error:
            raise StoreUnreadable(f"the spool {directory} cannot be opened: {error}") from error
        for name in names:
            match = _NAME.match(name)
            if match is None or match[2] == "form":
                self._reopen(name, match[1] if match else "")
        for name in names:
            match = _NAME.match(name)
            if match is not None and match[2] == "part" and PREFIX + match[1] not in self._forms:
                self._remove(name)

    def begin(self, form: Form, manifest: Manifest | None) -> Arriving:
        """Take this form in from now on; `manifest` is that of `form.manifest`, None for a form of one piece. What is
        here of it already stays. Raises ExchangeError for a manifest of something else, StoreFull where the whole form
        would have no room."""
        read = manifest_for(form, manifest)
        with self._lock:
            known = self._forms.get(form.digest)
            if known is not None:
                return known
            self._ensure_room(form.size)
            noted = _MAGIC + msgspec.msgpack.encode(_Noted(form, manifests.encode(read)))
            self._write_whole(_stem(form.digest) + ".form", noted)
            self._path(form.digest).touch(mode=0o600)
            return self._forms.setdefault(form.digest, Arriving(form, read, 0))

    def write(self, form: Digest, index: int, piece: bytes | memoryview) -> bool:
        """Check a piece and put it in its place; False, and nothing is written, where it is not that piece. Raises
        BlobMissing for a form that was not begun, StoreFull."""
        arriving = self._arriving(form)
        if not 0 <= index < len(arriving.manifest.pieces) or not arriving.manifest.fits(index, piece):
            return False
        try:
            descriptor = os.open(self._path(form), os.O_WRONLY | os.O_CLOEXEC)
            try:
                _write_at(descriptor, piece, index * PIECE_BYTES)
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            raise BlobMissing(form) from error
        except OSError as error:
            raise StoreFull(f"a piece of {form} cannot be written to {self._directory}: {error}") from error
        with self._lock:
            now = self._forms.get(form)
            if now is None:
                raise BlobMissing(form)
            self._forms[form] = now._replace(held=now.held | 1 << index)
        return True

    def read(self, form: Digest, index: int) -> bytes | None:
        """A piece that is here, verified; None where it is not. A piece that has gone bad is forgotten."""
        with self._lock:
            arriving = self._forms.get(form)
        if arriving is None or index < 0 or not arriving.held >> index & 1:
            return None
        try:
            with self._path(form).open("rb") as file:
                piece = os.pread(file.fileno(), arriving.manifest.length(index), index * PIECE_BYTES)
        except OSError:
            piece = b""
        if piece and arriving.manifest.fits(index, piece):
            return piece
        self._forget(form, index)
        return None

    def held(self, form: Digest) -> int:
        """The pieces of a form that are here; 0 also for a form that was not begun."""
        with self._lock:
            arriving = self._forms.get(form)
        return 0 if arriving is None else arriving.held

    def forms(self) -> dict[Digest, Arriving]:
        with self._lock:
            return dict(self._forms)

    def finish(self, form: Digest, blob: Digest, size: int, store: ExchangeStore) -> Stored:
        """Make the blob of `size` bytes of a form that is here whole, store it durably, and only then drop the form.
        After an error the form stays, unless one of its pieces has gone bad, which is then forgotten. Raises
        BlobMissing for pieces that are not here, ExchangeError where the form makes something else, and what the store
        raises."""
        arriving = self._arriving(form)
        if arriving.held != everything(len(arriving.manifest.pieces)):
            raise BlobMissing(form)
        if arriving.form.encoding == "delta":
            stored = self._finish_delta(arriving, blob, size, store)
        else:
            stored = self._finish_stream(arriving, blob, size, store)
        self.drop(form)
        return stored

    def drop(self, form: Digest) -> None:
        """Idempotent."""
        with self._lock:
            self._forms.pop(form, None)
            self._remove(_stem(form) + ".form")
            self._remove(_stem(form) + ".part")

    # --- finishing ---

    def _finish_delta(self, arriving: Arriving, blob: Digest, size: int, store: ExchangeStore) -> Stored:
        import delta

        if arriving.form.size > MAX_PATCH_BYTES:
            raise ExchangeError(f"the delta of {blob} has {arriving.form.size} bytes")
        patch = b"".join(self._pieces(arriving))
        try:
            return store.put_patch(blob, patch, max_size=size)
        except delta.DeltaError as error:
            raise ExchangeError(f"the delta of {blob} cannot be applied: {error}") from error

    def _finish_stream(self, arriving: Arriving, blob: Digest, size: int, store: ExchangeStore) -> Stored:
        if arriving.form.size <= PIECE_BYTES and arriving.form.encoding == "plain":
            return store.put(b"".join(self._pieces(arriving)), expect=blob)
        incoming = store.receive(blob, encoding=arriving.form.encoding, size=size)
        try:
            for piece in self._pieces(arriving):
                incoming.write(piece)
            return incoming.commit()
        finally:
            incoming.abort()

    def _pieces(self, arriving: Arriving) -> Iterator[bytes]:
        for index in range(len(arriving.manifest.pieces)):
            piece = self.read(arriving.form.digest, index)
            if piece is None:
                raise BlobMissing(arriving.form.digest)
            yield piece

    # --- files ---

    def _reopen(self, name: str, stem: str) -> None:
        """Take a `.form` file up again, or remove what is none."""
        try:
            with (self._directory / name).open("rb") as file:
                data = file.read(manifests.MAX_MANIFEST_BYTES + PIECE_BYTES)
            if not stem or not data.startswith(_MAGIC):
                raise ExchangeError("no note of a form")
            noted = msgspec.msgpack.decode(data[len(_MAGIC) :], type=_Noted)
            manifest = manifest_for(noted.form, manifests.decode(noted.manifest))
            if _stem(noted.form.digest) != stem or len(self._forms) >= MAX_FORMS:
                raise ExchangeError("no note of this form")
            held = self._checked(noted.form.digest, manifest)
        except (OSError, ValueError, msgspec.MsgspecError, ExchangeError):
            self._remove(name)
            return
        self._forms[noted.form.digest] = Arriving(noted.form, manifest, held)

    def _checked(self, form: Digest, manifest: Manifest) -> int:
        """The pieces that are there and sound."""
        held = 0
        self._path(form).touch(mode=0o600)
        with self._path(form).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for index in range(min(len(manifest.pieces), pieces_in(size))):
                if manifest.fits(index, os.pread(file.fileno(), PIECE_BYTES, index * PIECE_BYTES)):
                    held |= 1 << index
        return held

    def _forget(self, form: Digest, index: int) -> None:
        with self._lock:
            now = self._forms.get(form)
            if now is not None:
                self._forms[form] = now._replace(held=now.held & ~(1 << index))

    def _arriving(self, form: Digest) -> Arriving:
        with self._lock:
            found = self._forms.get(form)
        if found is None:
            raise BlobMissing(form)
        return found

    def _ensure_room(self, size_bytes: int) -> None:
        if len(self._forms) >= MAX_FORMS:
            raise StoreFull(f"{MAX_FORMS} forms are arriving in {self._directory} already")
        announced = sum(arriving.form.size for arriving in self._forms.values())
        if self._quota_bytes is not None and announced + size_bytes > self._quota_bytes:
            raise StoreFull(
                f"{size_bytes} more bytes do not fit into the spool {self._directory} of {self._quota_bytes}"
            )
        lacking = announced - sum(_held_bytes(arriving) for arriving in self._forms.values())
        if self._free(self._directory) < lacking + size_bytes + RESERVE_BYTES:
            raise StoreFull(f"the disk of {self._directory} has no room for {size_bytes} more bytes")

    def _write_whole(self, name: str, data: bytes) -> None:
        made = self._directory / f"{name}.new"
        try:
            made.write_bytes(data)
            made.chmod(0o600)
            made.replace(self._directory / name)
        except OSError as error:
            raise StoreFull(f"{made} cannot be written: {error}") from error

    def _remove(self, name: str) -> None:
        path = self._directory / name
        if path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)

    def _path(self, form: Digest) -> Path:
        return self._directory / f"{_stem(form)}.part"


def _stem(form: Digest) -> str:
    if not is_digest(form):
        raise ValueError(f"not a digest: {form!r}")
    return form[len(PREFIX) :]


def _held_bytes(arriving: Arriving) -> int:
    return min(arriving.form.size, arriving.held.bit_count() * PIECE_BYTES)


def _write_at(descriptor: int, piece: bytes | memoryview, at: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
