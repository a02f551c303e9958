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

DECODE_MEMORY_FACTOR = 5
"""Of base and target together, which are in memory once more outside of the sandbox; real modules take 1.5 to 3.2."""
DECODE_ALLOWANCE_BYTES = 32 << 20
"""For tables of fixed size and the stack."""
LIKELY_DECODE_FACTOR = 3
"""Reserved at once; see kernel_host.Sandbox."""
ENCODE_MEMORY_FACTOR = 24
ENCODE_ALLOWANCE_BYTES = 96 << 20

LOOKS: dict[Effort, int] = {"fast": 0, "normal": 8 << 20, "best": 64 << 20}
"""How many occurrences in the base the coder of text looks at in all, """
FEWEST_LOOKS: dict[Effort, int] = {"fast": 0, "normal": 8, "best": 64}
MOST_LOOKS = 512
"""but for each of the text's bytes at least and at most so many. Ten times as many save 2 to 3 %."""

MOST_CODED_TEXT_BYTES = 16 << 20
"""The coder of text takes one to two seconds per MiB; a larger text is left to zstd."""
TEXT_LEVEL: dict[Effort, int] = {"fast": 3, "normal": 12, "best": 19}

TIME_ALLOWANCE_S = 20.0
SLOWEST_DECODE_BYTES_PER_S = 1 << 20
SLOWEST_ENCODE_BYTES_PER_S = 256 << 10

LAST_STAGE_AT_MOST = 1.75
"""How many times smaller than zstd's level 3 the last stage may make the streams of `cover`; on real pairs 1.5."""

WASM_MAGIC = b"\0asm"


@dataclass(frozen=True, slots=True)
class Method:
    """One of the kernel's codecs: the names of its exports."""

    encoder: str
    decoder: str


WASM = Method("kernel_encode", "kernel_decode")
COVER = Method("kernel_cover_encode", "kernel_cover_decode")


def are_wasm(base: bytes, target: bytes) -> bool:
    return base[:4] == WASM_MAGIC and target[:4] == WASM_MAGIC


def encode(method: Method, base: bytes, target: bytes, *, effort: Effort, to_beat: int | None = None) -> bytes | None:
    """The payload, checked by decoding it; None where this pair cannot be coded so, where a quick look says that it
    will have more than `to_beat` bytes, or the kernel is not installed."""
    if not kernel_host.available():
        return None
    try:
        encoding = _Encoding(method, base, target)
        if len(encoding.streams) > len(target) + STREAMS_ALLOWANCE_BYTES:
            return None
        if effort != "best" and to_beat is not None and encoding.quick_size() > to_beat * LAST_STAGE_AT_MOST:
            return None
        payload = last_stage.pack(
            base, encoding.streams, encoding.text_at, effort=effort, text_level=TEXT_LEVEL[effort],
            coded_text=encoding.coded_text(effort),
        )  # fmt: skip
        return payload if decode(method, base, payload, size=len(target)) == target else None
    except DeltaError:
        return None


def decode(method: Method, base: bytes, payload: bytes | memoryview, *, size: int) -> bytes:
    """The target of `size` bytes. Raises DeltaError."""
    if not kernel_host.available():
        raise DeltaError(
            "this patch needs the delta kernel, which this installation does not have",
            hint="build it with `python -m delta.kernel.build`, or send the blob whole",
        )
    parts = last_stage.unpack(base, payload, max_size=size + STREAMS_ALLOWANCE_BYTES)
    if parts.coded is None:
        return decode_streams(method, base, parts.numbers + parts.text, size)
    sandbox = decoding_sandbox(len(base) + size)
    base_at, numbers_at, coded_at = sandbox.put(base), sandbox.put(parts.numbers), sandbox.put(bytes(parts.coded))
    streams_at = sandbox.call(
        "kernel_unpack_text",
        base_at, len(base), numbers_at, len(parts.numbers), coded_at, len(parts.coded), parts.text_bytes,
    )  # fmt: skip
    streams_bytes = len(parts.numbers) + parts.text_bytes
    return sandbox.get(sandbox.call(method.decoder, base_at, len(base), streams_at, streams_bytes, size), size)


class _Encoding:
    """The kernel's streams. The sandbox that made them holds several times the files and is not kept."""

    def __init__(self, method: Method, base: bytes, target: bytes) -> None:
        self._base = base
        sandbox = _encoding_sandbox(len(base) + len(target))
        base_at, target_at = sandbox.put(base), sandbox.put(target)
        streams_at = sandbox.call(method.encoder, base_at, len(base), target_at, len(target))
        self.streams = sandbox.get(streams_at, sandbox.ask("kernel_streams_bytes"))
        self.text_at = sandbox.ask("kernel_text_at")
        """Offset in the streams."""

    def quick_size(self) -> int:
        parts = self.streams[: self.text_at], self.streams[self.text_at :]
        return sum(len(zstd.compress_plain(part, effort="fast")) for part in parts)

    def coded_text(self, effort: Effort) -> bytes | None:
        """None where zstd is to pack the text. Raises DeltaError."""
        text = self.streams[self.text_at :]
        if effort == "fast" or (effort == "normal" and len(text) > MOST_CODED_TEXT_BYTES):
            return None
        looks = LOOKS[effort] // (len(text) + 1)
        sandbox = _encoding_sandbox(len(self._base) + len(text))
        base_at, text_at = sandbox.put(self._base), sandbox.put(text)
        at = sandbox.call(
            "kernel_pack_text",
            base_at, len(self._base), text_at, len(text),
            min(max(looks, FEWEST_LOOKS[effort]), MOST_LOOKS),
        )  # fmt: skip
        return sandbox.get(at, sandbox.ask("kernel_packed_bytes"))


def _encoding_sandbox(total_bytes: int) -> kernel_host.Sandbox:
    return kernel_host.Sandbox(
        memory_bytes=ENCODE_MEMORY_FACTOR * total_bytes + ENCODE_ALLOWANCE_BYTES,
        time_s=TIME_ALLOWANCE_S + total_bytes / SLOWEST_ENCODE_BYTES_PER_S,
    )


def encode_streams(method: Method, base: bytes, target: bytes) -> tuple[bytes, int]:
    """The kernel's streams and the offset in them at which the text begins. Raises DeltaError."""
    encoding = _Encoding(method, base, target)
    return encoding.streams, encoding.text_at


def decode_streams(method: Method, base: bytes, streams: bytes, size: int) -> bytes:
    """What the kernel rebuilds from its streams. Raises DeltaError."""
    sandbox = decoding_sandbox(len(base) + size)
    base_at, streams_at = sandbox.put(base), sandbox.put(streams)
    return sandbox.get(sandbox.call(method.decoder, base_at, len(base), streams_at, len(streams), size), size)


def decoding_sandbox(total_bytes: int) -> kernel_host.Sandbox:
    """A sandbox whose memory and time are bounded by the bytes of base and target together."""
    return kernel_host.Sandbox(
        memory_bytes=DECODE_MEMORY_FACTOR * total_bytes + DECODE_ALLOWANCE_BYTES,
        time_s=TIME_ALLOWANCE_S + total_bytes / SLOWEST_DECODE_BYTES_PER_S,
        likely_bytes=LIKELY_DECODE_FACTOR * total_bytes,
    )
