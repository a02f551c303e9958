"""The container and the generic codecs: round trips, sizes, golden vectors, hostile patches."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import delta
from delta import DeltaError
from delta.container import HEADER_BYTES, MAGIC, MAX_INPUT_BYTES, Codec, digest, pack

LIMIT = 1 << 20

BASE = b"the quick brown fox jumps over the lazy dog. " * 4
TARGET = BASE[:50] + b"A NEW SENTENCE. " + BASE[60:]

some_bytes = st.one_of(
    st.binary(max_size=300), st.builds(lambda unit, n: unit * n, st.binary(max_size=9), st.integers(0, 99))
)


@st.composite
def edited_pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    base = draw(some_bytes)
    target = bytearray(base)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(target)))
        target[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return base, bytes(target)


@settings(max_examples=150)
@given(edited_pairs(), st.sampled_from(["fast", "normal", "best"]))
def test_every_pair_round_trips_at_every_effort(pair: tuple[bytes, bytes], effort: delta.Effort) -> None:
    base, target = pair
    assert delta.decode(base, delta.encode(base, target, effort=effort), max_size=LIMIT) == target


@settings(max_examples=60)
@given(some_bytes, some_bytes)
def test_a_patch_is_never_larger_than_a_plain_frame_or_the_bytes(base: bytes, target: bytes) -> None:
    patch = delta.encode(base, target)
    plain = zstandard.ZstdCompressor(level=12).compress(target)
    assert len(patch) <= min(len(plain) + 1, len(target)) + HEADER_BYTES


@pytest.mark.parametrize(
    ("size", "effort"),
    [(size, effort) for size in (1_000, 100_000) for effort in ("fast", "normal", "best")]
    + [(12_000_000, "fast"), (12_000_000, "normal")],
)
def test_the_whole_base_is_used_at_every_size(size: int, effort: delta.Effort) -> None:
    base = random.Random(size).randbytes(size)
    target = base[size // 2 :] + b"between" + base[: size // 2]
    patch = delta.encode(base, target, effort=effort)
    assert delta.inspect(patch).codec in ("zstd-prefix", "cover")
    assert len(patch) < HEADER_BYTES + 200 + size // 500
    assert delta.decode(base, patch, max_size=size + 7) == target


def test_a_useless_base_costs_nothing() -> None:
    base = random.Random(1).randbytes(50_000)
    target = b"unlike the base " * 2_000
    plain = delta.encode(b"", target)
    assert len(delta.encode(base, target)) <= len(plain)


def test_a_patch_says_what_it_needs_and_makes() -> None:
    patch = delta.encode(BASE, TARGET)
    info = delta.inspect(patch)
    assert (info.base, info.target) == (digest(BASE), digest(TARGET))
    assert (info.target_size, info.patch_size) == (len(TARGET), len(patch))


def test_inputs_over_the_ceiling_are_refused_by_name() -> None:
    too_large = bytes(MAX_INPUT_BYTES + 1)
    with pytest.raises(DeltaError, match="target has 268435457 bytes"):
        delta.encode(b"", too_large)
    with pytest.raises(DeltaError, match="base has 268435457 bytes"):
        delta.encode(too_large, b"")
    with pytest.raises(DeltaError, match="base has 268435457 bytes"):
        delta.decode(too_large, delta.encode(b"", b"x"), max_size=LIMIT)
    patch = bytearray(delta.encode(b"", b"x"))
    patch[70:74] = struct.pack("<I", MAX_INPUT_BYTES + 1)
    with pytest.raises(DeltaError, match="claims a target of 268435457 bytes"):
        delta.decode(b"", bytes(patch), max_size=1 << 40)


def test_the_header_is_exactly_as_specified() -> None:
    patch = delta.encode(b"", b"x")
    assert patch == MAGIC + bytes([1, 0]) + digest(b"") + digest(b"x") + struct.pack("<I", 1) + b"x"


# Each was written by version 1 of the format; a reader of version 1 reads them for ever.
GOLDEN = {
    "stored": (
        b"",
        b"x",
        "6c6364700100af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        "3ae7d805f6789a6402acb70ad4096a85a56bf6804eaf25c0493ac697548d30b50100000078",
    ),
    "zstd": (
        b"",
        b"ab" * 40,
        "6c6364700101af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        "d7a736c06c096819fac48d80fc1492a3ec1588f4e13dfb8255bc566844174863"
        "5000000028b52ffd20504d00001861626101001aea86",
    ),
    "zstd-prefix": (
        BASE,
        TARGET,
        "6c63647001024108663d326ee050b420f494079c5242139e4d3eff2b8b850a748b55a9d75c8d"
        "ae64092c22fdf2e7a058d0078aef4b74835c8274ad77c174c08c69fbcb45d6fb"
        "ba00000028b52ffd20baf50000887441204e45572053454e54454e43452e2003000f31136095b2c2485d01",
    ),
}


@pytest.mark.parametrize("codec", GOLDEN)
def test_golden_patches_decode(codec: str) -> None:
    base, target, patch_hex = GOLDEN[codec]
    patch = bytes.fromhex(patch_hex)
    assert delta.inspect(patch).codec == codec
    assert delta.decode(base, patch, max_size=LIMIT) == target


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_patch_is_a_delta_error_or_harmless(data: st.DataObject) -> None:
    patch = bytearray(delta.encode(BASE, TARGET, effort="fast"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(patch) - 1))
        patch[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(patch))))
    with contextlib.suppress(DeltaError):
        assert delta.decode(BASE, bytes(patch[:cut]), max_size=LIMIT) == TARGET


@pytest.mark.parametrize("cut", range(HEADER_BYTES + 3))
def test_a_truncated_patch_is_a_delta_error(cut: int) -> None:
    with pytest.raises(DeltaError):
        delta.decode(BASE, delta.encode(BASE, TARGET)[:cut], max_size=LIMIT)


@settings(max_examples=100)
@given(st.sampled_from(list(Codec)), st.binary(max_size=80), st.integers(0, LIMIT))
def test_any_payload_under_a_valid_header_is_a_delta_error(codec: Codec, payload: bytes, size: int) -> None:
    patch = pack(codec, digest(BASE), digest(b"something else"), size, payload)
    with pytest.raises(DeltaError):
        delta.decode(BASE, patch, max_size=LIMIT)


def test_a_wrong_base_is_named_as_such() -> None:
    with pytest.raises(DeltaError, match="wrong base"):
        delta.decode(BASE + b".", delta.encode(BASE, TARGET), max_size=LIMIT)


def test_the_caller_bounds_the_target() -> None:
    patch = delta.encode(BASE, TARGET)
    with pytest.raises(DeltaError, match="the caller accepts"):
        delta.decode(BASE, patch, max_size=len(TARGET) - 1)


def test_a_frame_that_claims_more_than_the_header_is_refused_before_it_is_read() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    with pytest.raises(DeltaError, match="holds 52428800 bytes where its header says 10"):
        delta.decode(b"", pack(Codec.ZSTD, digest(b""), digest(b"0" * 10), 10, bomb), max_size=LIMIT)


def test_a_frame_without_a_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(TARGET)
    with pytest.raises(DeltaError):
        delta.decode(b"", pack(Codec.ZSTD, digest(b""), digest(TARGET), len(TARGET), frame), max_size=LIMIT)


def test_bytes_after_the_frame_are_refused() -> None:
    for target in (TARGET, b""):
        frame = zstandard.ZstdCompressor().compress(target) + b"\0"
        with pytest.raises(DeltaError):
            delta.decode(b"", pack(Codec.ZSTD, digest(b""), digest(target), len(target), frame), max_size=LIMIT)


def test_unknown_versions_and_codecs_are_refused() -> None:
    patch = bytearray(delta.encode(BASE, TARGET))
    patch[4] = 2
    with pytest.raises(DeltaError, match="version 2"):
        delta.inspect(bytes(patch))
    patch[4:6] = b"\x01\xff"
    with pytest.raises(DeltaError, match="unknown codec 255"):
        delta.inspect(bytes(patch))
    with pytest.raises(DeltaError, match="not a patch"):
        delta.inspect(b"\0" * 100)


def test_importing_delta_loads_no_codec() -> None:
    code = "import delta, sys; print([m for m in ('zstandard', 'wasmtime', 'lzma') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
