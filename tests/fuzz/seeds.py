"""What fuzzing starts from: small bases of every form that the codecs know, and the streams of real encodes on them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from delta import DeltaError, structured
from delta.structured import COVER, WASM, Method
from tests.delta.modules import Function, ModulePlan, changed, component, random_plan, uleb


@dataclass(frozen=True)
class Seed:
    method: Method
    base: bytes
    target: bytes
    streams: bytes
    text_at: int


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


def pairs() -> list[tuple[bytes, bytes]]:
    """Bases with a target each; the same every time."""
    rng = random.Random(20)
    plans = [random_plan(rng, size) for size in (0, 1, 5, 12, 25)] + [_go_like(rng), _threaded(rng)]
    found = [(plan.encode(), changed(rng, plan).encode()) for plan in plans]
    modules = [plan.encode() for plan in plans[1:4]]
    found.append((component(*modules), component(*(changed(rng, plan).encode() for plan in plans[1:4]))))
    words = b"".join(rng.choice([rng.randbytes(3), b"word ", b"\0\0\x10\x20"]) for _ in range(900))
    found.append((words, words[:700] + rng.randbytes(40) + words[500:2000] + words[2100:].replace(b"wo", b"wa")))
    return found


def beyond_every_local() -> Seed:
    """Streams that change the operand of a `local.get`, for a base in which it is larger than any module's may be."""
    local = [b"\x20\x01", b"\x20\x02"]
    before, after = (ModulePlan([Function([b"\x20\0", *local])]), ModulePlan([Function([b"\x20\x03", *local])]))
    streams, text_at = structured.encode_streams(WASM, before.encode(), after.encode(), effort="normal")
    beyond = ModulePlan([Function([b"\x20" + uleb((1 << 63) + (1 << 27)), *local])])
    return Seed(WASM, beyond.encode(), after.encode(), streams, text_at)


def seeds() -> list[Seed]:
    found = []
    for base, target in pairs():
        for method in (WASM, COVER):
            try:
                streams, text_at = structured.encode_streams(method, base, target, effort="normal")
            except DeltaError:
                continue  # not a module
            found.append(Seed(method, base, target, streams, text_at))
    return [*found, beyond_every_local()]
