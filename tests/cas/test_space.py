"""Quota, the reserve on the disk, and a disk that is really full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cas.digest import Digest
from cas.errors import StoreFull
from cas.exchange import Receiver, frames
from cas.memory import MemoryStore
from cas.store import Store
from cas.wire import HEADER_BYTES, PREAMBLE_BYTES
from tests.conformance.test_blobs import noise


def test_a_quota_is_kept_and_collecting_makes_room(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", quota_bytes=3_000_000) as store:
        kept = [store.put(noise(900_000, seed)).digest for seed in range(3)]
        with pytest.raises(StoreFull, match="quota"):
            store.put(noise(900_000, 3))
        with pytest.raises(StoreFull, match="quota"):
            store.put_stream(noise(1 << 20, seed) for seed in range(30))
        with pytest.raises(StoreFull, match="quota"):
            store.ensure_room(900_000)
        assert store.usage().blobs == 3
        assert store.put(noise(900_000, 0)).new is False
        store.collect(kept[:1])
        store.ensure_room(900_000)
        assert store.put(noise(900_000, 3)).new
        assert store.check().damaged == ()


@pytest.mark.parametrize("data", [noise(900_000, 9), bytes(100_000) + noise(800_000, 9)])
def test_a_blob_for_which_there_is_no_room_is_refused_before_its_first_byte(tmp_path: Path, data: bytes) -> None:
    source = MemoryStore()
    digest = source.put(data).digest
    stream = b"".join(frames(source, [digest]))
    head = PREAMBLE_BYTES + HEADER_BYTES
    with Store.open(tmp_path / "s", quota_bytes=500_000) as store:
        receiver = Receiver(store)
        receiver.feed(stream[: head - 1])
        with pytest.raises(StoreFull, match="quota"):
            receiver.feed(stream[head - 1 : head])
        receiver.close()
        assert store.usage().blobs == 0


def test_the_reserve_on_the_disk_is_kept(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", reserve_bytes=1 << 60) as store:
        with pytest.raises(StoreFull, match="reserve"):
            store.put(noise(100_000))
        with pytest.raises(StoreFull, match="reserve"):
            store.ensure_room(1 << 30)
        store.move_ref("still", None, "b3:" + "0" * 64)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("only root may mount a small disk")
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "lowcloud-test", str(mount)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path) -> None:
    with Store.open(small_disk / "s", reserve_bytes=-(1 << 40)) as store:
        kept: list[Digest] = []
        with pytest.raises(StoreFull) as caught:
            kept.extend(store.put(noise(300_000, seed)).digest for seed in range(1000))
        assert "gc" in caught.value.hint
        assert len(kept) > 10
        with pytest.raises(StoreFull):
            store.put_stream(noise(1 << 20, seed) for seed in range(30))
        with pytest.raises(StoreFull):
            store.put_many(noise(1000, seed) for seed in range(10_000))
        kept += [digest for digest in store.digests() if store.stat(digest).size == 1000]
        store.repack()
        assert sorted(store.digests()) == sorted(kept)
        assert store.check().damaged == ()
    with Store.open(small_disk / "s", reserve_bytes=-(1 << 40)) as store:
        assert store.check().damaged == ()
        assert store.collect(kept[:2]).blobs == len(kept) - 2
        assert store.put(noise(300_000, 5000)).new
        assert store.check().damaged == ()
