"""The format of snapshots: what is written is read back, in one way only, and what contradicts itself is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import tree
from cas.digest import Digest, digest_of, from_raw
from cas.memory import MemoryStore
from cas.tree import (
    MAX_DEPTH,
    MIN_PAGE_ITEMS,
    PAGE_ENDS_AT,
    PIECE_BYTES,
    Directory,
    File,
    Item,
    Link,
    Snapshot,
    Symlink,
    TreeInvalid,
    blobs_of,
    data_bytes_of,
    decode_snapshot,
    encode_pages,
    encode_snapshot,
    piece_count,
    pieces_of,
    read_tree,
    reader,
)

ONE, TWO = b"\1" * 32, b"\2" * 32

ITEMS: list[Item] = [
    Directory(b"conf", 0o750, 1_700_000_000_000_000_001),
    File(b"a.toml", 0o640, -1, 3, (ONE,)),
    None,
    File(b"data.db", 0o600, 2, 5 * PIECE_BYTES, (2, ONE + TWO, 1)),
    Link(b"data.link", 1),
    Symlink(b"etc", 3, b"/etc/passwd"),
    File(b"n\xff", 0o600, 0, 0, ()),
]
GOLDEN_PAGE = (
    b"lowcloud tree 1\n\x97"
    b"\x94\xa1d\xc4\x04conf\xcd\x01\xe8\xcf\x17\x97\x9c\xfe6*\x00\x01"
    b"\x96\xa1f\xc4\x06a.toml\xcd\x01\xa0\xff\x03\x91\xc4\x20" + ONE + b"\xc0"
    b"\x96\xa1f\xc4\x07data.db\xcd\x01\x80\x02\xce\x00\x50\x00\x00\x93\x02\xc4\x40" + ONE + TWO + b"\x01"
    b"\x93\xa1h\xc4\x09data.link\x01"
    b"\x94\xa1l\xc4\x03etc\x03\xc4\x0b/etc/passwd"
    b"\x96\xa1f\xc4\x02n\xff\xcd\x01\x80\x00\x00\x90"
)


def snapshot_of(items: Iterable[Item]) -> tuple[Snapshot, dict[Digest, bytes]]:
    """A snapshot that says of these items what is true, and its pages."""
    held = list(items)
    pages = {digest_of(page): page for page in encode_pages(held)}
    snapshot = Snapshot(
        volume="kv-data",
        host="fra1",
        at_unix_ns=1_700_000_000_000_000_000,
        size_bytes=16 << 20,
        entries=sum(item is not None for item in held),
        data_bytes=sum(data_bytes_of(item) for item in held if isinstance(item, File)),
        pages=tuple(map(digest_of, encode_pages(held))),
    )
    return snapshot, pages


def test_the_bytes_of_a_page_and_of_a_snapshot_are_these() -> None:
    snapshot, pages = snapshot_of(ITEMS)
    assert list(pages.values()) == [GOLDEN_PAGE]
    assert encode_snapshot(snapshot) == (
        b"lowcloud snapshot 1\n\x87\xa6volume\xa7kv-data\xa4host\xa4fra1\xaaat_unix_ns\xcf\x17\x97\x9c\xfe6*\x00\x00"
        b"\xaasize_bytes\xce\x01\x00\x00\x00\xa7entries\x06\xaadata_bytes\xce\x00 \x00\x03\xa5pages\x91\xd9C"
        + digest_of(GOLDEN_PAGE).encode()
    )


# --- what is written is read back -----------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=12).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
TIMES = st.integers(-(1 << 60), 1 << 60)
MODES = st.integers(0, 0o777)
RAW = st.integers(1, 255).map(lambda n: bytes([n]) * 32)
PLACES = st.lists(st.one_of(st.none(), RAW), max_size=6)


@st.composite
def files(draw: st.DrawFn, name: bytes) -> File:
    places = draw(PLACES)
    runs: list[bytes | int] = []
    for place in places:
        if place is None:
            runs = [*runs[:-1], runs[-1] + 1] if runs and isinstance(runs[-1], int) else [*runs, 1]
        else:
            runs = [*runs[:-1], runs[-1] + place] if runs and isinstance(runs[-1], bytes) else [*runs, place]
    size = len(places) * PIECE_BYTES - draw(st.integers(0, PIECE_BYTES - 1)) if places else 0
    return File(name, draw(MODES), draw(TIMES), size, tuple(runs))


@st.composite
def trees(draw: st.DrawFn) -> list[Item]:
    items: list[Item] = []
    count = 0

    def fill(depth: int) -> None:
        nonlocal count
        for name in sorted(draw(st.sets(NAMES, max_size=5))):
            kind = draw(st.sampled_from("dfhl" if depth < 4 else "fhl"))
            if kind == "d":
                items.append(Directory(name, draw(MODES), draw(TIMES)))
                fill(depth + 1)
                items.append(None)
            elif kind == "h" and count:
                items.append(Link(name, draw(st.integers(0, count - 1))))
            elif kind == "l":
                items.append(Symlink(name, draw(TIMES), draw(st.binary(min_size=1, max_size=20)).replace(b"\0", b"x")))
            else:
                items.append(draw(files(name)))
                count += 1

    fill(0)
    return items


@given(trees())
def test_any_tree_is_read_as_it_was_written(items: list[Item]) -> None:
    snapshot, pages = snapshot_of(items)
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot
    assert list(read_tree(snapshot, pages.__getitem__)) == items
    head = {digest_of(encode_snapshot(snapshot)): encode_snapshot(snapshot)}
    assert blobs_of(next(iter(head)), {**pages, **head}.__getitem__) == {*head, *pages, *pieces_of(items)}


def test_one_file_more_changes_a_page_or_two_of_a_large_tree() -> None:
    names = [b"%08d" % n for n in range(20_000)]
    before = set(encode_pages(File(name, 0o600, 0, 0, ()) for name in names))
    assert 20_000 // PAGE_ENDS_AT // 2 < len(before) < 20_000 // MIN_PAGE_ITEMS
    for added in (b"0", b"00007000x", b"00010000x", b"1"):
        after = set(encode_pages(File(name, 0o600, 0, 0, ()) for name in sorted([*names, added])))
        assert len(after - before) <= 2


# --- what is refused ------------------------------------------------------------------------------------------------


def file(name: bytes, *, size: int = 0, runs: tuple[bytes | int, ...] = ()) -> File:
    return File(name, 0o600, 0, size, runs)


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([file(b"..")], "cannot be the name"),
        ([file(b".")], "cannot be the name"),
        ([file(b"/etc/passwd")], "cannot be the name"),
        ([file(b"a/b")], "cannot be the name"),
        ([file(b"a\0b")], "cannot be the name"),
        ([file(b"a"), file(b"a")], "once, in order"),
        ([file(b"b"), file(b"a")], "once, in order"),
        ([Directory(b"a", 0o700, 0), None, Link(b"a", 0)], "once, in order"),
        ([Directory(b"a", 0o700, 0)], "does not end"),
        ([None], "had not begun"),
        ([Directory(b"a", 0o700, 0), None, None], "had not begun"),
        ([Link(b"a", 0), file(b"b")], "has not come yet"),
        ([Symlink(b"a", 0, b"x\0y")], "zero byte"),
        ([file(b"a", size=1)], "its pieces are 0"),
        ([file(b"a", size=0, runs=(ONE,))], "its pieces are 1"),
        ([file(b"a", size=PIECE_BYTES + 1, runs=(ONE,))], "its pieces are 1"),
        ([file(b"a", size=2 * PIECE_BYTES, runs=(ONE, TWO))], "in the one way"),
        ([file(b"a", size=2 * PIECE_BYTES, runs=(1, 1))], "in the one way"),
        ([file(b"a", size=1, runs=(ONE[:31],))], "in the one way"),
        ([file(b"a", size=1, runs=(b"",))], "in the one way"),
        ([file(b"a", size=1, runs=(0,))], "in the one way"),
        ([file(b"a", size=0, runs=(-1,))], "in the one way"),
        (
            [*(Directory(b"d", 0o700, 0) for _ in range(MAX_DEPTH + 1)), *(None for _ in range(MAX_DEPTH + 1))],
            "deep",
        ),
    ],
)
def test_a_tree_that_contradicts_itself_is_refused(items: list[Item], why: str) -> None:
    snapshot, pages = snapshot_of(items)
    with pytest.raises(TreeInvalid, match=why):
        list(read_tree(snapshot, pages.__getitem__))


def test_sums_that_are_not_true_are_refused() -> None:
    snapshot, pages = snapshot_of(ITEMS)
    for wrong in (
        msgspec.structs.replace(snapshot, entries=7),
        msgspec.structs.replace(snapshot, data_bytes=snapshot.data_bytes - 1),
    ):
        with pytest.raises(TreeInvalid, match="where there should be"):
            list(read_tree(wrong, pages.__getitem__))


def test_more_pieces_or_entries_than_there_may_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, pages = snapshot_of(ITEMS)
    for name, limit in (("MAX_PIECES", 2), ("MAX_PIECES_IN_FILE", 1), ("MAX_ENTRIES", 5)):
        with monkeypatch.context() as patched:
            patched.setattr(tree, name, limit)
            with pytest.raises(TreeInvalid, match="more"):
                list(read_tree(snapshot, pages.__getitem__))


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"lowcloud tree 2\n\x90",
        b"lowcloud tree 1\n\x90",
        b"lowcloud tree 1\n\xc0",
        GOLDEN_PAGE + b"\xc0",
        GOLDEN_PAGE[:-1],
        GOLDEN_PAGE.replace(b"\x94\xa1l\xc4\x03etc\x03", b"\x94\xa1l\xc4\x03etc\xcc\x03"),  # the number in another way
        b"lowcloud tree 1\n\xdd\xff\xff\xff\xff",
        b"lowcloud tree 1\n" + b"\x91" * 5000,
    ],
)
def test_a_page_that_is_none_or_is_written_in_another_way_is_refused(page: bytes) -> None:
    snapshot = msgspec.structs.replace(snapshot_of(ITEMS)[0], pages=(digest_of(page),))
    with pytest.raises(TreeInvalid):
        list(read_tree(snapshot, lambda _: page))


def test_a_page_of_more_items_than_any_has_is_refused_before_memory_is_taken_for_them() -> None:
    count = 40 << 20
    page = b"lowcloud tree 1\n\xdd" + count.to_bytes(4, "big") + b"\xc0" * count
    snapshot = msgspec.structs.replace(snapshot_of(ITEMS)[0], pages=(digest_of(page),))
    tracemalloc.start()
    try:
        with pytest.raises(TreeInvalid):
            list(read_tree(snapshot, lambda _: page))
        assert tracemalloc.get_traced_memory()[1] < 2 * count
    finally:
        tracemalloc.stop()


def test_a_blob_that_is_too_large_for_a_page_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unread(MemoryStore):
        def read(self, digest: Digest) -> bytes:
            raise AssertionError(digest)

    store = Unread()
    large = store.put(bytes(11)).digest
    monkeypatch.setattr(tree, "MAX_PAGE_BYTES", 10)
    with pytest.raises(TreeInvalid, match="has 11 bytes"):
        blobs_of(large, reader(store))


def test_pages_that_are_cut_elsewhere_are_refused() -> None:
    items: list[Item] = [file(b"%05d" % n) for n in range(2)]
    first, second = (next(encode_pages([item])) for item in items)
    snapshot = msgspec.structs.replace(snapshot_of(items)[0], pages=(digest_of(first), digest_of(second)))
    with pytest.raises(TreeInvalid, match="one way"):
        list(read_tree(snapshot, {digest_of(first): first, digest_of(second): second}.__getitem__))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data.replace(b"snapshot 1", b"snapshot 2"),
        lambda data: data.replace(b"\xa4host\xa4fra1", b"\xa4host\xa4../1"),
        lambda data: data.replace(b"\xa7entries\x06", b"\xa7entries\xff"),
        lambda data: data.replace(b"\xa7entries\x06", b"\xa7entries\xcc\x06"),
        lambda data: data + bytes(tree.MAX_SNAPSHOT_BYTES),
    ],
)
def test_a_snapshot_that_is_none_is_refused(change: object) -> None:
    assert callable(change)
    data = encode_snapshot(snapshot_of(ITEMS)[0])
    assert decode_snapshot(data)
    with pytest.raises(TreeInvalid):
        decode_snapshot(change(data))


@given(st.integers(0, 1 << 62))
def test_a_file_has_a_piece_for_each_mebibyte_begun(size: int) -> None:
    assert (piece_count(size) - 1) * PIECE_BYTES < size <= piece_count(size) * PIECE_BYTES or size == 0
    assert from_raw(ONE) == next(pieces_of([file(b"a", runs=(ONE,))]))
