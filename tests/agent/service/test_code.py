"""Compiled code: made once, checked before every use, made again where it is not exactly what it should be."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.api.answers import Reason
from agent.api.processes import ProcessSpec
from agent.daemon.code_cache import CodeCache
from agent.daemon.compiler import CompileFailed, compile_file
from agent.daemon.refusal import Refused
from agent.daemon.sealing import SealingKey
from agent.daemon.staging import Staging
from cas.digest import Digest, digest_of
from cas.store import Store
from tests.agent.service.support import run, wasm, web

BINARY = digest_of(b"binary")
ENGINE = "engine-1"


def filled(
    directory: Path, binary: Digest = BINARY, content: bytes = b"machine code", engine: str = ENGINE
) -> CodeCache:
    """A cache with one entry more."""
    cache = CodeCache(directory, engine)
    made = directory / "made"
    made.write_bytes(content)
    cache.put(binary, "core", made)
    return cache


def test_an_entry_is_used_as_long_as_it_is_whole(tmp_path: Path) -> None:
    cache = filled(tmp_path / "code")
    found = cache.get(BINARY)
    assert found is not None
    assert (found.kind, found.path.read_bytes()) == ("core", b"machine code")
    assert found.path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "code").stat().st_mode & 0o077 == 0
    assert cache.get(digest_of(b"another")) is None


@pytest.mark.parametrize("ending", ["code", "head"])
def test_a_damaged_entry_is_never_used(tmp_path: Path, ending: str) -> None:
    size = next(Path(filled(tmp_path / "size")._directory).glob(f"*.{ending}")).stat().st_size
    for place in range(0, size, 5):
        cache = filled(tmp_path / "code")
        (path,) = (tmp_path / "code").glob(f"*.{ending}")
        content = bytearray(path.read_bytes())
        content[place] ^= 16
        path.write_bytes(content)
        assert cache.get(BINARY) is None
        assert list((tmp_path / "code").iterdir()) == []
    for wrong in (b"", b"machine cod", b"machine code and more"):
        cache = filled(tmp_path / "code")
        next((tmp_path / "code").glob(f"*.{ending}")).write_bytes(wrong)
        assert cache.get(BINARY) is None


def test_an_entry_of_another_engine_or_binary_is_never_used(tmp_path: Path) -> None:
    filled(tmp_path / "code")
    assert CodeCache(tmp_path / "code", "engine-2").get(BINARY) is None
    cache = filled(tmp_path / "code")
    other = digest_of(b"other")
    for path in list((tmp_path / "code").iterdir()):
        path.rename(path.with_name(path.name.replace(BINARY[3:], other[3:])))
    assert cache.get(other) is None


def test_the_longest_unused_code_goes_first_and_what_is_needed_stays(tmp_path: Path) -> None:
    binaries = [digest_of(bytes([number])) for number in range(4)]
    filled(tmp_path / "code", binaries[0], engine="engine-0")
    for age, binary in enumerate(binaries):
        cache = filled(tmp_path / "code", binary, bytes(100))
        os.utime(next((tmp_path / "code").glob(f"{binary[3:]}-*.head")), (age, age))
    assert cache.prune({binaries[0]}, to_bytes=250) >= 200
    assert [cache.get(binary) is not None for binary in binaries] == [True, False, False, True]
    cache.prune({binaries[3]}, to_bytes=0)
    assert [cache.get(binary) is not None for binary in binaries] == [False, False, False, True]
    assert len(list((tmp_path / "code").iterdir())) == 2


def test_one_program_is_compiled_once_however_many_ask() -> None:
    async def work(tmp: Path) -> None:
        with Store.open(tmp / "store") as store:
            binary = store.put(wasm()).digest
            bad = store.put(b"\0asm\1\0\0\0nonsense").digest
            staging = new_staging(tmp, store)
            codes = await asyncio.gather(*(staging.code(binary) for _ in range(10)))
            assert {code.path for code in codes} == {codes[0].path}
            assert staging.compiled == 1
            await new_staging(tmp, store).stage([web(binary)], hold_s=10)
            with pytest.raises(Refused) as caught:
                await staging.stage([web(binary), ProcessSpec(name="bad", binary=bad)], hold_s=10)
            assert caught.value.reason is Reason.BAD_BINARY
            assert list((tmp / "work").iterdir()) == []

    run(work)


def new_staging(tmp: Path, store: Store) -> Staging:
    (tmp / "work").mkdir(exist_ok=True)
    return Staging(store, CodeCache(tmp / "code", ENGINE), tmp / "work", set, SealingKey(tmp / "sealing.key"))


def test_a_compiler_that_takes_too_long_or_too_much_memory_is_ended() -> None:
    async def work(tmp: Path) -> None:
        write(tmp / "a.wasm", wasm())
        with pytest.raises(CompileFailed, match="longer than"):
            await compile_file(tmp / "a.wasm", tmp / "out", within_s=0.01)
        with pytest.raises(CompileFailed):
            await compile_file(tmp / "a.wasm", tmp / "out", memory_bytes=1 << 20, within_s=3)
        assert await compile_file(tmp / "a.wasm", tmp / "out") == "core"

    run(work)


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
