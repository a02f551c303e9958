"""Real modules of every proposal that toolchains emit: exact, and every instruction understood.

The modules are written as text and assembled and validated by wasm-tools, so none of them is what this codec's authors
believe the format to be. Each later version has a function, a type and data inserted in front of everything else, which
shifts every index and address.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sysconfig
from functools import cache

import pytest

import delta
from delta import kernel_host, structured
from delta.kernel.build import build

LIMIT = 1 << 24
COPIES = 40
STREAMS = 35

PROLOGUE = {
    "plain": "",
    "gc": "(type $pair (struct (field (mut i32)) (field (mut i64)))) (type $row (array (mut i32)))",
    "exceptions": "(tag $e (param i32))",
    "references": "(type $unary (func (param i32) (result i32))) (table $t 4 funcref) (elem declare func $f1)",
}

BODIES = {
    "plain": """(func $f{n} (param i32) (result i32) (local i64 f32)
        (i32.store offset={address} (local.get 0) (i32.const {value}))
        (if (i32.eqz (local.get 0)) (then (return (call $f{other} (i32.const {address})))))
        (f64.const {n}.5) drop (i64.const {value}) drop (memory.copy (i32.const 0) (i32.const 8) (i32.const 16))
        (block (block (br_table 0 1 0 (local.get 0)))) (i32.load8_u offset=3 (local.get 0)))""",
    "simd": """(func $f{n} (param i32) (result i32) (local v128)
        (local.set 1 (v128.const i32x4 {value} 1 2 {n}))
        (local.set 1 (i8x16.shuffle 0 1 2 3 4 5 6 7 24 25 26 27 28 29 30 31 (local.get 1) (local.get 1)))
        (v128.store offset={address} (local.get 0) (i32x4.add (local.get 1) (v128.load32_splat (i32.const {address}))))
        (v128.store16_lane offset={address} 3 (local.get 0) (local.get 1))
        (local.set 1 (i32x4.relaxed_trunc_f32x4_s (local.get 1)))
        (i32.add (i32x4.extract_lane 1 (local.get 1)) (call $f{other} (i32.const {address}))))""",
    "threads": """(func $f{n} (param i32) (result i32)
        (i32.atomic.store offset={address} (i32.const 0) (i32.const {value})) (atomic.fence)
        (i64.atomic.rmw8.cmpxchg_u offset={address} (local.get 0) (i64.const {value}) (i64.const 2)) drop
        (memory.atomic.notify offset=4 (i32.const {address}) (i32.const 1)) drop
        (memory.init $late (i32.const {address}) (i32.const 0) (i32.const 8))
        (i32.atomic.rmw.add offset={address} (local.get 0) (call $f{other} (i32.const {address}))))""",
    "exceptions": """(func $f{n} (param i32) (result i32)
        (block $caught (result i32)
          (try_table (result i32) (catch $e $caught)
            (if (local.get 0) (then (throw $e (i32.const {value}))))
            (call $f{other} (i32.const {address})))))""",
    "gc": """(func $f{n} (param i32) (result i32) (local (ref null $pair)) (local (ref null $row))
        (local.set 1 (struct.new $pair (i32.const {address}) (i64.const {value})))
        (local.set 2 (array.new_fixed $row 3 (i32.const {value}) (local.get 0) (i32.const {n})))
        (struct.set $pair 0 (local.get 1) (call $f{other} (array.len (local.get 2))))
        (block $is (result (ref $pair)) (br_on_cast $is anyref (ref $pair) (local.get 2)) drop
          (struct.new_default $pair))
        (drop (ref.test (ref null $row) (local.get 1))) drop (drop (ref.i31 (i32.const {value})))
        (array.get $row (ref.cast (ref $row) (local.get 2)) (struct.get $pair 0 (local.get 1))))""",
    "references": """(func $f{n} (param i32) (result i32)
        (if (local.get 0) (then (return_call $f{other} (i32.const {address}))))
        (table.set $t (i32.const 1) (ref.func $f1)) (drop (table.grow $t (ref.null func) (i32.const {n})))
        (call_indirect $t (param i32) (result i32) (i32.const {value}) (i32.const {n}))
        (call_ref $unary (ref.func $f1)))""",
    "wide": """(func $f{n} (param i32) (result i32)
        (i64.store offset={address} (i64.extend_i32_u (local.get 0)) (i64.const {value}))
        (i32.load $second offset={address} (i32.const {n})) (i32.add (call $f{other} (i32.const {value}))))""",
}
MEMORIES = {
    "threads": "(memory $m 64 64 shared)",
    "wide": "(memory $m i64 64) (memory $second 64)",
}


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if not kernel_host.available():
        build(kernel_host.KERNEL.parent)


def text_of(kind: str, *, later: bool) -> str:
    """A module in the text format; with names, since wasm-tools keeps those of the text."""
    rng = random.Random(kind)
    first = 1 << 20
    moved = 48 if later else 0
    functions = []
    for n in range(COPIES):
        facts = {"n": n, "other": rng.randrange(COPIES), "address": first + moved + 8 * rng.randrange(200)}
        functions.append(BODIES[kind].format(value=rng.randrange(1 << 30), **facts))
    if later:
        functions.insert(1, "(func $fresh (param i64 i64) (drop (i32.const 7)))")
        functions[20], functions[30] = functions[30], functions[20]
    words = "".join(f"\\{byte:02x}" for byte in rng.randbytes(1600))
    front = "fresh bytes in front of everything that was there"[:moved]
    address = f"(i64.const {first})" if kind == "wide" else f"(i32.const {first})"
    return f"""(module {"(type (func (param i64 i64)))" if later else ""}
        (import "env" "log" (func $log (param i32))) {PROLOGUE.get(kind, "")} {MEMORIES.get(kind, "(memory $m 64)")}
        (global $g (mut i32) (i32.const 5)) {" ".join(functions)}
        (data $d {address} "{front}{words}") (data $late "passive data") (export "run" (func $f0)))"""


def wasm_tools(*arguments: str, given: bytes) -> bytes:
    command = shutil.which("wasm-tools", path=sysconfig.get_path("scripts")) or "wasm-tools"
    done = subprocess.run([command, *arguments], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@cache
def assembled(text: str) -> bytes:
    wasm = wasm_tools("parse", given=text.encode())
    wasm_tools("validate", "--features", "all", given=wasm)
    return wasm


def exact_patch(base: bytes, target: bytes) -> bytes:
    patch = delta.encode(base, target)
    assert delta.decode(base, patch, max_size=LIMIT) == target
    return patch


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("names", [True, False], ids=["named", "stripped"])
def test_modules_of_every_proposal_are_exact_and_understood(kind: str, names: bool) -> None:
    base, target = (assembled(text_of(kind, later=later)) for later in (False, True))
    if not names:
        base, target = (wasm_tools("strip", "--all", given=module) for module in (base, target))
    exact_patch(base, target)
    exact_patch(target, base)
    payload = structured.encode(structured.WASM, base, target, effort="normal")
    assert payload is not None
    assert structured.decode(structured.WASM, base, payload, size=len(target)) == target
    assert bodies_as_bytes(base, target) == 0


def bodies_as_bytes(base: bytes, target: bytes) -> int:
    """How many functions travel as bytes, because an instruction in them is not understood: 1 in the stream of
    references, which is the second (docs/formats.md)."""
    row = structured.encode_streams(structured.WASM, base, target)[0]
    sizes, at = [], 0
    for _ in range(STREAMS):
        size, at = number(row, at)
        sizes.append(size)
    end = at + sizes[0] + sizes[1]
    at += sizes[0]
    found = 0
    while at < end:
        reference, at = number(row, at)
        found += reference == 1
    return found


def number(row: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = row[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def component_of(kinds: list[str], *, later: bool) -> bytes:
    modules = [text_of(kind, later=later).replace("(module", f"(core module $m{i}", 1) for i, kind in enumerate(kinds)]
    return assembled(f"(component {modules[0]} (component {modules[1]}) {' '.join(modules[2:])})")


def test_components_of_several_nested_modules_are_exact_also_when_their_order_changes() -> None:
    kinds = ["plain", "gc", "simd", "threads", "exceptions"]
    base = component_of(kinds, later=False)
    for target in (component_of(kinds, later=True), component_of(kinds[::-1], later=True)):
        exact_patch(base, target)
        assert structured.encode(structured.WASM, base, target, effort="normal") is not None
    exact_patch(base, assembled(text_of("gc", later=True)))
    exact_patch(assembled(text_of("gc", later=False)), base)
