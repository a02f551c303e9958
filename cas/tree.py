"""A directory tree as blobs: a snapshot names pages, pages name files, files name pieces. Specified in docs/formats.md.

A page is a part of the list of everything in the tree, depth first, in the order of the names' bytes; the end of a
directory is an item of its own, so that no path is written twice however deep the tree is. Pages end where names say
so, not after so many items: one file more changes one page. A file is cut into pieces of 1 MiB, and pieces of nothing
but zeros are holes, so a sparse file costs what is in it. What has not changed has the same name in the next snapshot.

Whoever reads a tree believes nothing: names, order, sizes and sums are checked, and equal trees are written in one way
only. Nothing here touches a file system.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cas.digest import RAW_BYTES, Digest, from_raw
from cas.errors import CasError
from cas.interface import BlobStore

PIECE_BYTES: Final = 1 << 20
MAX_ENTRIES: Final = 1 << 20
MAX_DEPTH: Final = 512
MAX_PIECES: Final = 1 << 22
"""Of all files together, holes not counted: 4 TiB."""
MAX_PIECES_IN_FILE: Final = 1 << 20
MAX_NAME_BYTES: Final = 255
MAX_TARGET_BYTES: Final = 4095
MAX_INT: Final = (1 << 63) - 1
MAX_FILE_BYTES: Final = 1 << 62
MAX_MESSAGE: Final = 1000
MAX_SNAPSHOT_BYTES: Final = 1 << 20
MIN_PAGE_ITEMS: Final = 128
PAGE_ENDS_AT: Final = 512
"""After the least number of items a page ends with a name of which the CRC-32 is a multiple of this."""
PAGE_WEIGHT: Final = 256 << 10
"""And where its names and pieces take so much."""
ITEM_WEIGHT: Final = 32
MAX_PAGE_ITEMS: Final = PAGE_WEIGHT // ITEM_WEIGHT
MAX_PAGE_BYTES: Final = PAGE_WEIGHT + (MAX_PIECES_IN_FILE * RAW_BYTES) + (MAX_PIECES_IN_FILE << 4)
_SNAPSHOT_LINE: Final = b"lowcloud snapshot 1\n"
_PAGE_LINE: Final = b"lowcloud tree 1\n"

Name = Annotated[bytes, Meta(min_length=1, max_length=MAX_NAME_BYTES)]
Mode = Annotated[int, Meta(ge=0, le=0o777)]
Time = Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)]
Runs = Annotated[tuple[bytes | int, ...], Meta(max_length=(MAX_PIECES_IN_FILE << 1) + 1)]
"""A file's pieces in turn: the raw digests of pieces one after the other, or how many pieces are holes."""


class TreeInvalid(CasError):
    """This is no tree, or one that contradicts itself."""

    hint = "it was damaged, or made by another version or by somebody who means ill: use another snapshot"


class Directory(msgspec.Struct, frozen=True, array_like=True, tag="d", gc=False):
    """What is in it follows, up to the item None."""

    name: Name
    mode: Mode
    mtime_ns: Time


class File(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    name: Name
    mode: Mode
    mtime_ns: Time
    size: Annotated[int, Meta(ge=0, le=MAX_FILE_BYTES)]
    runs: Runs


class Link(msgspec.Struct, frozen=True, array_like=True, tag="h", gc=False):
    """Another name of a file that came before."""

    name: Name
    file: Annotated[int, Meta(ge=0, lt=MAX_ENTRIES)]
    """The place of that file among all files of the tree."""


class Symlink(msgspec.Struct, frozen=True, array_like=True, tag="l", gc=False):
    """Data, never followed."""

    name: Name
    mtime_ns: Time
    target: Annotated[bytes, Meta(min_length=1, max_length=MAX_TARGET_BYTES)]


Entry = Directory | File | Link | Symlink
Item = Entry | None
_Page = Annotated[list[Item], Meta(max_length=MAX_PAGE_ITEMS)]


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a volume held at one instant. Its digest names the snapshot."""

    volume: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,62}\Z")]
    host: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,62}\Z")]
    at_unix_ns: Annotated[int, Meta(ge=0, le=MAX_INT)]
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_INT)]
    """What the volume was promised then."""
    entries: Annotated[int, Meta(ge=0, le=MAX_ENTRIES)]
    data_bytes: Annotated[int, Meta(ge=0, le=MAX_INT)]
    """Of all files, without holes."""
    pages: Annotated[tuple[Digest, ...], Meta(max_length=MAX_ENTRIES)]
    left_out: Annotated[int, Meta(ge=0)] = 0
    """Entries that are neither file, directory nor symbolic link."""
    by: Annotated[str, Meta(max_length=256)] = ""
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)] = ""


def encode_snapshot(snapshot: Snapshot) -> bytes:
    return _SNAPSHOT_LINE + msgspec.msgpack.encode(snapshot, order="deterministic")


def decode_snapshot(data: bytes) -> Snapshot:
    """Raises TreeInvalid."""
    if len(data) > MAX_SNAPSHOT_BYTES or not data.startswith(_SNAPSHOT_LINE):
        raise TreeInvalid("this is no snapshot that this lowcloud can read")
    try:
        snapshot = msgspec.msgpack.decode(data[len(_SNAPSHOT_LINE) :], type=Snapshot)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TreeInvalid(f"this is no snapshot: {error}") from error
    if encode_snapshot(snapshot) != data:
        raise TreeInvalid("a snapshot that is not written in the one way that it can be")
    return snapshot


def encode_pages(items: Iterable[Item]) -> Iterator[bytes]:
    """The pages of a tree."""
    page: list[Item] = []
    weight = 0
    for item in items:
        page.append(item)
        weight += _weight(item)
        if _ends_page(item, len(page), weight):
            yield _encode_page(page)
            page, weight = [], 0
    if page:
        yield _encode_page(page)


def read_tree(snapshot: Snapshot, read: Callable[[Digest], bytes]) -> Iterator[Item]:
    """Everything in a snapshot, each part checked before it is given out; sums are checked when the last was. `read`
    gives a page by its name. Raises TreeInvalid, and what `read` raises."""
    check = _Check()
    for number, digest in enumerate(snapshot.pages):
        for item in _decode_page(read(digest), last=number + 1 == len(snapshot.pages)):
            check.see(item)
            yield item
    check.end(snapshot)


def reader(store: BlobStore) -> Callable[[Digest], bytes]:
    """What gives the snapshots and pages that a store holds. Raises TreeInvalid for what is larger than any may be,
    before memory is taken for it; BlobMissing, BlobDamaged."""

    def read(digest: Digest) -> bytes:
        size = store.stat(digest).size
        if size > MAX_PAGE_BYTES:
            raise TreeInvalid(f"{digest} has {size} bytes, which no part of a list of files has")
        return store.read(digest)

    return read


def pieces_of(items: Iterable[Item]) -> Iterator[Digest]:
    """The blobs that files are made of, in their order; one that is needed twice comes twice."""
    for item in items:
        if isinstance(item, File):
            for run in item.runs:
                if isinstance(run, bytes):
                    yield from (from_raw(run[at : at + RAW_BYTES]) for at in range(0, len(run), RAW_BYTES))


def blobs_of(digest: Digest, read: Callable[[Digest], bytes]) -> set[Digest]:
    """Everything that restoring a snapshot takes, with the snapshot itself. Raises TreeInvalid, and what `read`
    raises."""
    snapshot = decode_snapshot(read(digest))
    return {digest, *snapshot.pages, *pieces_of(read_tree(snapshot, read))}


def piece_count(size: int) -> int:
    return -(-size // PIECE_BYTES)


def data_bytes_of(file: File) -> int:
    """Bytes of a file that are in pieces."""
    pieces = sum(len(run) // RAW_BYTES for run in file.runs if isinstance(run, bytes))
    ends_in_data = bool(file.runs) and isinstance(file.runs[-1], bytes)
    return pieces * PIECE_BYTES - (-file.size % PIECE_BYTES if ends_in_data else 0)


# --- pages ----------------------------------------------------------------------------------------------------------


def _weight(item: Item) -> int:
    if item is None:
        return ITEM_WEIGHT
    runs = sum(len(run) if isinstance(run, bytes) else ITEM_WEIGHT for run in item.runs) if type(item) is File else 0
    return ITEM_WEIGHT + len(item.name) + runs


def _ends_page(item: Item, count: int, weight: int) -> bool:
    if weight >= PAGE_WEIGHT:
        return True
    return count >= MIN_PAGE_ITEMS and item is not None and zlib.crc32(item.name) % PAGE_ENDS_AT == 0


def _encode_page(items: list[Item]) -> bytes:
    return _PAGE_LINE + msgspec.msgpack.encode(items)


def _decode_page(data: bytes, *, last: bool) -> list[Item]:
    if len(data) > MAX_PAGE_BYTES or not data.startswith(_PAGE_LINE):
        raise TreeInvalid("this is no page of a tree that this lowcloud can read")
    try:
        items = msgspec.msgpack.decode(data[len(_PAGE_LINE) :], type=_Page)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TreeInvalid(f"this is no page of a tree: {error}") from error
    if list(encode_pages(items)) != [data] or not (last or _is_full(items)):
        raise TreeInvalid("a page that is not written in the one way that it can be")
    return items


def _is_full(items: list[Item]) -> bool:
    return _ends_page(items[-1], len(items), sum(map(_weight, items)))


# --- what holds of a tree -------------------------------------------------------------------------------------------


class _Check:
    """Follows a tree item by item."""

    def __init__(self) -> None:
        self._last: list[bytes] = [b""]
        """The last name of each directory that is open."""
        self._entries = self._files = self._pieces = self._data_bytes = 0

    def see(self, item: Item) -> None:
        if item is None:
            self._last.pop()
            if not self._last:
                raise TreeInvalid("a directory ends that had not begun")
            return
        self._name(item.name)
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise TreeInvalid(f"more than {MAX_ENTRIES} entries")
        match item:
            case Directory():
                self._last.append(b"")
                if len(self._last) > MAX_DEPTH + 1:
                    raise TreeInvalid(f"directories more than {MAX_DEPTH} deep")
            case File():
                self._file(item)
            case Link():
                if item.file >= self._files:
                    raise TreeInvalid(f"{item.name!r} is another name of a file that has not come yet")
            case Symlink():
                if b"\0" in item.target:
                    raise TreeInvalid(f"the symbolic link {item.name!r} has a zero byte in it")

    def end(self, snapshot: Snapshot) -> None:
        if len(self._last) != 1:
            raise TreeInvalid("a directory does not end")
        if (self._entries, self._data_bytes) != (snapshot.entries, snapshot.data_bytes):
            raise TreeInvalid(
                f"{self._entries} entries with {self._data_bytes} bytes, "
                f"where there should be {snapshot.entries} with {snapshot.data_bytes}"
            )

    def _name(self, name: bytes) -> None:
        if name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise TreeInvalid(f"{name!r} cannot be the name of a file")
        if name <= self._last[-1]:
            raise TreeInvalid(f"{name!r} comes after {self._last[-1]!r}: each name once, in order")
        self._last[-1] = name

    def _file(self, file: File) -> None:
        self._files += 1
        pieces = count = 0
        before: type[bytes] | type[int] | None = None
        for run in file.runs:
            of = len(run) // RAW_BYTES if isinstance(run, bytes) else run
            if of < 1 or type(run) is before or (isinstance(run, bytes) and len(run) % RAW_BYTES):
                raise TreeInvalid(f"the pieces of {file.name!r} are not written in the one way that they can be")
            before = type(run)
            count += of
            pieces += of if isinstance(run, bytes) else 0
        if count != piece_count(file.size):
            raise TreeInvalid(f"{file.name!r} has {file.size} bytes, its pieces are {count}")
        self._pieces += pieces
        if pieces > MAX_PIECES_IN_FILE or self._pieces > MAX_PIECES:
            raise TreeInvalid(f"{file.name!r}: more pieces than a snapshot may have")
        self._data_bytes += data_bytes_of(file)
