"""The structure-aware codec: exact on every form, small on real changes, and nothing escapes its sandbox."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import delta
from delta import DeltaError, kernel_host, last_stage, structured
from delta.container import Codec, digest, pack
from delta.kernel.build import build
from tests.delta.modules import Function, ModulePlan, changed, component, random_plan, section, sleb, uleb

LIMIT = 1 << 24


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if not kernel_host.available():
        build(kernel_host.KERNEL.parent)


def round_trip(base: bytes, target: bytes) -> bytes:
    payload = structured.encode(structured.WASM, base, target, effort="fast")
    assert payload is not None, "the pair was not coded by the wasm codec"
    assert structured.decode(structured.WASM, base, payload, size=len(target)) == target
    return payload


def streams_of(base: bytes, target: bytes) -> bytes:
    return structured.encode_streams(structured.WASM, base, target)[0]


def payload_of(base: bytes, streams: bytes) -> bytes:
    return last_stage.pack(base, streams, len(streams) // 2, effort="fast", text_level=3)


def large_plan() -> ModulePlan:
    rng = random.Random(7)
    plan = random_plan(rng, 300)
    plan.imports, plan.with_names, plan.pad = ["a", "b"], True, 0
    plan.data = [(1 << 20, b"".join(((1 << 20) + 4 * rng.randrange(900)).to_bytes(4, "little") for _ in range(1000)))]
    plan.table = list(range(40, 60))
    return plan


@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(0, 25))
def test_changed_modules_round_trip(seed: int, functions: int) -> None:
    rng = random.Random(seed)
    plan = random_plan(rng, functions)
    round_trip(plan.encode(), changed(rng, plan).encode())


@settings(max_examples=25)
@given(st.integers(0, 1 << 32))
def test_unrelated_modules_round_trip(seed: int) -> None:
    rng = random.Random(seed)
    round_trip(random_plan(rng, rng.randrange(20)).encode(), random_plan(rng, rng.randrange(20)).encode())


@settings(max_examples=15)
@given(st.integers(0, 1 << 32))
def test_components_round_trip_with_any_number_of_modules(seed: int) -> None:
    rng = random.Random(seed)
    plans = [random_plan(rng, rng.randrange(1, 12)) for _ in range(3)]
    base = component(*(plan.encode() for plan in plans))
    later = [changed(rng, plan).encode() for plan in plans]
    round_trip(base, component(*later))
    round_trip(base, component(*later[: rng.randrange(1, 3)]))
    round_trip(base, later[0])


def test_an_inserted_function_costs_little_though_it_shifts_every_index() -> None:
    plan, later = large_plan(), large_plan()
    base = plan.encode()
    later.functions.insert(3, Function([b"\x41\x07", b"\x1a"], 0, "fresh"))
    for function in later.functions:
        function.code = [i + 1 if isinstance(i, int) and i >= 3 else i for i in function.code]
    later.table = [i + 1 for i in later.table]
    target = later.encode()
    patch = delta.encode(base, target)
    assert delta.inspect(patch).codec == "wasm"
    assert delta.decode(base, patch, max_size=LIMIT) == target
    assert len(patch) * 4 < len(delta.encode(base, target, effort="fast"))


def test_moved_data_is_predicted() -> None:
    plan, later = large_plan(), large_plan()
    rng = random.Random(3)
    base = plan.encode()
    moved = 64
    address, content = plan.data[0]
    assert address is not None
    words = struct.unpack(f"<{len(content) // 4}I", content)
    later.data = [(address, rng.randbytes(moved) + struct.pack(f"<{len(words)}I", *(w + moved for w in words)))]
    payload = round_trip(base, later.encode())
    assert len(payload) < 2000


def test_a_long_body_that_changed_nearly_everywhere_keeps_what_stayed() -> None:
    rng = random.Random(11)
    plan, later = large_plan(), large_plan()
    parts = [[b"\x41" + sleb(rng.randrange(1 << 19)) for _ in range(rng.randrange(8, 40))] for _ in range(60)]
    fresh = [[b"\x41" + sleb(rng.randrange(1 << 19)) for _ in range(rng.randrange(20))] for _ in parts]
    plan.functions[9].code = [item for part in parts for item in part]
    later.functions[9].code = [item for part, new in zip(parts, fresh, strict=True) for item in [*part[2:], *new]]
    swapped = [*parts[30:], *parts[:30]]
    payload = round_trip(plan.encode(), later.encode())
    assert len(payload) < 6 * sum(len(new) for new in fresh)
    later.functions[9].code = [item for part in swapped for item in part]
    round_trip(plan.encode(), later.encode())


def test_a_function_of_unknown_instructions_travels_as_bytes() -> None:
    plan, later = large_plan(), large_plan()
    later.functions[5].code = [b"\x27\xff\xfe"]
    round_trip(plan.encode(), later.encode())
    round_trip(later.encode(), plan.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"\x41" + uleb(1 << 20, pad=5),
        b"\x41" + uleb((1 << 20) + 40, pad=5),
        b"\x28\x02" + uleb(1 << 20, pad=5),
        b"\x10" + uleb(4, pad=5),
        b"\x11" + uleb(1, pad=5) + uleb(0, pad=5),
        b"\x28\x42\x01\x05",
        b"\xfb\x18\x03\x00\x40\x40",
        b"\x06\x40\x07\x00\x19\x18\x00",
        b"\xfd\x54\x02\x05\x03",
        b"\xfe\x03\x00",
        b"\xd0\x70\xd1",
        b"\x41" + sleb(-(1 << 31)),
        b"\x3f\x00\x40\x00",
    ],
)
def test_special_forms_survive_as_copies_and_as_new_code(body: bytes) -> None:
    plan, later = large_plan(), large_plan()
    later.functions[9].code = [*later.functions[9].code, body]
    later.functions.append(Function([body] * 3, 0, "fresh"))
    round_trip(plan.encode(), later.encode())
    round_trip(later.encode(), later.encode())
    round_trip(later.encode(), plan.encode())


def golden_pair() -> tuple[bytes, bytes]:
    """Small enough to read, with an exception or an insertion in most streams. Never changes: patches refer to it."""
    address = b"\x41" + sleb(1 << 20)
    body: list[bytes | int] = [b"\x20\0", 0, address, b"\x28\x02" + uleb(1 << 20), b"\x11\x01\0", b"\x1a"]
    old = [Function([*body, b"\x41" + sleb(i)], 0, f"function{i}") for i in range(6)]
    new = [Function([*body, b"\x41" + sleb(i + 7)], 0, f"function{i}") for i in range(6)]
    new.insert(2, Function([b"\x41\x05", 3, address, b"\x1a"], 1, "inserted"))
    new[5].code[3:3] = [b"\x42\x07", b"\x1a"]
    table, moved = struct.pack("<8I", *range((1 << 20) + 4, (1 << 20) + 36, 4)), struct.pack("<I", 9)
    base = ModulePlan(old, ["a"], [(1 << 20, table + b"text of the data")], [0, 1, 2, 3], [], True)
    target = ModulePlan(new, ["a", "b"], [(1 << 20, moved + table + b"text of the dato")], [0, 1, 3, 4, 2], [], True)
    return base.encode(), target.encode()


GOLDEN_PAYLOAD = (
    "010098000000490000006c000000001001cb45200dc242ab0b48f0abaf1d9bb3a77d073e0024f988f625f93c9182df57e69f"
    "be2fde6d9c27d6b1c85fed5707702d253a44cc66268d59979ada678d6330a02cfb6c9cb0c644fa9a19688d2e2c2343d06fec"
    "afb222cd2649f1f5c7c1ce28d761a1314dffbd94c00028b52ffd2049a5010004020801027f41051003418080c080301a0b42"
    "071a6200000100110161090000006f0600141b21b737ec96cdaa41debee0deb1c2"
)


def test_a_golden_patch_decodes() -> None:
    base, target = golden_pair()
    assert digest(base).hex()[:16] == "b2807740c33a1a4f" and digest(target).hex()[:16] == "26bc66ae2435d767"
    assert structured.decode(structured.WASM, base, bytes.fromhex(GOLDEN_PAYLOAD), size=len(target)) == target


def test_what_is_not_a_module_falls_back() -> None:
    module = large_plan().encode()
    for broken in (
        module[:-3],
        module + b"\x01",
        module[:8] + section(10, b"\x05\x00"),
        b"\0asm",
        b"\0asm\x0d\0\x01\0\x01\x80",
    ):
        for base, target in ((module, broken), (broken, module)):
            patch = delta.encode(base, target)
            assert delta.decode(base, patch, max_size=LIMIT) == target


def test_without_the_kernel_encoding_falls_back_and_decoding_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = large_plan()
    base, target = plan.encode(), changed(random.Random(2), plan).encode()
    payload = round_trip(base, target)
    monkeypatch.setattr(kernel_host, "KERNEL", Path("/nowhere/delta.wasm"))
    assert delta.inspect(delta.encode(base, target)).codec == "zstd-prefix"
    patch = pack(Codec.WASM, digest(base), digest(target), len(target), payload)
    with pytest.raises(DeltaError, match="needs the delta kernel"):
        delta.decode(base, patch, max_size=LIMIT)


@pytest.fixture(scope="module")
def fuzz_pair() -> Iterator[tuple[bytes, bytes, bytes]]:
    plan = large_plan()
    base, target = plan.encode(), changed(random.Random(2), plan).encode()
    yield base, target, streams_of(base, target)


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_streams_end_in_a_delta_error(fuzz_pair: tuple[bytes, bytes, bytes], data: st.DataObject) -> None:
    base, target, streams = fuzz_pair
    damaged = bytearray(streams)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(damaged) - 1)))
        damaged[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 255])))
    size = data.draw(st.sampled_from([len(target), 0, 10, len(target) * 2]))
    patch = pack(Codec.WASM, digest(base), digest(target), size, payload_of(base, bytes(damaged)))
    with contextlib.suppress(DeltaError):
        assert delta.decode(base, patch, max_size=LIMIT) == target


@settings(max_examples=40)
@given(data=st.data())
def test_streams_for_another_base_end_in_a_delta_error(
    fuzz_pair: tuple[bytes, bytes, bytes], data: st.DataObject
) -> None:
    base, target, streams = fuzz_pair
    other = bytearray(base)
    for _ in range(data.draw(st.integers(1, 20))):
        other[data.draw(st.integers(8, len(other) - 1))] = data.draw(st.integers(0, 255))
    patch = pack(Codec.WASM, digest(bytes(other)), digest(target), len(target), payload_of(bytes(other), streams))
    with contextlib.suppress(DeltaError):
        assert delta.decode(bytes(other), patch, max_size=LIMIT) == target


HEAD = struct.Struct("<BBIII")


@pytest.mark.parametrize("codec", [Codec.WASM, Codec.COVER])
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        HEAD.pack(0, 0, 0, 0, 0),
        HEAD.pack(1, 1, 0, 0, 0),
        HEAD.pack(2, 2, 5, 5, 3) + b"junk of frames",
        HEAD.pack(1, 1, 5, 5, 3) + b"junk of streams",
        HEAD.pack(7, 0, 0, 0, 0),
        HEAD.pack(0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0),
        HEAD.pack(0, 0, 5, 5, 0xFFFFFFFF),
    ],
)
def test_a_payload_of_no_sense_is_a_delta_error(codec: Codec, payload: bytes) -> None:
    base = large_plan().encode()
    with pytest.raises(DeltaError):
        delta.decode(base, pack(codec, digest(base), digest(b"x"), 1, payload), max_size=LIMIT)


def test_bytes_after_a_packed_part_are_refused() -> None:
    plan = large_plan()
    base, target = plan.encode(), changed(random.Random(2), plan).encode()
    payload = structured.encode(structured.WASM, base, target, effort="normal")
    assert payload is not None
    *head, numbers_bytes = HEAD.unpack_from(payload)
    numbers, text = payload[HEAD.size :][:numbers_bytes], payload[HEAD.size + numbers_bytes :]
    for longer in (HEAD.pack(*head, numbers_bytes + 1) + numbers + b"\0" + text, payload + b"\0"):
        with pytest.raises(DeltaError):
            delta.decode(base, pack(Codec.WASM, digest(base), digest(target), len(target), longer), max_size=LIMIT)


def test_time_is_bounded(fuzz_pair: tuple[bytes, bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    base, target, streams = fuzz_pair
    monkeypatch.setattr(structured, "TIME_ALLOWANCE_S", -1e9)
    with pytest.raises(DeltaError, match="still running"):
        structured.decode_streams(structured.WASM, base, streams, len(target))


def test_memory_is_bounded(fuzz_pair: tuple[bytes, bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    base, _, streams = fuzz_pair
    monkeypatch.setattr(structured, "DECODE_ALLOWANCE_BYTES", 3 << 20)
    monkeypatch.setattr(structured, "DECODE_MEMORY_FACTOR", 0)
    with pytest.raises(DeltaError, match="more memory"):
        structured.decode_streams(structured.WASM, base, streams, 1 << 24)
