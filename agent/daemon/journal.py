"""What a host ran, when, by whose wish: an append-only file whose entries name each other by hash.

An entry is durable when `append` returns; whoever acts on a call appends first. The file is a head and frames (see
`docs/formats.md`). Each append is one write and one fsync, so a crash can tear the last frame only: `open` cuts such a
torn tail off and says so. Damage anywhere before the tail is not repaired but set aside, because a journal that mends
itself proves nothing: the damaged file is kept under another name, a new one goes on with the numbers and the hash of
the last good entry, and an auditor sees the gap.

A `Journal` may be used from any thread. Readers see durable entries only.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, TypedDict, Unpack

import msgspec
from msgspec import UnsetType

from agent.api.journal import Event, JournalEntry, entry_hash
from agent.daemon.durable import sync_directory
from cas.digest import Digest

MAGIC: Final = b"lcjournl"
VERSION: Final = 1
HEAD: Final = MAGIC + VERSION.to_bytes(4, "little")
LENGTH_BYTES: Final = 4
CHECK_BYTES: Final = 4
FRAME_HEAD_BYTES: Final = LENGTH_BYTES + CHECK_BYTES
MAX_ENTRY_BYTES: Final = 8 << 20
MAX_PAGE_ENTRIES: Final = 1000
MAX_PAGE_BYTES: Final = 8 << 20
INDEX_EVERY: Final = 256
"""Of every so many entries the offset is kept in memory, so that a page is found by reading few."""


class JournalUnwritable(Exception):
    """An entry could not be made durable. Nothing may be done that it was to announce."""

    hint = "is the disk full? see `lowcloud host show`; then try again"


class JournalUnreadable(Exception):
    """The file is of another format version, or cannot be read at all."""

    hint = "upgrade lowcloud, or move the file away and keep it for the audit"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class JournalOfAnother(JournalUnreadable):
    """The file tells of another host: its chain must not go on under a second name."""

    hint = "use this host's own state directory, or start the agent under the name that the journal has"


class Facts(TypedDict, total=False):
    """The fields of a `JournalEntry` that its writer knows."""

    process: str
    spec: Digest | None
    binary: Digest | None
    config: dict[str, Digest]
    secret: dict[str, Digest] | UnsetType
    release: Digest | None
    plan: Digest | None
    call: Digest | None
    by: str
    guest: str
    pid: int | None
    detail: str
    ms: float | None


class _Damage(Exception):
    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset


class Journal:
    """A host's journal. Make it with `Journal.open`."""

    def __init__(self, file: BinaryIO, path: Path, host: str, clock_ns: Callable[[], int]) -> None:
        self._file = file
        self._path = path
        self._host = host
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._end = len(HEAD)
        self._first_seq = 0
        self._index: list[int] = []
        self.head: JournalEntry | None = None
        self.repaired = ""
        """What `open` had to do to the file; empty where it was whole."""
        self.serving: dict[str, JournalEntry] = {}
        """By guest: its `serving` entry, as long as no `ended` or `exited` followed."""

    @classmethod
    def open(cls, path: Path, host: str, *, clock_ns: Callable[[], int] = time.time_ns) -> Journal:
        """Open or create the journal at `path`, verify its chain, and repair a torn tail. Raises
        JournalUnreadable, and JournalOfAnother where it belongs to another host."""
        journal = cls(_open_file(path), path, host, clock_ns)
        try:
            journal._scan()
        except _Damage as damage:
            journal._mend(damage)
        except BaseException:
            journal.close()
            raise
        if journal.head is not None and journal.head.host != host:
            journal.close()
            raise JournalOfAnother(f"{path} is the journal of the host {journal.head.host}, not of {host}")
        return journal

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def append(self, event: Event, **facts: Unpack[Facts]) -> JournalEntry:
        """Add an entry; it is durable when this returns. Raises JournalUnwritable."""
        with self._lock:
            return self._append(event, facts)

    def read(self, after: int = -1, limit: int = MAX_PAGE_ENTRIES) -> list[JournalEntry]:
        """Entries with a greater `seq` than `after`, oldest first: at most `limit`, fewer where they are large, or
        where the file has been damaged since it was opened. Raises JournalUnreadable where damage comes next."""
        limit = max(0, min(limit, MAX_PAGE_ENTRIES))
        page: list[JournalEntry] = []
        size = 0
        try:
            for entry, length in self._frames_from(after + 1):
                if len(page) >= limit or (page and size + length > MAX_PAGE_BYTES):
                    break
                page.append(entry)
                size += length
        except _Damage as damage:
            if not page:
                raise JournalUnreadable(
                    f"{self._path} is damaged at byte {damage.offset} ({damage})",
                    hint="keep a copy of the file; restarting the agent sets it aside and begins a new one",
                ) from damage
        return page

    def entries(self) -> Iterator[JournalEntry]:
        """Every entry, oldest first, in bounded memory."""
        for entry, _ in self._frames_from(0):
            yield entry

    # --- writing -----------------------------------------------------------------------------------------------------

    def _append(self, event: Event, facts: Facts) -> JournalEntry:
        entry = JournalEntry(
            seq=self.head.seq + 1 if self.head else 0,
            at_unix_ns=self._clock_ns(),
            previous=self.head.hash if self.head else None,
            host=self._host,
            event=event,
            **facts,
        )
        entry = msgspec.structs.replace(entry, hash=entry_hash(entry))
        body = msgspec.msgpack.encode(entry, order="deterministic")
        if len(body) > MAX_ENTRY_BYTES:
            raise JournalUnwritable(f"a journal entry of {len(body)} bytes; at most {MAX_ENTRY_BYTES} are kept")
        frame = _frame(body)
        try:
            self._file.seek(self._end)
            self._file.write(frame)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._cut(self._end)
            raise JournalUnwritable(f"{self._path}: {error}") from error
        self._note(entry, self._end)
        self._end += len(frame)
        return entry

    def _note(self, entry: JournalEntry, offset: int) -> None:
        if self.head is None:
            self._first_seq = entry.seq
        if (entry.seq - self._first_seq) % INDEX_EVERY == 0:
            self._index.append(offset)
        self.head = entry
        if entry.event is Event.SERVING and entry.guest:
            self.serving[entry.guest] = entry
        elif entry.event in (Event.ENDED, Event.EXITED):
            self.serving.pop(entry.guest, None)

    def _cut(self, offset: int) -> None:
        try:
            os.ftruncate(self._file.fileno(), offset)
            os.fsync(self._file.fileno())
        except OSError:
            return  # what cannot be cut now is a torn tail, and the next `open` cuts it

    # --- reading -----------------------------------------------------------------------------------------------------

    def _frames_from(self, seq: int) -> Iterator[tuple[JournalEntry, int]]:
        with self._lock:
            end = self._end
            block = max(0, seq - self._first_seq) // INDEX_EVERY
            if self.head is None or seq > self.head.seq or block >= len(self._index):
                return
            offset = self._index[block]
            file = self._path.open("rb")
        with file:
            while offset < end:
                entry, length = _read_frame(file, offset, end)
                if entry.seq >= seq:
                    yield entry, length
                offset += length

    def _scan(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        while self._end < size:
            entry, length = _read_frame(self._file, self._end, size)
            broken = _broken_link(self.head, entry)
            if broken:
                raise _Damage(self._end, broken)
            self._note(entry, self._end)
            self._end += length

    def _mend(self, damage: _Damage) -> None:
        """Cut a torn tail off; set a file that is damaged before its tail aside and go on in a new one."""
        size = os.fstat(self._file.fileno()).st_size
        if _is_torn_tail(self._file, damage.offset, size):
            os.ftruncate(self._file.fileno(), damage.offset)
            os.fsync(self._file.fileno())
            self.repaired = f"cut {size - damage.offset} bytes of an unfinished entry off the end"
            return
        aside = _free_name(self._path)
        self._file.close()
        self._path.rename(aside)
        self._file = _open_file(self._path)
        self._end, self._index = len(HEAD), []
        self._first_seq = self.head.seq + 1 if self.head else 0
        self.repaired = f"damaged at byte {damage.offset} ({damage}); kept as {aside.name}, a new file goes on"


def _open_file(path: Path) -> BinaryIO:
    """The file, with its head written and checked. Raises JournalUnreadable."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
    head = file.read(len(HEAD))
    if len(head) < len(HEAD) and HEAD.startswith(head.rstrip(b"\0")):
        file.seek(0)
        file.write(HEAD)
        file.flush()
        os.fsync(file.fileno())
        sync_directory(path.parent)
    elif head != HEAD:
        file.close()
        raise JournalUnreadable(f"{path} is no journal of format version {VERSION}")
    return file


def _frame(body: bytes) -> bytes:
    length = len(body).to_bytes(LENGTH_BYTES, "little")
    return length + zlib.crc32(length).to_bytes(CHECK_BYTES, "little") + body


def _read_length(file: BinaryIO, offset: int) -> int | None:
    """The length of the body of the frame at `offset`, or None where no frame begins."""
    file.seek(offset)
    head = file.read(FRAME_HEAD_BYTES)
    length, check = head[:LENGTH_BYTES], head[LENGTH_BYTES:]
    if len(head) < FRAME_HEAD_BYTES or zlib.crc32(length) != int.from_bytes(check, "little"):
        return None
    return int.from_bytes(length, "little")


def _read_frame(file: BinaryIO, offset: int, end: int) -> tuple[JournalEntry, int]:
    """The entry at `offset` and the length of its frame. Raises _Damage."""
    length = _read_length(file, offset)
    if length is None or length > MAX_ENTRY_BYTES:
        raise _Damage(offset, "no entry begins here")
    if offset + FRAME_HEAD_BYTES + length > end:
        raise _Damage(offset, "an entry that does not end")
    try:
        entry = msgspec.msgpack.decode(file.read(length), type=JournalEntry)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _Damage(offset, f"no entry: {error}") from error
    if entry.hash != entry_hash(entry):
        raise _Damage(offset, f"entry {entry.seq} is not what its hash says")
    return entry, FRAME_HEAD_BYTES + length


def _broken_link(previous: JournalEntry | None, entry: JournalEntry) -> str:
    if previous is None:
        return ""  # the first of this file; one that goes on after a damaged file starts with a later number
    if entry.seq != previous.seq + 1 or entry.previous != previous.hash:
        return f"entry {entry.seq} does not follow entry {previous.seq}"
    return ""


def _is_torn_tail(file: BinaryIO, offset: int, end: int) -> bool:
    """Can one append that did not finish have left this? Then its frame is the last, and what is not written is zero
    or absent."""
    length = _read_length(file, offset)
    if length is not None:
        return offset + FRAME_HEAD_BYTES + length >= end
    if end - offset > FRAME_HEAD_BYTES + MAX_ENTRY_BYTES:
        return False
    file.seek(offset + FRAME_HEAD_BYTES)
    return not file.read(MAX_ENTRY_BYTES).strip(b"\0")


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return candidate
