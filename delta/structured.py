"""The codecs that the kernel computes: `wasm` for modules and components, `cover` for data of any kind.

`wasm`: inserting one function shifts every function index, table slot and data address behind it, so two versions of a
module differ in far more bytes than were changed. The kernel parses both, matches functions, predicts the target's
operands from the base's, and leaves streams that hold only what the predictions got wrong.

`cover`: stretches of the base with single bytes changed, as bsdiff finds them, and what lies between them.

Both end in the same last stage (last_stage.py). What the kernel made is decoded again before it is shipped, so a form
that it does not reproduce exactly costs compression, never correctness.
"""

from __future__ import annotations

from dataclasses import dataclass

from delta import kernel_host, last_stage, zstd
from delta.errors import DeltaError
from delta.zstd import Effort

STREAMS_ALLOWANCE_BYTES = 64 << 10
"""Streams are at most this much larger than the target; an encoder that would need more uses another codec."""

DECODE_MEMORY_FACTOR = 6
"""Of base and target together; measured on real modules: 2 to 4."""
LIKELY_DECODE_FACTOR = 2
ENCODE_MEMORY_FACTOR = 24
MEMORY_ALLOWANCE_BYTES = 96 << 20

COMPARISON_COST: dict[Effort, int] = {"fast": 100, "normal": 400, "best": 4000}
"""How many changed instructions in a row are still aligned in the best possible way."""

TIME_ALLOWANCE_S = 20.0
SLOWEST_DECODE_BYTES_PER_S = 1 << 20
SLOWEST_ENCODE_BYTES_PER_S = 256 << 10

LAST_STAGE_AT_MOST = 1.5
"""How many times smaller than zstd's level 3 the last stage may make the streams of `cover`; on real pairs 1.3."""

WASM_MAGIC = b"\0asm"


@dataclass(frozen=True, slots=True)
class Method:
    """One of the kernel's codecs: the names of its exports, and the zstd level for its text."""

    encoder: str
    decoder: str
    text_level: dict[Effort, int]


WASM = Method("kernel_encode", "kernel_decode", {"fast": 3, "normal": 19, "best": 22})
COVER = Method("kernel_cover_encode", "kernel_cover_decode", {"fast": 3, "normal": 12, "best": 22})


def are_wasm(base: bytes, target: bytes) -> bool:
    return base[:4] == WASM_MAGIC and target[:4] == WASM_MAGIC


def encode(method: Method, base: bytes, target: bytes, *, effort: Effort, to_beat: int | None = None) -> bytes | None:
    """The payload, checked by decoding it; None where this pair cannot be coded so, where a quick look says that it
    will have more than `to_beat` bytes, or the kernel is not installed."""
    if not kernel_host.available():
        return None
    try:
        streams, text_at = encode_streams(method, base, target, effort=effort)
        if len(streams) > len(target) + STREAMS_ALLOWANCE_BYTES:
            return None
        if effort != "best" and to_beat is not None and _quick(streams, text_at) > to_beat * LAST_STAGE_AT_MOST:
            return None
        if decode_streams(method, base, streams, len(target)) != target:
            return None
    except DeltaError:
        return None
    return last_stage.pack(base, streams, text_at, effort=effort, text_level=method.text_level[effort])


def _quick(streams: bytes, text_at: int) -> int:
    parts = streams[:text_at], streams[text_at:]
    return sum(len(zstd.compress_plain(part, effort="fast")) for part in parts)


def decode(method: Method, base: bytes, payload: bytes | memoryview, *, size: int) -> bytes:
    """The target of `size` bytes. Raises DeltaError."""
    if not kernel_host.available():
        raise DeltaError(
            "this patch needs the delta kernel, which this installation does not have",
            hint="build it with `python -m delta.kernel.build`, or send the blob whole",
        )
    streams = last_stage.unpack(base, payload, max_size=size + STREAMS_ALLOWANCE_BYTES)
    return decode_streams(method, base, streams, size)


def encode_streams(method: Method, base: bytes, target: bytes, *, effort: Effort) -> tuple[bytes, int]:
    """The kernel's streams and the offset in them at which the text begins. Raises DeltaError."""
    total = len(base) + len(target)
    sandbox = kernel_host.Sandbox(
        memory_bytes=ENCODE_MEMORY_FACTOR * total + MEMORY_ALLOWANCE_BYTES,
        time_s=TIME_ALLOWANCE_S + total / SLOWEST_ENCODE_BYTES_PER_S,
    )
    base_at, target_at = sandbox.put(base), sandbox.put(target)
    at = sandbox.call(method.encoder, base_at, len(base), target_at, len(target), COMPARISON_COST[effort])
    return sandbox.get(at, sandbox.ask("kernel_streams_bytes")), sandbox.ask("kernel_text_at")


def decode_streams(method: Method, base: bytes, streams: bytes, size: int) -> bytes:
    """What the kernel rebuilds from its streams. Raises DeltaError."""
    total = len(base) + size
    sandbox = kernel_host.Sandbox(
        memory_bytes=DECODE_MEMORY_FACTOR * total + MEMORY_ALLOWANCE_BYTES,
        time_s=TIME_ALLOWANCE_S + total / SLOWEST_DECODE_BYTES_PER_S,
        likely_bytes=LIKELY_DECODE_FACTOR * total,
    )
    base_at, streams_at = sandbox.put(base), sandbox.put(streams)
    target_at = sandbox.call(method.decoder, base_at, len(base), streams_at, len(streams), size)
    return sandbox.get(target_at, size)
