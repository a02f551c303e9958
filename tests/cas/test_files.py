"""What a store is on disk: its files, their modes, and what is refused."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from cas.environment import FORMAT
from cas.errors import StoreUnreadable
from cas.store import Store

LIMITED = """
import resource, sys
from pathlib import Path
from cas.errors import StoreUnreadable
from cas.store import Store
resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
try:
    Store.open(Path(sys.argv[1]))
except StoreUnreadable as error:
    print(error, "|", error.hint)
"""


def test_only_the_owner_may_open_the_files(store: Store) -> None:
    store.put(b"x")
    store.collect([])
    assert store.path.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in store.path.iterdir()} == dict.fromkeys(
        ["data.mdb", "lock.mdb", "write.lock", "turn.lock", "collect.lock"], 0o600
    )


def test_a_store_that_is_not_there_is_made_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreadable, match="no store") as caught:
        Store.open(tmp_path / "a" / "b", create=False)
    assert "init" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    Store.open(tmp_path / "a" / "b").close()
    Store.open(tmp_path / "a" / "b", create=False).close()


def test_what_was_put_is_there_after_opening_again(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        digest = store.put(b"kept", name="n").digest
        store.move_ref("prod", None, digest)
        store.pin(digest, owner="o")
    with Store.open(tmp_path / "s") as store:
        assert store.read(digest) == b"kept"
        assert store.read_ref("prod") == digest
        assert store.history("n") == [digest]
        assert store.collect([]).blobs == 0


def test_two_stores_on_one_directory_share_what_lmdb_allows_once(tmp_path: Path) -> None:
    one = Store.open(tmp_path / "s")
    (tmp_path / "link").symlink_to(tmp_path / "s")
    two = Store.open(tmp_path / "link")
    digest = one.put(b"x").digest
    one.close()
    assert two.read(digest) == b"x"
    two.close()
    with pytest.raises(StoreUnreadable):
        two.read(digest)


def set_format(path: Path, value: bytes | None) -> None:
    env = lmdb.open(str(path), max_dbs=16)
    meta = env.open_db(b"meta")
    with env.begin(write=True) as txn:
        if value is None:
            txn.delete(b"format", db=meta)
        else:
            txn.put(b"format", value, db=meta)
    env.close()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (FORMAT + struct.pack("<H", 2), "version 2"),
        (FORMAT + struct.pack("<H", 0), "version 0"),
        (FORMAT, "version None"),
        (b"something else", "not a store"),
        (None, "not a store"),
    ],
)
def test_another_format_is_refused(tmp_path: Path, value: bytes | None, says: str) -> None:
    Store.open(tmp_path / "s").close()
    set_format(tmp_path / "s", value)
    with pytest.raises(StoreUnreadable, match=says):
        Store.open(tmp_path / "s")


def test_a_foreign_environment_is_refused_and_left_alone(tmp_path: Path) -> None:
    env = lmdb.open(str(tmp_path / "s"), max_dbs=2)
    with env.begin(write=True) as txn:
        txn.put(b"theirs", b"data")
    env.close()
    with pytest.raises(StoreUnreadable, match="not a store"):
        Store.open(tmp_path / "s")
    env = lmdb.open(str(tmp_path / "s"), max_dbs=2)
    with env.begin() as txn:
        assert list(txn.cursor()) == [(b"theirs", b"data")]
    env.close()


@pytest.mark.parametrize("content", [b"", b"garbage" * 5000, bytes(8192)])
def test_a_file_that_is_no_environment_is_refused_or_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "data.mdb").write_bytes(content)
    if content:
        with pytest.raises(StoreUnreadable):
            Store.open(tmp_path / "s")
    else:
        Store.open(tmp_path / "s").close()


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    with pytest.raises(StoreUnreadable):
        Store.open(tmp_path / "s")


def test_too_little_address_space_is_explained(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "s")], capture_output=True, text=True)
    assert "address space" in done.stdout, done.stderr
    assert "ulimit" in done.stdout


def in_a_child(action: Callable[[], str]) -> str:
    """What an action says in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, action().encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    said = os.read(reading, 4096).decode()
    os.close(reading)
    return said


def test_a_store_of_somebody_else_is_refused() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s"
        Store.open(path).close()
        nobody = 65534

        def try_to_open() -> str:
            if os.getuid() == 0:
                os.setuid(nobody)
            try:
                Store.open(path)
            except StoreUnreadable as error:
                return f"{error}|{error.hint}"
            return "opened"

        (path / "data.mdb").chmod(0)
        Path(directory).chmod(0o755)
        path.chmod(0o755)
        assert in_a_child(try_to_open).startswith("not allowed")
        Path(directory).chmod(0o700 if os.getuid() == 0 else 0o755)
        assert in_a_child(try_to_open).startswith("not allowed")


def test_a_store_opened_before_a_fork_refuses_to_be_used_after_it(store: Store) -> None:
    digest = store.put(b"x").digest

    def try_to_use() -> str:
        said = []
        for use in (lambda: store.read(digest), lambda: store.put(b"y"), lambda: Store.open(store.path)):
            try:
                use()
                said.append("worked")
            except StoreUnreadable as error:
                said.append("fork" if "fork" in str(error) else str(error))
        return " ".join(said)

    assert in_a_child(try_to_use) == "fork fork fork"
    assert store.read(digest) == b"x"


def test_opening_and_reading_a_ref_loads_no_codec(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cas.store import Store; s = Store.open(Path(sys.argv[1]));"
        "s.read_ref('prod'); "
        "print([m for m in ('zstandard', 'delta', 'asyncio', 'wasmtime', 'logging') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
