"""Reading what a binary is and asks for, against the engine's own reading."""

from __future__ import annotations

import random

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.resolving.wasm_imports import (
    COMPONENT_PREAMBLE,
    CORE_PREAMBLE,
    MAX_SECTION_BYTES,
    Facts,
    FactsReader,
    NotWasm,
    facts_of,
)

CORE = bytes(
    wasmtime.wat2wasm(
        """
    (module
      (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
      (import "env" "table" (table 1 2 funcref))
      (import "env" "externs" (table 0 externref))
      (import "env" "memory" (memory 1 65536 shared))
      (import "other" "global" (global (mut i64)))
      (import "other" "constant" (global v128))
      (import "last" "tag" (tag (param i32)))
      (memory (export "more") 1)
      (data "not code, not imports")
      (func (export "_start") nop)
      (func (export "é")))
    """
    )
)

COMPONENT = bytes(
    wasmtime.wat2wasm(
        """
    (component
      (import "wasi:io/error@0.2.0" (instance $error (export "error" (type (sub resource)))))
      (alias export $error "error" (type $e))
      (import "wasi:io/streams@0.2.0" (instance
        (export "error" (type (eq $e)))
        (export "f" (func (param "x" u32) (result (own 0))))))
      (import "print" (func (param "text" string)))
      (import "thing" (type (sub resource)))
      (import "wasi:sockets/tcp@0.2.0" (instance))
      (core module $m (import "inner" "not-seen" (func)) (func (export "f")))
      (core module $n (func (export "f")))
      (core instance $i (instantiate $n))
      (func $run (canon lift (core func $i "f")))
      (instance $cli (export "run" (func $run)))
      (export "wasi:cli/run@0.2.0" (instance $cli))
      (export "helper" (func $run)))
    """
    )
)


def test_a_core_module_names_the_modules_it_imports_from() -> None:
    assert facts_of([CORE]) == Facts(
        "core", ("env", "last", "other", "wasi_snapshot_preview1"), ("_start", "more", "é")
    )


def test_a_component_names_the_interfaces_it_imports() -> None:
    assert facts_of([COMPONENT]) == Facts(
        "component",
        ("print", "thing", "wasi:io/error@0.2.0", "wasi:io/streams@0.2.0", "wasi:sockets/tcp@0.2.0"),
        ("helper", "wasi:cli/run@0.2.0"),
    )


@settings(max_examples=50)
@given(st.sampled_from([CORE, COMPONENT]), st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_how_a_binary_is_cut_into_pieces_does_not_matter(binary: bytes, sizes: list[int]) -> None:
    pieces: list[bytes] = []
    at = 0
    while at < len(binary):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(binary[at : at + size])
        at += size
    assert facts_of(pieces) == facts_of([binary])


@pytest.mark.parametrize("binary", [CORE, COMPONENT], ids=["core", "component"])
def test_a_binary_that_is_cut_off_is_found_out_or_ends_at_a_section(binary: bytes) -> None:
    whole = facts_of([binary])
    refused = 0
    for end in range(len(binary)):
        try:
            part = facts_of([binary[:end]])
            assert set(part.imports) <= set(whole.imports)
        except NotWasm:
            refused += 1
    assert refused > len(binary) * 0.9


@settings(max_examples=150)
@given(st.sampled_from([CORE, COMPONENT]), st.integers(0, 2**32))
def test_a_damaged_binary_is_read_or_refused_and_nothing_else(binary: bytes, seed: int) -> None:
    rng = random.Random(seed)
    damaged = bytearray(binary)
    for _ in range(rng.randint(1, 5)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    try:
        facts_of([bytes(damaged)])
    except NotWasm as wrong:
        assert str(wrong)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x00as", "does not begin as a WASM binary does"),
        (b"MZ" * 10, "does not begin as a WASM binary does"),
        (b"\x7fELF\x02\x01\x01\x00", "it is a native program"),
        (b"(module (func))", "text format"),
        (b"  (component)", "text format"),
        (b"\x00asm\x02\x00\x00\x00", "unknown version 02000000"),
        (CORE_PREAMBLE + b"\x02", "ends in the middle"),
        (CORE_PREAMBLE + b"\x00\x05ab", "ends in the middle"),
        (CORE_PREAMBLE + b"\x02\xff\xff\xff\xff\xff", "not a number"),
        (CORE_PREAMBLE + b"\x02\xff\xff\xff\xff\x7f", "too large"),
        (CORE_PREAMBLE + b"\x02\x02\x01\x05", "in the middle of a name"),
        (CORE_PREAMBLE + b"\x02\x03\x01\x01\xff", "not UTF-8"),
        (CORE_PREAMBLE + b"\x02\x05\xff\xff\xff\xff\x0f", "in the middle of an entry"),
        (CORE_PREAMBLE + b"\x02\xff\xff\xff\x7f", f"at most {MAX_SECTION_BYTES}"),
        (COMPONENT_PREAMBLE + b"\x0a\x01\x01", "in the middle of an entry"),
    ],
)
def test_what_is_no_binary_says_why(data: bytes, message: str) -> None:
    with pytest.raises(NotWasm, match=message):
        facts_of([data])


@pytest.mark.parametrize(
    "data", [CORE_PREAMBLE + b"\x02\x07\x01\x01a\x01b\x7f\x00", COMPONENT_PREAMBLE + b"\x0a\x02\x01\x7f"]
)
def test_entries_newer_than_the_reader_are_left_to_the_engine(data: bytes) -> None:
    assert len(facts_of([data]).imports) <= 1


def test_a_large_section_is_skipped_without_being_kept() -> None:
    reader = FactsReader()
    reader.feed(CORE_PREAMBLE + b"\x00\xff\xff\xff\xff\x0f")
    for _ in range(64):
        reader.feed(bytes(1 << 20))
    assert len(reader._buffer) == 0
    with pytest.raises(NotWasm, match="middle of a section"):
        reader.facts()
