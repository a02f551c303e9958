"""The index's two layouts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import entries
from cas.entries import DELTA, NOT_PACKED, PLAIN, ZSTD, BadEntry, Entry

RAW = bytes(range(32))
GOLDEN = {
    "short plain": (
        Entry(PLAIN, 300, 300, 7, 4096, RAW[:8], None, 0, 300),
        "01 2c01 2c01 0700000000000000 0010 e89b6c9b",
    ),
    "short zstd": (
        Entry(ZSTD, 5000, 300, 7, 0, b"checksum", None, 0, 300),
        "02 8813 2c01 0700000000000000 0000 636865636b73756d 7932a354",
    ),
    "long": (
        Entry(DELTA, 1 << 24, 4000, 9, NOT_PACKED, b"checksum", bytes(reversed(RAW)), 3, 70_000),
        "10 02 03 0000000100000000 a00f000000000000 0900000000000000 ffffffff 7011010000000000 636865636b73756d"
        " 1f1e1d1c1b1a19181716151413121110 0f0e0d0c0b0a09080706050403020100 d7a9b45f",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_the_layout_is_the_one_in_the_documentation(case: str) -> None:
    entry, golden = GOLDEN[case]
    assert entries.encode(RAW, entry) == bytes.fromhex(golden)
    assert entries.decode(RAW, bytes.fromhex(golden)) == entry


@st.composite
def some_entry(draw: st.DrawFn) -> Entry:
    encoding = draw(st.sampled_from([PLAIN, ZSTD, DELTA]))
    packed = draw(st.booleans())
    stored = draw(st.integers(0, 16 << 10 if packed else 1 << 40))
    size = stored if encoding == PLAIN else draw(st.integers(0, 1 << 40))
    offset = draw(st.integers(0, 0xFFFF)) if packed else NOT_PACKED
    check = RAW[:8] if encoding == PLAIN else draw(st.binary(min_size=8, max_size=8))
    if encoding != DELTA:
        return Entry(encoding, size, stored, draw(st.integers(1, 1 << 60)), offset, check, None, 0, stored)
    base, depth = draw(st.binary(min_size=32, max_size=32)), draw(st.integers(1, 64))
    return Entry(encoding, size, stored, 5, offset, check, base, depth, draw(st.integers(stored, 1 << 50)))


@given(some_entry())
def test_an_entry_is_read_back(entry: Entry) -> None:
    assert entries.decode(RAW, entries.encode(RAW, entry)) == entry


@given(some_entry(), st.data())
def test_a_flipped_bit_is_always_found(entry: Entry, data: st.DataObject) -> None:
    sealed = bytearray(entries.encode(RAW, entry))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadEntry):
        entries.decode(RAW, bytes(sealed))


@given(some_entry(), st.integers(0, 255))
def test_an_entry_under_another_digest_is_found(entry: Entry, bit: int) -> None:
    other = bytearray(RAW)
    other[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadEntry):
        entries.decode(bytes(other), entries.encode(RAW, entry))


@given(st.binary(max_size=100))
def test_noise_is_no_entry(data: bytes) -> None:
    with pytest.raises(BadEntry):
        entries.decode(RAW, data)
    with pytest.raises(BadEntry):
        entries.decode(RAW, entries.seal(RAW, b"\x77" + data))
