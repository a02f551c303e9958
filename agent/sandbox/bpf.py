"""Classic BPF: just enough of an assembler for socket selectors and system-call filters.

A program is a list of `Op`; jumps name labels, so that a program can be read and changed without counting. Format:
`struct sock_filter` and `struct sock_fprog` of `linux/filter.h`.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final, NamedTuple

LOAD_WORD: Final = 0x20
LOAD_HALF: Final = 0x28
LOAD_BYTE: Final = 0x30
AND: Final = 0x54
JUMP_EQUAL: Final = 0x15
JUMP_ANY_BIT: Final = 0x45
RETURN: Final = 0x06

MAX_INSTRUCTIONS: Final = 4096
OP_BYTES: Final = 8
_MAX_JUMP: Final = 255


class Op(NamedTuple):
    """One instruction. `then` and `otherwise` are labels for jumps; None falls through to the next instruction."""

    code: int
    value: int
    then: str | None = None
    otherwise: str | None = None
    label: str | None = None
    """Where jumps to this instruction go."""


def load(offset: int, *, code: int = LOAD_WORD, label: str | None = None) -> Op:
    return Op(code, offset, label=label)


def give(value: int, *, label: str | None = None) -> Op:
    """End the program with this result."""
    return Op(RETURN, value, label=label)


def if_equal(value: int, then: str | None = None, otherwise: str | None = None) -> Op:
    return Op(JUMP_EQUAL, value, then, otherwise)


def assemble(ops: list[Op]) -> bytes:
    """The instructions' bytes. Raises ValueError for a label that is missing, behind, or too far away."""
    if len(ops) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(ops)} instructions are more than the kernel takes ({MAX_INSTRUCTIONS})")
    places = {op.label: index for index, op in enumerate(ops) if op.label is not None}

    def distance(index: int, label: str | None) -> int:
        if label is None:
            return 0
        jump = places[label] - index - 1 if label in places else -1
        if not 0 <= jump <= _MAX_JUMP:
            raise ValueError(f"no label {label!r} within {_MAX_JUMP} instructions after number {index}")
        return jump

    return b"".join(
        struct.pack("HBBI", op.code, distance(i, op.then), distance(i, op.otherwise), op.value & 0xFFFFFFFF)
        for i, op in enumerate(ops)
    )


class Program:
    """A `struct sock_fprog` and the memory it points to: keep it alive until the call that takes it has returned."""

    def __init__(self, code: bytes) -> None:
        self._instructions = ctypes.create_string_buffer(code, len(code))
        self.struct = struct.pack("HxxxxxxQ", len(code) // OP_BYTES, ctypes.addressof(self._instructions))
