"""What resembles a blob is found again, under any name, and is what its delta is made from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import similarity
from cas.bases import candidates
from cas.batch import Batch
from cas.digest import digest_of, from_raw, to_raw
from cas.similarity import FEATURES, Sketch, resemblance, sketch_of
from cas.store import Store
from tests.cas.damage import overwrite, values
from tests.conformance.test_blobs import noise

LINES = b"".join(b"line %d\n" % number for number in range(10_000))
GOLDEN = (0x0000C8F9, 0x00072FB8, 0x0017DE59, 0x001B1FF3)


def program(seed: int, size: int = 60_000) -> bytes:
    """Something like a binary: noise, in which one byte in 256 is a newline."""
    return noise(size, seed)


def changed(data: bytes, seed: int, places: int = 10) -> bytes:
    """The same with a few bytes inserted here and there, which shifts all that follows."""
    source = random.Random(seed)
    for _ in range(places):
        at = source.randrange(len(data))
        data = data[:at] + source.randbytes(5) + data[at:]
    return data


def test_a_sketch_is_what_the_format_says() -> None:
    sketch = sketch_of(LINES)
    assert sketch[:4] == GOLDEN
    assert len(sketch) == FEATURES
    assert list(sketch) == sorted(set(sketch))


def test_a_sketch_lies_where_the_format_says(store: Store) -> None:
    store.put(program(1))
    raw = to_raw(store.put(LINES).digest)
    rows = dict(values(store, "sketches"))
    place = (1).to_bytes(8, "big")
    numbers = [number.to_bytes(4, "big") for number in sketch_of(LINES)]
    assert rows[b"b" + raw] == place + b"".join(numbers)
    assert rows[b"s" + place] == raw
    assert {key[1:5] for key in rows if key[:1] == b"f" and key[5:] == place} == set(numbers)


def test_what_has_no_lines_is_cut_at_commas() -> None:
    assert sketch_of(LINES.replace(b"\n", b",")) == sketch_of(LINES)
    script = b"".join(b"function f%d(a){return a+%d}," % (number, number) for number in range(2000))
    assert resemblance(sketch_of(script), sketch_of(b"x=1," + script[:30_000] + b"y=2," + script[30_000:])) > 0.8


def test_small_blobs_and_blobs_without_pieces_have_no_sketch() -> None:
    assert sketch_of(LINES[: similarity.LEAST_BYTES - 1]) == ()
    assert sketch_of(b"\n" * 100_000) == ()


def test_a_sketch_does_not_depend_on_slices_that_end_at_newlines(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sketch_of(LINES)
    monkeypatch.setattr(similarity, "SLICE_BYTES", 1000)
    assert sketch_of(LINES) == whole
    assert len(sketch_of(noise(30_000).translate(None, b"\n,"))) == 30, "slices without a newline end where they must"


@given(st.integers(0, 1000), st.integers(1, 5))
def test_versions_resemble_each_other_and_strangers_do_not(seed: int, places: int) -> None:
    sketch = sketch_of(program(seed))
    assert resemblance(sketch, sketch_of(changed(program(seed), seed, places))) > 0.5
    assert resemblance(sketch, sketch_of(program(seed + 1))) < similarity.LEAST_RESEMBLANCE
    assert resemblance(sketch, sketch) == 1.0
    assert resemblance((), ()) == 0.0


@pytest.mark.parametrize(("name", "size"), [("build/renamed.wasm", 60_000), (None, 300_000)])
def test_a_blob_under_another_name_is_a_delta_of_what_it_resembles(store: Store, name: str | None, size: int) -> None:
    for seed in range(10):
        store.put(program(seed, size), name=f"program-{seed}")
    new = changed(program(4, size), 1)
    stored = store.put(new, name=name)
    assert store.stat(stored.digest).base == digest_of(program(4, size))
    assert stored.stored_bytes < 2000
    assert store.read(stored.digest) == new


def test_a_record_without_a_name_stays_readable_without_a_decoder(store: Store) -> None:
    store.put(program(1))
    assert store.stat(store.put(changed(program(1), 1)).digest).encoding == "plain"


def test_two_lines_of_versions_under_one_name_do_not_disturb_each_other(store: Store) -> None:
    lines = [program(1), program(2)]
    for round_ in range(6):
        for line, data in enumerate(lines):
            stored = store.put(data, name="n")
            assert round_ == 0 or stored.stored_bytes < 2000
            lines[line] = changed(data, round_)


def test_the_last_version_of_the_name_is_preferred_where_others_are_as_much_alike(store: Store) -> None:
    store.put(changed(program(1), 1, 1), name="other")
    last = store.put(changed(program(1), 2, 1), name="n").digest
    assert from_raw(candidates(store.access, "n", sketch_of(program(1)))[0].raw) == last


def remember(store: Store, raw: bytes, sketch: Sketch) -> None:
    def change(batch: Batch) -> None:
        similarity.remember(batch, raw, sketch)

    store.access.write(change)


def test_the_table_forgets_the_oldest_sketches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "KEPT_BLOBS", 5)
    for number in range(20):
        remember(store, bytes([number]) * 32, (1, 1000 + number))
    rows = [key for key, _ in values(store, "sketches")]
    assert len(rows) == 5 * 4
    with store.access.env.reading() as txn:
        found = similarity.similar(store.access.env, txn, (1, 1019), 100)
    assert [raw[0] for _, raw in found] == [19, 18, 17, 16, 15]


def test_collecting_a_blob_forgets_its_sketch(store: Store) -> None:
    kept = store.put(program(1)).digest
    store.put(program(2))
    store.collect([kept])
    assert {key[1:] for key, _ in values(store, "sketches") if key[:1] == b"b"} == {to_raw(kept)}
    store.collect([])
    assert values(store, "sketches") == []


def test_damaged_rows_cost_a_base_and_nothing_else(store: Store) -> None:
    store.put(program(1), name="one")
    for key, value in values(store, "sketches"):
        if not key.startswith(b"f"):
            overwrite(store, "sketches", key, value[:-3])
    data = changed(program(1), 1)
    assert store.put(data, name="two").new
    assert store.read(digest_of(data)) == data
    store.collect([])
    assert store.usage().blobs == 0


def test_a_store_from_before_there_were_sketches_is_opened_and_gets_them(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        digest = store.put(program(1), name="n").digest
        env = store.access.env
        with env.lmdb.begin(write=True) as txn:
            txn.drop(env.sketches)
            txn.drop(env.patches)
    with Store.open(tmp_path / "s") as store:
        assert store.read(digest) == program(1)
        assert store.put(changed(program(1), 1), name="n").stored_bytes < 2000
        assert store.put(changed(program(1), 2), name="m").stored_bytes < 2000
