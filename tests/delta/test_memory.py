"""Decoding takes at most six times the bytes of base and target, whatever the codec: measured in its own process."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from delta import DeltaError, kernel_host, structured, zstd
from delta.container import Codec, digest, pack
from delta.kernel.build import build
from tests.delta.modules import Function, ModulePlan, sleb

FACTOR = 6

CHILD = """
import sys
import lzma, wasmtime, zstandard
import delta
from delta import kernel_host

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":"))

kernel_host.Sandbox(memory_bytes=4 << 20, time_s=60)
before = kib("VmRSS")
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak begins anew
with open(sys.argv[1], "rb") as base, open(sys.argv[2], "rb") as patch:
    target = delta.decode(base.read(), patch.read(), max_size=1 << 28)
print(kib("VmHWM") - before)
"""
"""Counts everything above an interpreter that has the engine, the kernel and the compressors loaded: base, patch and
target as `bytes`, the sandbox, what the compressors and the threads take."""


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if not kernel_host.available():
        build(kernel_host.KERNEL.parent)


def large_module(*, later: bool) -> bytes:
    rng = random.Random(1)
    pieces = [b"\x20\0\x41" + sleb(rng.randrange(1 << 22)) + b"\x6a\x21\1" for _ in range(400)]
    functions = [Function([*pieces[n % 40 :], n % 50], 0, f"f{n}") for n in range(700)]
    if later:
        functions.insert(3, Function([b"\x41\7\x1a"], 0, "fresh"))
    data = b"".join(rng.randrange(1 << 21).to_bytes(4, "little") for _ in range(150_000))
    return ModulePlan(functions, ["log"], [(1 << 20, b"moved" * later + data)], [], [], True).encode()


def patch_of(codec: Codec, base: bytes, target: bytes) -> bytes:
    if codec is Codec.ZSTD_PREFIX:
        payload: bytes | None = zstd.compress_with_prefix(base, target, effort="fast")
    else:
        method = structured.WASM if codec is Codec.WASM else structured.COVER
        payload = structured.encode(method, base, target, effort="fast")
    assert payload is not None
    return pack(codec, digest(base), digest(target), len(target), payload)


@pytest.mark.parametrize("codec", [Codec.ZSTD_PREFIX, Codec.WASM, Codec.COVER])
def test_decoding_takes_at_most_six_times_base_and_target(codec: Codec, tmp_path: Path) -> None:
    base, target = large_module(later=False), large_module(later=True)
    (tmp_path / "base").write_bytes(base)
    (tmp_path / "patch").write_bytes(patch_of(codec, base, target))
    child = [sys.executable, "-c", CHILD, str(tmp_path / "base"), str(tmp_path / "patch")]
    said = subprocess.run(child, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert int(said.stdout) * 1024 <= FACTOR * (len(base) + len(target))


def test_a_sandbox_for_decoding_ends_at_its_bound() -> None:
    """With base and target as `bytes` beside it, it is the sixth part; the allowance is for tables of fixed size."""
    total = 64 << 20
    bound = structured.DECODE_MEMORY_FACTOR * total + structured.DECODE_ALLOWANCE_BYTES
    assert structured.DECODE_MEMORY_FACTOR < FACTOR and structured.DECODE_ALLOWANCE_BYTES <= 32 << 20
    sandbox = structured.decoding_sandbox(total)
    sandbox.call("kernel_allocate", bound - (4 << 20))
    with pytest.raises(DeltaError, match="more memory than it may have"):
        sandbox.call("kernel_allocate", 4 << 20)
