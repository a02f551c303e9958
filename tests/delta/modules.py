"""Small WASM modules and components for the tests, built from parts so that every form of the format can be had."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

PREAMBLE = b"\0asm\x01\0\0\0"
COMPONENT_PREAMBLE = b"\0asm\x0d\0\x01\0"


def uleb(value: int, *, pad: int = 0) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    while len(out) < pad:
        out[-1] |= 128
        out.append(0)
    return bytes(out)


def sleb(value: int) -> bytes:
    out = bytearray()
    while not -64 <= value <= 63:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value & 127)
    return bytes(out)


def section(number: int, payload: bytes, *, pad: int = 0) -> bytes:
    return bytes([number]) + uleb(len(payload), pad=pad) + payload


def vector(items: list[bytes]) -> bytes:
    return uleb(len(items)) + b"".join(items)


def named(text: str) -> bytes:
    return uleb(len(text)) + text.encode()


@dataclass
class Function:
    """`code` is a list of instructions: bytes, or the number of a function to call, by its place among the defined."""

    code: list[bytes | int]
    type_index: int = 0
    name: str = "f"


@dataclass
class ModulePlan:
    functions: list[Function]
    imports: list[str] = field(default_factory=list)
    data: list[tuple[int | None, bytes]] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    custom: list[tuple[str, bytes]] = field(default_factory=list)
    with_names: bool = False
    pad: int = 0

    def encode(self) -> bytes:
        shift = len(self.imports)
        bodies = [self._body(function, shift) for function in self.functions]
        out = PREAMBLE + section(1, vector([b"\x60\0\0", b"\x60\x01\x7f\0", b"\x60\0\x01\x7f"]), pad=self.pad)
        if self.imports:
            out += section(2, vector([named("env") + named(i) + b"\0\0" for i in self.imports]))
        out += section(3, vector([uleb(f.type_index) for f in self.functions]))
        out += section(4, b"\x01\x70\0\x40") + section(5, b"\x01\0\x11")
        if self.table:
            head = b"\x01\0\x41\x01\x0b"
            out += section(9, head + vector([uleb(i + shift) for i in self.table]))
        if self.data:
            out += section(12, uleb(len(self.data)))
        out += section(10, vector([uleb(len(body), pad=self.pad) + body for body in bodies]), pad=self.pad)
        if self.data:
            out += section(11, vector([self._segment(address, content) for address, content in self.data]))
        for name, content in self.custom:
            out += section(0, named(name) + content)
        if self.with_names:
            names = [uleb(i) + named(f"import_{name}") for i, name in enumerate(self.imports)]
            names += [uleb(i + shift) + named(f.name) for i, f in enumerate(self.functions)]
            out += section(0, named("name") + section(1, vector(names)))
        return out

    @staticmethod
    def _body(function: Function, shift: int) -> bytes:
        code = b"".join(i if isinstance(i, bytes) else b"\x10" + uleb(i + shift) for i in function.code)
        return b"\x01\x02\x7f" + code + b"\x0b"

    @staticmethod
    def _segment(address: int | None, content: bytes) -> bytes:
        place = b"\x01" if address is None else b"\0\x41" + sleb(address) + b"\x0b"
        return place + uleb(len(content)) + content


def component(*modules: bytes) -> bytes:
    """A component that holds core modules, each in a section of its own, the last one in a nested component."""
    inner = COMPONENT_PREAMBLE + section(1, modules[-1])
    return (
        COMPONENT_PREAMBLE
        + b"".join(section(1, m) for m in modules[:-1])
        + section(0, named("note") + b"x")
        + section(4, inner)
    )


PLAIN = [
    b"\x01",
    b"\x1a",
    b"\x6a",
    b"\x45",
    b"\x0f",
    b"\x20\0",
    b"\x20\x01",
    b"\x21\0",
    b"\x22\x01",
    b"\x02\x40",
    b"\x0b",
]
"""Instructions of one or two bytes; the modules need not validate, only parse."""


def instruction(rng: random.Random, functions: int, data_start: int) -> bytes | int:
    """One instruction of any kind that the codec treats differently."""
    kind = rng.randrange(12)
    if kind < 4:
        return rng.choice(PLAIN)
    if kind == 4 and functions:
        return rng.randrange(functions)
    if kind == 5:
        return b"\x41" + sleb(
            rng.choice([rng.randrange(-70, 70), data_start + rng.randrange(4096), rng.randrange(1 << 31)])
        )
    if kind == 6:
        return b"\x28\x02" + uleb(rng.choice([rng.randrange(64), data_start + rng.randrange(4096)]))
    if kind == 7:
        return b"\x42" + sleb(rng.randrange(-(1 << 63), 1 << 63))
    if kind == 8:
        return rng.choice([b"\x43" + rng.randbytes(4), b"\x44" + rng.randbytes(8), b"\xfd\x0c" + rng.randbytes(16)])
    if kind == 9:
        return b"\x11" + uleb(rng.randrange(3)) + b"\0"
    if kind == 10:
        return rng.choice(
            [
                b"\x0e\x02\0\x01\0",
                b"\x1c\x01\x7f",
                b"\xfc\x0a\0\0",
                b"\xfc\x08\0\0",
                b"\xfb\x02\x01\x02",
                b"\xfe\x10\x02\x08",
            ]
        )
    return rng.choice(
        [b"\x23\x01", b"\x0d\0", b"\xd2\0", b"\x41" + uleb(rng.randrange(64), pad=5), b"\x1f\x40\x01\0\0\0"]
    )


def random_plan(rng: random.Random, functions: int) -> ModulePlan:
    data_start = rng.choice([1024, 1 << 20])
    content = b"".join(
        rng.choice([rng.randbytes(4), (data_start + rng.randrange(2000)).to_bytes(4, "little"), b"\x02\0\0\0", b"text"])
        for _ in range(rng.randrange(300))
    )
    return ModulePlan(
        functions=[
            Function(
                [instruction(rng, functions, data_start) for _ in range(rng.randrange(60))],
                rng.randrange(3),
                f"name{i}",
            )
            for i in range(functions)
        ],
        imports=[f"import{i}" for i in range(rng.randrange(4))],
        data=[(data_start, content), (None, rng.randbytes(40))][: rng.randrange(3)],
        table=[rng.randrange(functions) for _ in range(rng.randrange(8))] if functions else [],
        custom=[("producers", rng.randbytes(20))][: rng.randrange(2)],
        with_names=rng.random() < 0.5,
        pad=rng.choice([0, 0, 5]),
    )


def changed(rng: random.Random, plan: ModulePlan) -> ModulePlan:
    """A later version: code, data, imports and functions inserted, removed and altered."""
    functions = [Function(list(f.code), f.type_index, f.name) for f in plan.functions]
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(functions) + 1)
        fresh = [instruction(rng, max(1, len(functions)), 1 << 20) for _ in range(rng.randrange(30))]
        if rng.random() < 0.5 or not functions:
            functions.insert(place, Function(fresh, 0, "fresh"))
        else:
            code = functions[place % len(functions)].code
            at = rng.randrange(len(code) + 1)
            code[at : at + rng.randrange(3)] = fresh[:4]
    imports = plan.imports + ["late"] * rng.randrange(2)
    data = [(a, rng.randbytes(rng.randrange(9)) + d) for a, d in plan.data]
    return ModulePlan(functions, imports, data, plan.table, plan.custom, plan.with_names, plan.pad)
