"""What fuzzing starts from: small bases of every form that the codecs know, and the streams of real encodes on them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from delta import DeltaError, kernel_host, structured
from delta.structured import COVER, WASM, Method
from tests.delta.modules import Function, ModulePlan, changed, component, random_plan, uleb


@dataclass(frozen=True)
class Seed:
    method: Method
    base: bytes
    target: bytes
    streams: bytes
    text_at: int
    coded: bytes = b""
    """The text as the kernel's coder packs it."""

    @property
    def text_bytes(self) -> int:
        return len(self.streams) - self.text_at


def _go_like(rng: random.Random) -> ModulePlan:
    """Go's modules are known by their imports; calls are signed there and constants hold program counters."""
    plan = random_plan(rng, 12)
    plan.imports = ["gojs", "runtime"]
    plan.data = [(4096, rng.randbytes(300))]
    for function in plan.functions:
        function.code = [part for part in function.code if not isinstance(part, int) or part < 60]
        function.code.append(b"\x42\x80\x80\xc4\x80\x01")
    return plan


def _threaded(rng: random.Random) -> ModulePlan:
    """Data in passive segments, whose addresses only the code names."""
    plan = random_plan(rng, 8)
    plan.data = [(None, rng.randbytes(200)), (None, b"\x10\x04\0\0" * 40)]
    start = [b"\x41\x80\x08", b"\x41\0", b"\x41\xc8\x01", b"\xfc\x08\0\0", b"\x41\x80\x20", b"\x41\0", b"\x41\xa0\x01"]
    plan.functions.append(Function([*start, b"\xfc\x08\x01\0"], 0, "start"))
    return plan


PLAIN_OPCODES = (0x00, 0x01, 0x05, 0x0A, 0x0B, 0x0F, 0x19, 0x1A, 0x1B, *range(0x45, 0xC5), 0xD1, 0xD3, 0xD4)
ONE_NUMBER = (
    0x07,
    0x08,
    0x09,
    0x0C,
    0x0D,
    0x10,
    0x12,
    0x14,
    0x15,
    0x18,
    *range(0x20, 0x27),
    0x3F,
    0x40,
    0xD0,
    0xD2,
    0xD5,
    0xD6,
)
GC_NUMBERS = (1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 2, 1, 1, 1, 1, 0, 1, 2, 2, 2, 1, 1, 1, 1, 4, 4, 0, 0, 0, 0, 0)
BULK_NUMBERS = (0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 1, 2, 1, 2, 1, 1, 1)
OTHER_FORMS = (
    "0240", "037f", "0402", "0640", "0e02000100", "110000", "130100", "1180808080000000", "1c017f",
    "1f4002000001020000", "4180808080780b", "427f", "4300000000", "440000000000000000", "28420010", "28028080808000",
    "208480808000",
)  # fmt: skip


def every_instruction(first_number: int) -> list[bytes | int]:
    """Each instruction that the kernel reads, its numbers counting up from `first_number`, below 64."""

    def numbers(count: int) -> bytes:
        return bytes((first_number + number) % 64 for number in range(count))

    found = [bytes([opcode]) for opcode in PLAIN_OPCODES]
    found += [bytes([opcode]) + numbers(1) for opcode in ONE_NUMBER]
    found += [bytes([opcode, 2]) + numbers(1) for opcode in range(0x28, 0x3F)]
    found += [bytes.fromhex(form) for form in OTHER_FORMS]
    found += [bytes([0xFB, sub]) + numbers(count) for sub, count in enumerate(GC_NUMBERS)]
    found += [bytes([0xFC, sub]) + numbers(count) for sub, count in enumerate(BULK_NUMBERS)]
    for sub in range(0x100):
        if sub < 12 or sub in (92, 93):
            after = b"\x04" + numbers(1)
        elif sub < 14:
            after = numbers(16)
        else:
            after = numbers(1) if 21 <= sub <= 34 else b"\x02" + numbers(2) if 84 <= sub <= 91 else b""
        found.append(b"\xfd" + uleb(sub) + after)
    found += [bytes([0xFE, sub]) + (b"\0" if sub == 3 else b"\x02" + numbers(1)) for sub in range(0x4F)]
    return list(found)


def _of_every_kind(first_number: int, segments: int) -> ModulePlan:
    """One body of everything, and tables and data of many entries."""
    code = every_instruction(first_number)
    functions = [
        Function(code, 0, "all"),
        *(Function([b"\x41" + bytes([i]), b"\x1a"], i % 3, f"f{i}") for i in range(30)),
    ]
    data = [(1024 + 64 * i + first_number, bytes([i, 4, 0, 0]) * (i % 7 + 1)) for i in range(segments)]
    return ModulePlan(functions, ["a"], list(data), [(7 * i + first_number) % 31 for i in range(40)], with_names=True)


def pairs() -> list[tuple[bytes, bytes]]:
    """Bases with a target each; the same every time."""
    rng = random.Random(20)
    plans = [random_plan(rng, size) for size in (0, 1, 5, 12, 25)] + [_go_like(rng), _threaded(rng)]
    found = [(plan.encode(), changed(rng, plan).encode()) for plan in plans]
    found.append((_of_every_kind(0, 20).encode(), _of_every_kind(3, 23).encode()))
    modules = [plan.encode() for plan in plans[1:4]]
    found.append((component(*modules), component(*(changed(rng, plan).encode() for plan in plans[1:4]))))
    words = b"".join(rng.choice([rng.randbytes(3), b"word ", b"\0\0\x10\x20"]) for _ in range(900))
    found.append((words, words[:700] + rng.randbytes(40) + words[500:2000] + words[2100:].replace(b"wo", b"wa")))
    return found


def coded_text(base: bytes, text: bytes) -> bytes:
    sandbox = kernel_host.Sandbox(memory_bytes=1 << 28, time_s=60)
    at = sandbox.call("kernel_pack_text", sandbox.put(base), len(base), sandbox.put(text), len(text), 40)
    return sandbox.get(at, sandbox.ask("kernel_packed_bytes"))


def beyond_every_local() -> Seed:
    """Streams that change the operand of a `local.get`, for a base in which it is larger than any module's may be."""
    local = [b"\x20\x01", b"\x20\x02"]
    before, after = (ModulePlan([Function([b"\x20\0", *local])]), ModulePlan([Function([b"\x20\x03", *local])]))
    streams, text_at = structured.encode_streams(WASM, before.encode(), after.encode())
    beyond = ModulePlan([Function([b"\x20" + uleb((1 << 63) + (1 << 27)), *local])])
    return Seed(WASM, beyond.encode(), after.encode(), streams, text_at)


def seeds() -> list[Seed]:
    found = []
    for base, target in pairs():
        for method in (WASM, COVER):
            try:
                streams, text_at = structured.encode_streams(method, base, target)
            except DeltaError:
                continue  # not a module
            found.append(Seed(method, base, target, streams, text_at, coded_text(base, streams[text_at:])))
    return [*found, beyond_every_local()]
