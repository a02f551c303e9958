"""The structure-aware codec for WASM modules and components.

Inserting one function shifts every function index, table slot and data address behind it, so two versions of a module
differ in far more bytes than were changed. The kernel parses both, matches functions, predicts the target's operands
from the base's and leaves streams that hold only what the predictions got wrong. One last stage compresses all streams
together with the base as a prefix, since inserted code is written in the base's numbering and often resembles it.

Payload: 1 byte last stage (0: zstd with the base as prefix), 4 bytes size of the streams (little-endian), the frame.
The streams are specified in docs/formats.md.
"""

from __future__ import annotations

import struct

from delta import kernel_host, zstd
from delta.errors import DeltaError
from delta.zstd import Effort

MAGIC = b"\0asm"
STAGE_ZSTD = 0

_HEAD = struct.Struct("<BI")

STREAMS_ALLOWANCE_BYTES = 64 << 10
"""Streams are at most this much larger than the target; an encoder that would need more uses another codec."""

DECODE_MEMORY_FACTOR = 6
"""Of base and target together; measured on real modules: 2 to 4."""
ENCODE_MEMORY_FACTOR = 24
MEMORY_ALLOWANCE_BYTES = 96 << 20

COMPARISON_COST: dict[Effort, int] = {"fast": 100, "normal": 800, "best": 4000}
"""How many changed instructions in a row are still aligned in the best possible way."""

LAST_STAGE_LEVEL: dict[Effort, int] = {"fast": 3, "normal": 19, "best": 22}
"""The streams are small, so the strongest levels cost little more than reading the base; they save 7 %."""

TIME_ALLOWANCE_S = 20.0
SLOWEST_DECODE_BYTES_PER_S = 1 << 20
SLOWEST_ENCODE_BYTES_PER_S = 256 << 10


def applies(base: bytes, target: bytes) -> bool:
    """Whether both are WASM and the kernel is installed."""
    return base[:4] == MAGIC and target[:4] == MAGIC and kernel_host.available()


def encode(base: bytes, target: bytes, *, effort: Effort) -> bytes | None:
    """The payload, checked by decoding it again; None where this pair cannot be coded this way."""
    try:
        streams = _encode_streams(base, target, effort=effort)
        if (
            len(streams) > len(target) + STREAMS_ALLOWANCE_BYTES
            or _decode_streams(base, streams, len(target)) != target
        ):
            return None
    except DeltaError:
        return None
    frame = zstd.compress_with_prefix(base, streams, effort=effort, level=LAST_STAGE_LEVEL[effort])
    return _HEAD.pack(STAGE_ZSTD, len(streams)) + frame


def decode(base: bytes, payload: bytes | memoryview, *, size: int) -> bytes:
    """The target of `size` bytes. Raises DeltaError."""
    if len(payload) < _HEAD.size:
        raise DeltaError("the patch's payload is too short")
    stage, streams_bytes = _HEAD.unpack_from(payload)
    if stage != STAGE_ZSTD:
        raise DeltaError(f"patch with unknown last stage {stage}", hint="upgrade lowcloud here, or send the blob whole")
    if streams_bytes > size + STREAMS_ALLOWANCE_BYTES:
        raise DeltaError(f"the patch claims {streams_bytes} bytes of streams for a target of {size} bytes")
    if not kernel_host.available():
        raise DeltaError(
            "this patch needs the delta kernel, which this installation does not have",
            hint="build it with `python -m delta.kernel.build`, or send the blob whole",
        )
    streams = zstd.decompress(base, payload[_HEAD.size :], size=streams_bytes)
    return _decode_streams(base, streams, size)


def _encode_streams(base: bytes, target: bytes, *, effort: Effort = "normal") -> bytes:
    total = len(base) + len(target)
    sandbox = kernel_host.Sandbox(
        memory_bytes=ENCODE_MEMORY_FACTOR * total + MEMORY_ALLOWANCE_BYTES,
        time_s=TIME_ALLOWANCE_S + total / SLOWEST_ENCODE_BYTES_PER_S,
    )
    base_at, target_at = sandbox.put(base), sandbox.put(target)
    streams_at = sandbox.call("kernel_encode", base_at, len(base), target_at, len(target), COMPARISON_COST[effort])
    return sandbox.get(streams_at, sandbox.call("kernel_streams_size"))


def _decode_streams(base: bytes, streams: bytes, size: int) -> bytes:
    total = len(base) + size
    sandbox = kernel_host.Sandbox(
        memory_bytes=DECODE_MEMORY_FACTOR * total + MEMORY_ALLOWANCE_BYTES,
        time_s=TIME_ALLOWANCE_S + total / SLOWEST_DECODE_BYTES_PER_S,
    )
    base_at, streams_at = sandbox.put(base), sandbox.put(streams)
    target_at = sandbox.call("kernel_decode", base_at, len(base), streams_at, len(streams), size)
    return sandbox.get(target_at, size)
