"""What a snapshot makes of everything that a guest can leave in a volume, and of a volume that changes meanwhile."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.daemon.snapshots import looking
from agent.daemon.snapshots.keeping import Keeper, Spool
from agent.daemon.snapshots.looking import Look, Memory, TooLong, load_memory, look, save_memory
from agent.daemon.snapshots.restoring import restore
from agent.daemon.snapshots.taking import NotAtRest, Taking
from agent.daemon.snapshots.walk import VolumeUnfit, allow_depth
from cas.digest import digest_of
from cas.memory import MemoryStore
from cas.tree import PIECE_BYTES, Directory, File, Item, Snapshot, Symlink, TreeInvalid, encode_pages, read_tree


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Ground:
    """A volume as a directory, a store, and what the last look saw."""

    def __init__(self, tmp_path: Path) -> None:
        self.volume = tmp_path / "volume"
        self.volume.mkdir()
        self.store = MemoryStore()
        self.memory: Memory = {}
        self._tmp_path = tmp_path
        self._restored = 0

    def look(self, *, later: bool = True) -> Look:
        """Look with a clock that says that every change was long ago, or just now."""
        keeper = Keeper(self.store, "test")
        with opened(self.volume) as root:
            seen = look(root, self.memory, keeper.keep, now_ns=lambda: (1 << 62) if later else 0)
        keeper.flush()
        self.memory = seen.seen
        return seen

    def restore(self, items: list[Item]) -> Path:
        self._restored += 1
        fresh = self._tmp_path / f"restored-{self._restored}"
        fresh.mkdir()
        with opened(fresh) as root:
            restore(root, items, self.store)
        return fresh


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def facts(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All that a snapshot keeps, by path."""
    found: dict[bytes, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        held = path.lstat()
        content: object = None
        mode = stat.S_IMODE(held.st_mode)
        if stat.S_ISREG(held.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(held.st_mode):
            content, mode = path.readlink(), 0
        found[bytes(path.relative_to(root))] = (stat.S_IFMT(held.st_mode), mode, held.st_mtime_ns, content)
    return found


def named(directory: Path, name: bytes) -> Path:
    return directory / os.fsdecode(name)


def test_everything_comes_back_as_it_was(ground: Ground) -> None:
    volume = ground.volume
    (volume / "a" / "b").mkdir(parents=True)
    (volume / "empty").mkdir(mode=0o700)
    (volume / "a" / "one").write_bytes(b"one")
    (volume / "a" / "b" / "large").write_bytes(random.Random(1).randbytes(3 * PIECE_BYTES + 17))
    (volume / "nothing").touch()
    (volume / "a" / "one").chmod(0o640)
    os.utime(volume / "a" / "one", ns=(1, 1_600_000_000_123_456_789))
    os.utime(volume / "a", ns=(1, 1_500_000_000_000_000_001))
    (volume / "dangling").symlink_to("/etc/passwd")
    for name in (b"\xff\xfe", b"new\nline", b" ", b"-rf", b"\xc3\xa4", b"x" * 255):
        named(volume, name).write_bytes(name)
    seen = ground.look()
    assert facts(ground.restore(seen.items)) == facts(volume)
    assert not any(b"root:" in blob for blob in ground.store.blobs.values()), "no link was followed"


def test_names_of_one_file_stay_names_of_one_file(ground: Ground) -> None:
    (ground.volume / "d").mkdir()
    (ground.volume / "d" / "first").write_bytes(b"shared")
    (ground.volume / "second").hardlink_to(ground.volume / "d" / "first")
    (ground.volume / "a").hardlink_to(ground.volume / "second")
    restored = ground.restore(ground.look().items)
    inodes = {path.stat().st_ino for path in (restored / "d" / "first", restored / "second", restored / "a")}
    assert len(inodes) == 1
    assert facts(restored) == facts(ground.volume)


def test_holes_stay_holes_and_a_file_may_be_larger_than_any_disk(ground: Ground) -> None:
    huge = ground.volume / "huge"
    size = 8 << 40  # what the file system of this machine takes at least
    with huge.open("wb") as file:
        file.truncate(size)
        for at in (0, 5 * PIECE_BYTES + 9, size - 3):
            file.seek(at)
            file.write(b"abc")
    (ground.volume / "zeros").write_bytes(bytes(3 * PIECE_BYTES))
    seen = ground.look()
    assert seen.data_bytes == 3 * PIECE_BYTES
    restored = ground.restore(seen.items)
    assert (restored / "huge").stat().st_size == size
    assert (restored / "huge").stat().st_blocks * 512 <= huge.stat().st_blocks * 512
    assert (restored / "zeros").stat().st_blocks == 0
    with (restored / "huge").open("rb") as file:
        assert file.read(4) == b"abc\0"
        file.seek(5 * PIECE_BYTES + 8)
        assert file.read(5) == b"\0abc\0"
        file.seek(size - 3)
        assert file.read() == b"abc"


def test_what_is_no_file_is_left_out_and_told(ground: Ground) -> None:
    os.mkfifo(ground.volume / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(ground.volume / "socket"))
        seen = ground.look()
    assert (seen.left_out, seen.items) == (2, [])


def test_a_tree_that_is_too_deep_or_too_large_is_told_and_not_taken(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.daemon.snapshots.walk.MAX_ENTRIES", 3)
    for number in range(4):
        (ground.volume / str(number)).touch()
    with pytest.raises(VolumeUnfit, match="entries"):
        ground.look()
    monkeypatch.undo()
    monkeypatch.setattr("agent.daemon.snapshots.walk.MAX_DEPTH", 3)
    deep = ground.volume / "d"
    for _ in range(4):
        deep.mkdir()
        deep = deep / "d"
    with pytest.raises(VolumeUnfit, match="deep"):
        ground.look()


def test_the_deepest_tree_that_is_allowed_is_taken_and_restored(ground: Ground) -> None:
    allow_depth()
    here = os.open(ground.volume, os.O_RDONLY)
    for _ in range(512):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    seen = ground.look()
    assert seen.entries == 512
    ground.restore(seen.items)


# --- only what is new -----------------------------------------------------------------------------------------------


def test_only_files_that_have_changed_are_read_again(ground: Ground, tmp_path: Path) -> None:
    for number in range(20):
        (ground.volume / f"f{number:02}").write_bytes(b"%d" % number * 100)
    assert ground.look().read_files == 20
    save_memory(tmp_path / "seen", ground.memory)
    ground.memory = load_memory(tmp_path / "seen")
    assert ground.look().read_files == 0
    (ground.volume / "f03").write_bytes(b"other")
    (ground.volume / "f04").rename(ground.volume / "renamed")
    (ground.volume / "f05").unlink()
    seen = ground.look()
    assert seen.read_files <= 2  # renaming changes a file's ctime, and may be all that did
    assert facts(ground.restore(seen.items)) == facts(ground.volume)


def test_a_file_that_had_just_changed_when_it_was_read_is_read_again(ground: Ground) -> None:
    (ground.volume / "f").write_bytes(b"one")
    assert ground.look(later=False).read_files == 1
    assert ground.look(later=False).read_files == 1
    assert ground.look().read_files == 1
    assert ground.look().read_files == 0


def test_a_change_that_keeps_size_and_time_is_seen(ground: Ground) -> None:
    path = ground.volume / "f"
    path.write_bytes(b"one")
    before = path.stat()
    ground.look()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen = ground.look()
    assert seen.read_files == 1
    assert facts(ground.restore(seen.items)) == facts(ground.volume)


def test_a_memory_that_is_damaged_costs_reading_everything(ground: Ground, tmp_path: Path) -> None:
    (ground.volume / "f").write_bytes(b"one")
    ground.look()
    save_memory(tmp_path / "seen", ground.memory)
    (tmp_path / "seen").write_bytes((tmp_path / "seen").read_bytes()[:-1])
    assert load_memory(tmp_path / "seen") == {}
    assert load_memory(tmp_path / "absent") == {}


def test_a_page_that_changes_in_a_large_file_costs_about_that_page(ground: Ground) -> None:
    chance = random.Random(5)
    path = ground.volume / "database"
    path.write_bytes(chance.randbytes(8 * PIECE_BYTES))
    ground.look()
    with path.open("r+b") as file:
        for page in (100, 900, 1700):
            file.seek(page * 4096)
            file.write(chance.randbytes(4096))
    keeper = Keeper(ground.store, "test")
    with opened(ground.volume) as root:
        seen = look(root, ground.memory, keeper.keep)
    keeper.flush()
    assert keeper.blobs == 3
    assert 3 * 4096 < keeper.stored_bytes < 3 * 4096 + 2000
    assert facts(ground.restore(seen.items)) == facts(ground.volume)


def test_a_piece_whose_base_is_gone_is_stored_whole(ground: Ground) -> None:
    path = ground.volume / "f"
    path.write_bytes(random.Random(5).randbytes(PIECE_BYTES))
    ground.look()
    ground.store.blobs.clear()
    with path.open("r+b") as file:
        file.write(b"changed")
    seen = ground.look()
    assert facts(ground.restore(seen.items)) == facts(ground.volume)


# --- while it changes -----------------------------------------------------------------------------------------------


def test_a_volume_that_is_never_at_rest_is_refused_and_one_that_comes_to_rest_is_taken(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.daemon.snapshots.taking.BETWEEN_LOOKS_S", 0.001)
    path = ground.volume / "f"
    path.touch()

    class WritesAfterEachLook(Keeper):
        writes = True

        def flush(self) -> None:
            super().flush()
            if self.writes:
                with path.open("ab") as file:
                    file.write(b"more")

    keeper = WritesAfterEachLook(ground.store, "test")
    with opened(ground.volume) as root:
        taking = Taking(root, {}, keeper, tmp_path)
        with pytest.raises(NotAtRest, match="again and again"):
            taking.at_rest()
        monkeypatch.undo()
        keeper.writes = False
        seen = taking.at_rest()
    assert facts(ground.restore(seen.look.items)) == facts(ground.volume)


@pytest.mark.parametrize(("mib", "looks"), [(1, 1), (20, 2)])
def test_a_look_that_took_long_is_followed_by_another_before_a_process_is_held(
    ground: Ground, tmp_path: Path, mib: int, looks: int
) -> None:
    path = ground.volume / "file"
    path.write_bytes(random.Random(9).randbytes(mib * PIECE_BYTES))

    class WritesMeanwhile(Keeper):
        def flush(self) -> None:
            super().flush()
            os.utime(path)

    with opened(ground.volume) as root:
        taking = Taking(root, {}, WritesMeanwhile(ground.store, "test"), tmp_path)
        taking._approach()
        assert taking.of_nobody().read_bytes == (looks + 1) * mib * PIECE_BYTES


def test_files_that_come_and_go_and_change_their_kind_end_no_look(ground: Ground) -> None:
    """Nor is anything read that is not in the volume."""
    ended = threading.Event()
    (ground.volume.parent / "outside").mkdir()
    (ground.volume.parent / "outside" / "secret").write_bytes(b"of the host")
    chance = random.Random(3)

    def change() -> None:
        while not ended.is_set():
            path = ground.volume / chance.choice("abc")
            try:
                match chance.randrange(5):
                    case 0:
                        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK)  # it may be a pipe by now
                        os.write(file, b"x" * chance.randrange(9000))
                        os.close(file)
                    case 1:
                        path.unlink()
                    case 2:
                        path.symlink_to(ground.volume.parent / "outside" / "secret")
                    case 3:
                        os.mkfifo(path)
                    case 4:
                        path.mkdir() if not path.exists() else path.rename(ground.volume / "moved")
            except OSError:
                continue

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(300):
            ground.look(later=False)
    finally:
        ended.set()
        changer.join()
    assert b"of the host" not in ground.store.blobs.values()


def test_a_link_that_has_become_a_file_ends_no_look(ground: Ground) -> None:
    (ground.volume / "a").symlink_to("nowhere")

    def change_its_kind() -> bool:
        (ground.volume / "a").unlink()
        (ground.volume / "a").write_bytes(b"")
        return True

    with opened(ground.volume) as root:
        assert look(root, {}, lambda *_: None, in_time=change_its_kind).entries == 0


@pytest.mark.parametrize("year", [1800, 1960, 2300, 2440, 100_000])
def test_whatever_time_a_guest_sets_its_files_can_be_taken_and_restored(ground: Ground, year: int) -> None:
    (ground.volume / "directory").mkdir()
    (ground.volume / "file").write_bytes(b"of another century")
    (ground.volume / "link").symlink_to("file")
    for name in ("directory", "file", "link"):
        os.utime(ground.volume / name, ((year - 1970) * 31_556_952,) * 2, follow_symlinks=False)
    seen = ground.look()
    save_memory(ground.volume.parent / "seen", ground.memory)
    assert load_memory(ground.volume.parent / "seen") == ground.memory
    pages = {digest_of(page): page for page in encode_pages(seen.items)}
    snapshot = Snapshot(
        volume="v", host="h", at_unix_ns=0, size_bytes=1, entries=3, data_bytes=seen.data_bytes, pages=tuple(pages)
    )
    assert (ground.restore(list(read_tree(snapshot, pages.__getitem__))) / "file").read_bytes() == b"of another century"
    assert ground.look().read_files == 0


def test_a_look_ends_when_its_time_is_over(ground: Ground) -> None:
    (ground.volume / "f").write_bytes(bytes(range(256)) * 4096 * 4)
    answers = iter([True, True, False])
    with opened(ground.volume) as root, pytest.raises(TooLong):
        look(root, {}, lambda *_: None, in_time=lambda: next(answers))


def test_a_spool_gives_everything_on_and_leaves_no_file(tmp_path: Path) -> None:
    store = MemoryStore()
    keeper = Keeper(store, "test")
    pieces = [random.Random(n).randbytes(n * 1000) for n in range(1, 9)]
    with Spool(tmp_path) as spool:
        for piece in pieces:
            spool.keep(bytes.fromhex(digest_of(piece)[3:]), piece, None)
        assert list(tmp_path.iterdir()) == []
        spool.pour(keeper)
    assert set(store.blobs.values()) == set(pieces)


# --- restoring ------------------------------------------------------------------------------------------------------


def test_a_piece_of_another_size_than_its_place_says_is_refused(ground: Ground) -> None:
    short = ground.store.put(b"short").digest
    item = File(b"f", 0o600, 0, PIECE_BYTES, (bytes.fromhex(short[3:]),))
    with pytest.raises(TreeInvalid, match="is not of"):
        ground.restore([item])


def test_a_restoring_never_leaves_its_directory(ground: Ground) -> None:
    items: list[Item] = [Symlink(b"a", 0, b"/tmp"), Directory(b"a", 0o700, 0), None]
    with pytest.raises(FileExistsError):
        ground.restore(items)


def test_a_tree_that_does_not_fit_says_so(ground: Ground) -> None:
    with pytest.raises(OSError) as caught:
        ground.restore([File(b"f", 0o600, 0, 1 << 62, (1 << 42,))])
    assert caught.value.errno in (errno.EFBIG, errno.EINVAL, errno.ENOSPC)


@settings(max_examples=25)
@given(st.data())
def test_any_volume_comes_back_as_it_was_after_any_changes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    ground = Ground(tmp_path_factory.mktemp("ground"))
    names = st.sampled_from([b"a", b"b", b"\xff", b"d/x", b"d/y", b"d/e/z"])
    for _ in range(3):
        for name, kind, number in data.draw(
            st.lists(st.tuples(names, st.integers(0, 4), st.integers(0, 5)), max_size=8)
        ):
            path = named(ground.volume, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind < 3:
                path.unlink(missing_ok=True)
            if kind == 0:
                path.write_bytes(b"%d" % number * number * 1000)
            elif kind == 1:
                path.symlink_to("x" * (number + 1))
            elif kind == 3 and path.is_file() and not path.is_symlink():
                with path.open("r+b") as file:
                    file.truncate(number * PIECE_BYTES // 2)
                    file.seek(number * 5000)
                    file.write(b"more")
        assert facts(ground.restore(ground.look().items)) == facts(ground.volume)
    assert looking.NEVER not in {seen.changed_ns for seen in ground.memory.values()}
