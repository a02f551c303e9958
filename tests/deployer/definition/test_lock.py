"""The lock file: stable, readable, read back with clear errors."""

from __future__ import annotations

import difflib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.language.problems import DefinitionInvalid
from deployer.resolving.lock import MAX_LOCK_BYTES, Lock, Locked, decode, encode, lock_path, read, write
from tests.deployer.definition.definitions import digests

PATH = Path("lowcloud.lock")

WEB = Locked("b3:" + "12" * 32, 61234, "component", ("wasi:cli/environment@0.2.0", "wasi:sockets/tcp@0.2.0"))
CONFIG = Locked("b3:" + "34" * 32, 12, "file")
LOCK = Lock({"conf/web.toml": CONFIG, "build/web.wasm": WEB})

GOLDEN = f"""\
# What each name of the definition stands for. Written by `lowcloud resolve`; commit it, review it, do not edit it.
lowcloud-lock = 1

[blob."build/web.wasm"]
hash = "b3:{"12" * 32}"
size = 61234
kind = "component"
imports = [
    "wasi:cli/environment@0.2.0",
    "wasi:sockets/tcp@0.2.0",
]

[blob."conf/web.toml"]
hash = "b3:{"34" * 32}"
size = 12
kind = "file"
"""

locks = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=10),
    st.builds(
        Locked,
        digests,
        st.integers(0, 1 << 40),
        st.sampled_from(["core", "component", "file"]),
        st.lists(st.text(max_size=10), max_size=3).map(tuple),
    ),
    max_size=5,
).map(Lock)


def test_the_text_of_version_1_stays_what_it_is() -> None:
    assert encode(LOCK) == GOLDEN
    assert decode(GOLDEN, PATH) == LOCK


@settings(max_examples=60)
@given(locks)
def test_what_is_written_reads_back(lock: Lock) -> None:
    assert decode(encode(lock), PATH) == lock
    assert encode(decode(encode(lock), PATH)) == encode(lock)


def test_a_rebuilt_program_changes_only_the_lines_that_differ() -> None:
    rebuilt = msgspec.structs.replace(WEB, digest="b3:" + "56" * 32, imports=(*WEB.imports, "wasi:sockets/udp@0.2.0"))
    after = encode(Lock({**LOCK.blob, "build/web.wasm": rebuilt}))
    changed = [line for line in difflib.ndiff(GOLDEN.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert len(changed) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no format version"),
        (GOLDEN.replace("lowcloud-lock = 1", "lowcloud-lock = 2"), "format version 2; this program knows version 1"),
        (GOLDEN.replace("lowcloud-lock = 1", "lowcloud-lock = '1'"), "not a lock file: Expected `int`"),
        (GOLDEN.replace("size = 12", "size = -12"), "not a lock file"),
        (GOLDEN.replace("size = 12", "size = 'x'"), "not a lock file"),
        (GOLDEN.replace("b3:3434", "b3:3g34"), "not a lock file"),
        (GOLDEN.replace('kind = "file"', 'kind = "elf"'), "not a lock file"),
        (GOLDEN.replace("size = 12", "length = 12"), "not a lock file"),
        (GOLDEN + "size = 12\n", "not a lock file"),
        ("lowcloud-lock = 1\nx = " + "[" * 100_000, "not a lock file"),
        ("lowcloud-lock = " + "9" * 10_000, "not a lock file"),
        ("<<<<<<< HEAD\n" + GOLDEN, "not a lock file"),
    ],
)
def test_anything_else_is_refused_with_what_to_do(text: str, message: str) -> None:
    with pytest.raises(DefinitionInvalid, match=message) as caught:
        decode(text, PATH)
    assert caught.value.problems[0].hint == "write it anew with `lowcloud resolve`"


def test_a_lock_is_written_whole_and_only_when_it_says_something_new(tmp_path: Path) -> None:
    path = lock_path(tmp_path / "cloud.toml")
    assert path == tmp_path / "lowcloud.lock"
    assert read(path) is None
    assert write(path, LOCK) is True
    written = path.stat()
    assert write(path, LOCK) is False
    assert path.stat().st_ino == written.st_ino
    assert written.st_mode & 0o777 == 0o644
    assert read(path) == LOCK
    assert write(path, Lock({})) is True
    assert read(path) == Lock({})
    assert [p.name for p in tmp_path.iterdir()] == ["lowcloud.lock"]


def test_a_lock_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(DefinitionInvalid, match="is a directory"):
        read(tmp_path)
    path = tmp_path / "lowcloud.lock"
    path.write_bytes(b"\xff")
    with pytest.raises(DefinitionInvalid, match="not UTF-8"):
        read(path)
    with path.open("wb") as file:
        file.truncate(MAX_LOCK_BYTES + 1)
    with pytest.raises(DefinitionInvalid, match="larger than"):
        read(path)
