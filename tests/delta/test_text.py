"""The kernel's coder of text: what a patch holds of the target's bytes as they are."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta import DeltaError, kernel_host, last_stage, structured, zstd
from delta.kernel.build import build

MEMORY_BYTES = 64 << 20
LOOKS = 64
NUMBERS = b"numbers"


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if not kernel_host.available():
        build(kernel_host.KERNEL.parent)


def packed(base: bytes, text: bytes) -> bytes:
    sandbox = kernel_host.Sandbox(memory_bytes=MEMORY_BYTES, time_s=20)
    base_at, text_at = sandbox.put(base), sandbox.put(text)
    at = sandbox.call("kernel_pack_text", base_at, len(base), text_at, len(text), LOOKS)
    return sandbox.get(at, sandbox.ask("kernel_packed_bytes"))


def unpacked(base: bytes, coded: bytes, text_bytes: int) -> bytes:
    sandbox = kernel_host.Sandbox(memory_bytes=MEMORY_BYTES, time_s=20)
    base_at, numbers_at, coded_at = sandbox.put(base), sandbox.put(NUMBERS), sandbox.put(coded)
    at = sandbox.call(
        "kernel_unpack_text", base_at, len(base), numbers_at, len(NUMBERS), coded_at, len(coded), text_bytes
    )
    streams = sandbox.get(at, len(NUMBERS) + text_bytes)
    assert streams[: len(NUMBERS)] == NUMBERS
    return streams[len(NUMBERS) :]


def pieces(rng: random.Random, base: bytes, most: int) -> bytes:
    """Pieces of the base, of what was there before, runs and noise."""
    text = bytearray()
    for _ in range(rng.randrange(most)):
        source = rng.choice([base, bytes(text)])
        at = rng.randrange(len(source) + 1)
        kind = rng.randrange(4)
        if kind < 2:
            text += source[at : at + rng.choice([3, 9, 40, 3000])]
        elif kind == 2:
            text += bytes([rng.randrange(256)]) * rng.randrange(300)
        else:
            text += rng.randbytes(rng.randrange(20))
    return bytes(text)


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_text_comes_back_whatever_it_is(seed: int) -> None:
    rng = random.Random(seed)
    base = rng.choice([b"", rng.randbytes(rng.randrange(5000)), b"abcd" * 700, bytes(rng.randrange(90))])
    text = pieces(rng, base, rng.choice([2, 5, 60]))
    assert unpacked(base, packed(base, text), len(text)) == text


def test_text_longer_than_a_block_comes_back() -> None:
    rng = random.Random(3)
    base = rng.randbytes(50_000)
    text = b"".join(pieces(rng, base, 40) for _ in range(60))
    assert len(text) > 1 << 18
    assert unpacked(base, packed(base, text), len(text)) == text


def test_text_of_the_base_costs_a_few_bytes() -> None:
    rng = random.Random(1)
    base = rng.randbytes(200_000)
    assert len(packed(base, base[150_000:190_000])) < 20
    assert len(packed(base, base[70_000:90_000] + base[90_100:120_000])) < 28


def test_edited_text_is_smaller_than_with_zstd() -> None:
    rng = random.Random(1)
    base = b"".join(b"function %d calls %d with %d;\n" % (k, rng.randrange(900), k * 7) for k in range(4000))
    lines = base[30_000:60_000].split(b"\n")
    text = b"\n".join(line.replace(b"with", b"and") if rng.random() < 0.3 else line for line in lines)
    assert len(packed(base, text)) * 1.05 < len(zstd.compress_with_prefix(base, text, effort="best", level=19))


GOLDEN_BASE = bytes(range(64)) * 4
GOLDEN_TEXT = b"new" + GOLDEN_BASE[30:90] + b"new!" + GOLDEN_BASE[90:100] + b"new" * 5
GOLDEN_PACKED = "c8db21045c7ddea1e1626471f6f1b28a"


def test_golden_text_unpacks() -> None:
    assert packed(GOLDEN_BASE, GOLDEN_TEXT).hex() == GOLDEN_PACKED
    assert unpacked(GOLDEN_BASE, bytes.fromhex(GOLDEN_PACKED), len(GOLDEN_TEXT)) == GOLDEN_TEXT


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_text_ends_in_bytes_or_a_delta_error(data: st.DataObject) -> None:
    rng = random.Random(5)
    base = rng.randbytes(700)
    damaged = bytearray(packed(base, pieces(rng, base, 30)))
    for _ in range(data.draw(st.integers(0, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    size = data.draw(st.sampled_from([0, 1, 500, 100_000]))
    with contextlib.suppress(DeltaError):
        assert len(unpacked(data.draw(st.sampled_from([base, b"", base[:9]])), bytes(damaged), size)) == size


def test_a_payload_says_that_its_text_is_coded() -> None:
    base, target = b"".join(b"%d " % k for k in range(3000)), b"".join(b"%d " % (k + k // 900) for k in range(3000))
    payload = structured.encode(structured.COVER, base, target, effort="normal")
    assert payload is not None and payload[1] == last_stage.Packing.TEXT_CODER
    assert structured.decode(structured.COVER, base, payload, size=len(target)) == target
