"""The generic codec of the kernel: exact, small where bytes moved and changed a little, and safe."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import delta
from delta import DeltaError, kernel_host, last_stage, structured
from delta.container import HEADER_BYTES, Codec, digest, pack
from delta.kernel.build import build

LIMIT = 1 << 24


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if not kernel_host.available():
        build(kernel_host.KERNEL.parent)


def moved_program(rng: random.Random, words: int, shift: int) -> bytes:
    """Words as in an executable: opcodes, and addresses that all moved by the same distance."""
    out = bytearray()
    for _ in range(words):
        opcode, address, is_address = rng.randrange(200), rng.randrange(1 << 16), rng.random() < 0.3
        out += struct.pack("<I", 0x400000 + shift + 16 * address) if is_address else struct.pack("<HH", opcode, 7)
    return bytes(out)


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_edited_bytes_round_trip(seed: int) -> None:
    rng = random.Random(seed)
    base = rng.choice(
        [rng.randbytes(rng.randrange(3000)), b"abcdefg\n" * rng.randrange(300), bytes(rng.randrange(500))]
    )
    target = bytearray(base)
    for _ in range(rng.randrange(8)):
        at = rng.randrange(len(target) + 1)
        target[at : at + rng.randrange(40)] = rng.choice([rng.randbytes(rng.randrange(30)), base[: rng.randrange(200)]])
    payload = structured.encode(structured.COVER, base, bytes(target), effort="normal")
    assert payload is not None
    assert structured.decode(structured.COVER, base, payload, size=len(target)) == target


def test_a_program_whose_addresses_moved_is_smaller_than_with_zstd() -> None:
    base, target = moved_program(random.Random(1), 30_000, 0), moved_program(random.Random(1), 30_000, 48)
    patch = delta.encode(base, target)
    assert delta.inspect(patch).codec == "cover"
    assert delta.decode(base, patch, max_size=LIMIT) == target
    assert len(patch) * 2 < len(delta.encode(base, target, effort="fast"))


GOLDEN_BASE = bytes(range(64)) * 2
GOLDEN_TARGET = GOLDEN_BASE[:40] + b"!" + GOLDEN_BASE[41:] + b"end"
GOLDEN_PAYLOAD = "02020b000000030000001400000028b52ffd200b59000005010103010080010028f928b52ffd2003190000656e64"


def test_a_golden_patch_decodes() -> None:
    payload = bytes.fromhex(GOLDEN_PAYLOAD)
    patch = pack(Codec.COVER, digest(GOLDEN_BASE), digest(GOLDEN_TARGET), len(GOLDEN_TARGET), payload)
    assert delta.decode(GOLDEN_BASE, patch, max_size=LIMIT) == GOLDEN_TARGET


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_streams_end_in_a_delta_error(data: st.DataObject) -> None:
    base, target = moved_program(random.Random(1), 200, 0), moved_program(random.Random(1), 200, 48)
    streams, text_at = structured.encode_streams(structured.COVER, base, target)
    damaged = bytearray(streams)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    payload = last_stage.pack(base, bytes(damaged), text_at, effort="fast", text_level=3)
    size = data.draw(st.sampled_from([len(target), 0, 9, len(target) * 3]))
    with contextlib.suppress(DeltaError):
        assert (
            delta.decode(base, pack(Codec.COVER, digest(base), digest(target), size, payload), max_size=LIMIT) == target
        )


def test_repetitive_data_takes_no_time() -> None:
    base, target = bytes(3_000_000), bytes(1_000_000) + b"x" + bytes(2_500_000)
    assert delta.decode(base, delta.encode(base, target), max_size=LIMIT) == target
    assert len(delta.encode(base, target)) < HEADER_BYTES + 200
