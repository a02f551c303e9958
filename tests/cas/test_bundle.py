"""Bundles: what they bring, what they cost, and that nothing wrong in one ever reaches a store."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import bundle, wire
from cas.bundle import BundleBaseMissing, BundleDamaged, BundleInvalid, Contents, Head
from cas.digest import Digest, digest_of, to_raw
from cas.errors import ExchangeError, StoreFull
from cas.manifest import PIECE_BYTES, manifest_of
from cas.memory import MemoryStore
from cas.store import Store

RELEASE = digest_of(b"the release")
SINCE = digest_of(b"the release before")

GOLDEN = (
    "6c6362750100"
    "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f"
    "0000000000000000000000000000000000000000000000000000000000000000"
    "01000000000000004e000000"
)
"""How the bundle of the blob `hello` as its own release begins."""


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def file_of(store: Store | MemoryStore, contents: Contents) -> bytes:
    spool = io.BytesIO()
    head = bundle.pack(store, contents, spool)
    return b"".join(bundle.write(head, spool))


def unpacked(store: Store | MemoryStore, data: bytes) -> int:
    file = io.BytesIO(data)
    return bundle.unpack(store, bundle.read_head(file), file).blobs


def with_blobs(*blobs: bytes) -> tuple[MemoryStore, Contents]:
    store = MemoryStore()
    return store, Contents(RELEASE, None, tuple(store.put(blob).digest for blob in blobs))


def forged(stream: bytes, blobs: dict[Digest, int]) -> bytes:
    """A bundle with a head that fits this stream, whatever it is."""
    return bundle.encode(Head(RELEASE, None, blobs, (), manifest_of([stream]))) + stream


def test_the_bytes_of_a_bundle_never_change() -> None:
    store = MemoryStore()
    hello = store.put(b"hello").digest
    data = file_of(store, Contents(hello, None, (hello,)))
    assert data.hex().startswith(GOLDEN)
    assert len(data) == 82 + 40 + 78 + 32 + 109
    assert digest_of(data) == "b3:ca738761f633690e900d138d112919b304e9106efaffe655ac4e0051ba2c290b"


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=2000), max_size=12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_whatever_is_bundled_arrives_and_only_what_is_missing_is_stored(
    blobs: list[bytes], there: int, chance: random.Random
) -> None:
    source, contents = with_blobs(*blobs)
    data = file_of(source, contents)
    target = MemoryStore()
    for blob in chance.sample(blobs, min(there, len(blobs))):
        target.put(blob)
    lacking = len(target.missing(contents.blobs))
    assert unpacked(target, data) == lacking
    assert {target.read(digest) for digest in contents.blobs} == set(blobs)
    assert unpacked(target, data) == 0


@settings(max_examples=40)
@given(st.data())
def test_a_changed_byte_anywhere_is_found_and_nothing_wrong_is_kept(data: st.DataObject) -> None:
    source, contents = with_blobs(noise(700_000), b"small", noise(5000, 1))
    whole = file_of(source, contents)
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[at] ^= data.draw(st.integers(1, 255))
    target = MemoryStore()
    with pytest.raises((BundleDamaged, BundleInvalid)) as caught:
        unpacked(target, bytes(broken))
    begins = len(whole) - bundle.read_head(io.BytesIO(whole)).stream.size
    if at >= begins:
        first = begins + (at - begins) // PIECE_BYTES * PIECE_BYTES
        assert f"bytes {first} to" in str(caught.value)
    assert set(target.blobs) <= set(contents.blobs)
    assert unpacked(target, whole) == len(target.missing(contents.blobs)) or set(contents.blobs) == set(target.blobs)


@settings(max_examples=40)
@given(st.integers(0, 40_000))
def test_a_file_that_was_cut_off_is_refused_and_the_whole_one_goes_on_from_there(cut: int) -> None:
    source, contents = with_blobs(*(noise(3000, seed) for seed in range(12)))
    whole = file_of(source, contents)
    target = MemoryStore()
    if cut < len(whole):
        with pytest.raises((BundleDamaged, BundleInvalid)):
            unpacked(target, whole[:cut])
    had = len(target.blobs)
    assert unpacked(target, whole) == 12 - had
    with pytest.raises(BundleDamaged, match="behind"):
        unpacked(target, whole + b"x")


def test_what_came_whole_before_the_damage_is_not_stored_again(tmp_path: Path) -> None:
    source, contents = with_blobs(*(noise(300_000, seed) for seed in range(4)))
    whole = file_of(source, contents)
    broken = bytearray(whole)
    broken[-400_000] ^= 1
    with Store.open(tmp_path / "store") as target:
        with pytest.raises(BundleDamaged, match="bytes"):
            unpacked(target, bytes(broken))
        had = 4 - len(target.missing(contents.blobs))
        assert 0 < had < 4
        assert unpacked(target, whole) == 4 - had
        assert not target.check().damaged


def test_a_delta_needs_its_base_and_says_so_before_anything_is_stored(tmp_path: Path) -> None:
    old, new = noise(200_000), noise(200_000) + b"and a little more"
    with Store.open(tmp_path / "a") as source, Store.open(tmp_path / "b") as target:
        base = source.put(old, name="web").digest
        contents = Contents(RELEASE, SINCE, (source.put(b"x").digest, source.put(new, name="web").digest), (base,))
        data = file_of(source, contents)
        assert len(data) < 2000
        assert bundle.read_head(io.BytesIO(data)).needs == (base,)
        with pytest.raises(BundleBaseMissing, match=SINCE) as caught:
            unpacked(target, data)
        assert caught.value.missing == (base,)
        assert not target.usage().blobs
        target.put(old)
        assert unpacked(target, data) == 2
        assert target.read(contents.blobs[1]) == new
        assert not target.collect([]).failed
        assert target.read(contents.blobs[1]) == new  # leased


def test_a_delta_that_was_made_for_the_bundle_travels_instead_of_the_blob() -> None:
    import delta

    store = MemoryStore()
    old, new = noise(100_000), noise(100_000) + b"!"
    base, target = store.put(old).digest, store.put(new).digest
    data = file_of(store, Contents(RELEASE, SINCE, (target,), (base,), (), {target: delta.encode(old, new)}))
    assert len(data) < 1000
    other = MemoryStore()
    other.put(old)
    assert unpacked(other, data) == 1
    assert other.read(target) == new


def test_a_full_store_refuses_before_the_first_byte(tmp_path: Path) -> None:
    source, contents = with_blobs(noise(3 << 20))
    data = file_of(source, contents)
    with Store.open(tmp_path / "small", quota_bytes=1 << 20) as target:
        file = io.BytesIO(data)
        head = bundle.read_head(file)
        begins = file.tell()
        with pytest.raises(StoreFull):
            bundle.unpack(target, head, file)
        assert file.tell() == begins
        assert not target.usage().blobs


def test_a_stream_that_is_not_what_the_head_says_is_refused() -> None:
    blob = b"a blob that is sent"
    raw, digest = to_raw(digest_of(blob)), digest_of(blob)
    plain = wire.preamble() + wire.header(wire.PLAIN, raw, len(blob), len(blob)) + blob
    for stream, listed in (
        (plain + wire.end(1), {}),
        (plain + wire.end(1), {digest: 1}),
        (plain + plain[wire.PREAMBLE_BYTES :] + wire.end(2), {digest: len(blob)}),
        (plain, {digest: len(blob)}),
        (plain + wire.end(1) + b"more", {digest: len(blob)}),
        (plain[:-1] + b"!" + wire.end(1), {digest: len(blob)}),
        (wire.preamble() + wire.end(0), {digest: len(blob)}),
        (b"lcxs", {}),
        (b"", {}),
    ):
        target = MemoryStore()
        with pytest.raises(ExchangeError):
            unpacked(target, forged(stream, listed))
        assert set(target.blobs) <= {digest}


def test_a_head_that_promises_too_much_is_refused_before_memory_is_taken() -> None:
    head = bundle.encode(Head(RELEASE, None, {}, (), manifest_of([])))
    for at, what in ((70, "blobs"), (74, "blobs"), (78, "manifest")):
        huge = head[:at] + b"\xff\xff\xff\x7f" + head[at + 4 :]
        with pytest.raises(BundleInvalid, match=what):
            bundle.read_head(io.BytesIO(huge))
    later = head[:4] + b"\x02\x00" + head[6:]
    with pytest.raises(BundleInvalid, match="version 2"):
        bundle.read_head(io.BytesIO(later))
    with pytest.raises(BundleInvalid, match="no bundle"):
        bundle.read_head(io.BytesIO(b"\x00asm" * 50))


@settings(max_examples=40)
@given(st.binary(max_size=300))
def test_random_bytes_behind_the_magic_are_refused_cleanly(data: bytes) -> None:
    with pytest.raises((BundleInvalid, BundleDamaged)):
        bundle.read_head(io.BytesIO(b"lcbu\x01\x00" + data))
