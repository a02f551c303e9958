"""Compiled code is kept between processes, and taken only from where nobody else can have put it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import delta
from delta import kernel_cache, kernel_host
from delta.container import Codec, digest, pack
from delta.kernel.build import build
from tests.delta.test_cover import GOLDEN_BASE, GOLDEN_PAYLOAD, GOLDEN_TARGET

CODE = b"machine code " * 50
KEY = "key"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    kernel_cache.store(tmp_path / "cache" / "lowcloud", KEY, CODE)
    assert kernel_cache.load(tmp_path / "cache" / "lowcloud", KEY) == CODE
    return tmp_path / "cache" / "lowcloud"


def entry(directory: Path) -> Path:
    return directory / f"{KEY}{kernel_cache.SUFFIX}"


def test_an_entry_and_its_directory_belong_to_the_user_alone(directory: Path) -> None:
    assert (directory.stat().st_mode & 0o777, entry(directory).stat().st_mode & 0o777) == (0o700, 0o600)
    assert kernel_cache.load(directory, "another key") is None


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o720, 0o755, 0o777])
def test_a_directory_that_others_may_enter_is_not_used(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    assert kernel_cache.load(directory, KEY) is None
    kernel_cache.store(directory, "another", CODE)
    assert [path.name for path in directory.iterdir()] == [entry(directory).name]


def test_a_file_that_others_may_write_is_not_used(directory: Path) -> None:
    entry(directory).chmod(0o620)
    assert kernel_cache.load(directory, KEY) is None


def test_what_belongs_to_somebody_else_is_not_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert kernel_cache.load(directory, KEY) is None


def test_nothing_is_made_in_the_home_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    kernel_cache.store(tmp_path / ".cache" / "lowcloud", KEY, CODE)
    assert not list(tmp_path.iterdir())


def test_links_are_not_followed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    assert kernel_cache.load(tmp_path / "link", KEY) is None
    entry(directory).rename(tmp_path / "elsewhere")
    entry(directory).symlink_to(tmp_path / "elsewhere")
    assert kernel_cache.load(directory, KEY) is None


def test_a_pipe_in_an_entrys_place_is_not_waited_for(directory: Path) -> None:
    entry(directory).unlink()
    os.mkfifo(entry(directory), 0o600)
    assert kernel_cache.load(directory, KEY) is None


def test_damaged_and_torn_entries_are_not_used(directory: Path) -> None:
    content = entry(directory).read_bytes()
    for damaged in (
        content[:-1],
        content + b".",
        content[:20],
        b"",
        content[:60] + b"\0" + content[61:],
        b"L" + content[1:],
    ):
        entry(directory).write_bytes(damaged)
        assert kernel_cache.load(directory, KEY) is None


def test_where_nothing_can_be_kept_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kernel_cache.store(tmp_path / "file" / "lowcloud", KEY, CODE)
    assert kernel_cache.load(tmp_path / "file" / "lowcloud", KEY) is None


def test_only_the_newest_entries_are_kept(directory: Path) -> None:
    (directory / "left.123.new").write_bytes(b"of a killed process")
    for i, name in enumerate(["left.123.new", entry(directory).name]):
        os.utime(directory / name, ns=(i, i))
    for number in range(kernel_cache.KEPT):
        kernel_cache.store(directory, f"{number}", CODE)
    assert sorted(path.stem for path in directory.iterdir()) == [f"{n}" for n in range(kernel_cache.KEPT)]


def test_the_directory_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel_cache.default_directory() == tmp_path / "lowcloud"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_cache.default_directory() == tmp_path / ".cache" / "lowcloud"
    monkeypatch.setenv("HOME", "/nowhere")
    assert kernel_cache.default_directory() is None


def decodes() -> bool:
    patch = pack(
        Codec.COVER,
        digest(GOLDEN_BASE),
        digest(GOLDEN_TARGET),
        len(GOLDEN_TARGET),
        bytes.fromhex(GOLDEN_PAYLOAD),
    )
    return delta.decode(GOLDEN_BASE, patch, max_size=1 << 20) == GOLDEN_TARGET


def test_a_kernel_is_compiled_once_and_anything_else_in_its_place_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_host.available():
        build(kernel_host.KERNEL.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        kernel_host.forget_compiled()
        assert decodes()
        (kept,) = (tmp_path / "lowcloud").iterdir()
        compiled, written = kept.read_bytes(), kept.stat().st_mtime_ns
        kernel_host.forget_compiled()
        assert decodes() and kept.stat().st_mtime_ns == written
        kernel_cache.store(kept.parent, kept.stem, b"not what the engine takes")
        kernel_host.forget_compiled()
        assert decodes() and len(kept.read_bytes()) == len(compiled)
    finally:
        kernel_host.forget_compiled()
