"""`encode` and `decode`: which codecs are tried, and the checks around all of them.

The encoder ships whatever came out smallest, so no pair is ever worse than a plain zstd frame, and a frame never worse
than the bytes themselves. The decoder trusts nothing: sizes are bounded before memory is taken, the base is compared
with the digest in the patch before decoding, the result after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from delta import structured, zstd
from delta.container import MAX_INPUT_BYTES, Codec, Patch, digest, pack, unpack
from delta.errors import DeltaError
from delta.zstd import Effort

SMALLEST_COVER_BYTES = 4096
"""Below, zstd with the base as prefix is as small, and starting the kernel would take longer than everything else."""

THOROUGH_AT_MOST = 1.4
"""How many times smaller than zstd's quick level its thorough level may come out; on real pairs at most 1.2. A payload
that is that much smaller than the quick frame needs no comparison with the thorough one."""

COVER_AT_MOST = 2.75
"""The same for `cover` against the quick frame with the base as prefix; on real pairs at most 2.4."""

HOPELESS_SHARE = 0.97
"""Where the quick frames save less than this leaves, the bytes are random and unlike the base; nothing will help."""

NEARLY_SAME_BYTES = 4 << 10
NEARLY_SAME_COVER_AT_MOST = 8
"""With so small a payload the files are nearly the same, and `cover` came out up to 5 times smaller than the frame."""

COVER_BEATS_WASM_BELOW = 1 / 32
"""`cover` came out smaller than `wasm` only on modules that hardly differ: those whose quick frame has at most this
share of the target."""


def encode(base: bytes, target: bytes, *, effort: Effort = "normal") -> bytes:
    """A patch that rebuilds `target` from `base`; `base` may be empty.

    `effort` trades time for size: `fast`, `normal` or `best`. Raises DeltaError where an input is larger than
    `MAX_INPUT_BYTES` (256 MiB) or `effort` is none of the three.
    """
    if effort not in get_args(Effort):
        raise DeltaError(f"effort {effort!r} is none of {', '.join(get_args(Effort))}")
    _check_size("base", len(base))
    _check_size("target", len(target))
    codec, payload = min(_candidates(base, target, effort), key=lambda candidate: len(candidate[1]))
    return pack(codec, digest(base), digest(target), len(target), payload)


def decode(base: bytes, patch: bytes, *, max_size: int) -> bytes:
    """The target of `patch`, proven by its digest. Raises DeltaError for everything that is wrong with the patch, the
    base, or a target of more than `max_size` bytes."""
    parsed = unpack(patch)
    if parsed.target_size > max_size:
        raise DeltaError(f"the patch makes {parsed.target_size} bytes; the caller accepts {max_size}")
    _check_size("base", len(base))
    actual = digest(base)
    if actual != parsed.base:
        raise DeltaError(
            f"wrong base: the patch needs {parsed.base.hex()}, this is {actual.hex()}",
            hint="decode with the base that the patch names, or fetch the blob whole",
        )
    target = _rebuild(base, parsed)
    if len(target) != parsed.target_size or digest(target) != parsed.target:
        raise DeltaError("the patch does not rebuild the target that its header names", hint="fetch the blob whole")
    return target


def _candidates(base: bytes, target: bytes, effort: Effort) -> Iterator[tuple[Codec, bytes]]:
    """Payloads to choose from. What has clearly lost against a quick look at it is not run thoroughly."""
    yield Codec.STORED, target
    if not target:
        return
    plain = zstd.compress_plain(target, effort="fast")
    yield Codec.ZSTD, plain
    prefix = zstd.compress_with_prefix(base, target, effort="fast") if base else plain
    if base:
        yield Codec.ZSTD_PREFIX, prefix
    if effort == "fast":
        return
    quick, best = min(len(plain), len(prefix)), len(target)
    if effort != "best" and quick > len(target) * HOPELESS_SHARE:
        return
    was_wasm = False
    for codec, method in _methods(base, target):
        at_most = NEARLY_SAME_COVER_AT_MOST if best < NEARLY_SAME_BYTES else COVER_AT_MOST
        hopeless = best * at_most <= quick or (was_wasm and quick > len(target) * COVER_BEATS_WASM_BELOW)
        if effort == "best" or not hopeless:
            payload = structured.encode(method, base, target, effort=effort, to_beat=best)
            if payload is not None:
                best, was_wasm = min(best, len(payload)), codec is Codec.WASM
                yield codec, payload
    if base and (effort == "best" or best * THOROUGH_AT_MOST > len(prefix)):
        payload = zstd.compress_with_prefix(base, target, effort=effort)
        best = min(best, len(payload))
        yield Codec.ZSTD_PREFIX, payload
    if effort == "best" or best * THOROUGH_AT_MOST > len(plain):
        yield Codec.ZSTD, zstd.compress_plain(target, effort=effort)


def _methods(base: bytes, target: bytes) -> Iterator[tuple[Codec, structured.Method]]:
    """The kernel's codecs that fit, the most promising one first."""
    if structured.are_wasm(base, target):
        yield Codec.WASM, structured.WASM
    if min(len(base), len(target)) >= SMALLEST_COVER_BYTES:
        yield Codec.COVER, structured.COVER


def _rebuild(base: bytes, patch: Patch) -> bytes:
    if patch.codec is Codec.STORED:
        if len(patch.payload) != patch.target_size:
            raise DeltaError(f"the patch holds {len(patch.payload)} bytes where its header says {patch.target_size}")
        return bytes(patch.payload)
    if patch.codec is Codec.ZSTD:
        return zstd.decompress(b"", patch.payload, size=patch.target_size)
    if patch.codec is Codec.ZSTD_PREFIX:
        return zstd.decompress(base, patch.payload, size=patch.target_size)
    method = structured.WASM if patch.codec is Codec.WASM else structured.COVER
    return structured.decode(method, base, patch.payload, size=patch.target_size)


def _check_size(what: str, size: int) -> None:
    if size > MAX_INPUT_BYTES:
        raise DeltaError(
            f"the {what} has {size} bytes; a delta takes at most {MAX_INPUT_BYTES}",
            hint="store or send the blob whole, in records",
        )
