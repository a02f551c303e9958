"""Which encoding a blob gets."""

from __future__ import annotations

import random

from cas import encoding
from cas.encoding import Candidate
from cas.entries import DELTA, PLAIN, ZSTD
from cas.reading import MAX_DEPTH
from cas.store import Store
from tests.conformance.test_blobs import noise, versions

RAW = bytes(32)


def choose(
    data: bytes, candidates: list[Candidate], patches: dict[bytes, int | None]
) -> tuple[encoding.Encoded, list[bytes]]:
    """The choice, and the bases that were tried, where a delta from each base has the size given."""
    tried: list[bytes] = []

    def encode_delta(base: bytes, _target: bytes) -> bytes | None:
        tried.append(base)
        size = patches[base]
        return None if size is None else bytes(size)

    return encoding.choose(RAW, data, candidates, read_base=lambda raw: raw, encode_delta=encode_delta), tried


def candidate(name: bytes, *, depth: int = 0, chain_bytes: int = 1000, size: int = 100_000) -> Candidate:
    return Candidate(name.ljust(32, b"."), size, depth, chain_bytes)


A, B, C = (candidate(name) for name in (b"a", b"b", b"c"))
DATA = noise(100_000)


def test_without_a_base_the_smaller_of_plain_and_zstd_is_taken() -> None:
    assert choose(DATA, [], {})[0].encoding == PLAIN
    assert choose(bytes(100_000), [], {})[0].encoding == ZSTD
    assert choose(b"short", [], {})[0].encoding == PLAIN


def test_the_smallest_delta_is_taken() -> None:
    chosen, tried = choose(DATA, [A, B], {A.raw: 50_000, B.raw: 40_000})
    assert (chosen.encoding, chosen.base, chosen.depth, chosen.chain_bytes) == (DELTA, B.raw, 1, 41_000)
    assert tried == [A.raw, B.raw]


def test_a_clearly_good_delta_ends_the_search() -> None:
    chosen, tried = choose(DATA, [A, B], {A.raw: 100, B.raw: 50})
    assert (chosen.base, tried) == (A.raw, [A.raw])


def test_the_number_of_bases_tried_is_bounded() -> None:
    _, tried = choose(DATA, [A, B, C], {A.raw: 50_000, B.raw: 50_000, C.raw: 100})
    assert tried == [A.raw, B.raw]


def test_a_delta_that_saves_little_is_not_worth_it() -> None:
    assert choose(DATA, [A], {A.raw: 90_000})[0].encoding == PLAIN
    assert choose(bytes(100_000), [A], {A.raw: 300})[0].encoding == ZSTD


def test_a_base_that_cannot_be_used_is_passed_over() -> None:
    deep, itself = candidate(b"deep", depth=MAX_DEPTH), Candidate(RAW, 100_000, 0, 0)
    large = candidate(b"large", size=(256 << 20) + 1)
    chosen, tried = choose(DATA, [deep, itself, large, A, B], {A.raw: None, B.raw: 100})
    assert (chosen.base, tried) == (B.raw, [A.raw, B.raw])


def test_a_chain_that_reads_too_many_bytes_is_not_made_longer() -> None:
    heavy = candidate(b"heavy", chain_bytes=50 << 20)
    assert choose(DATA, [heavy], {heavy.raw: 100})[0].encoding == PLAIN


def test_tiny_blobs_get_no_delta() -> None:
    assert choose(noise(200), [A], {})[1] == []


def test_chains_in_a_store_stay_short_however_many_versions_there_are(store: Store) -> None:
    depths = [store.stat(store.put(data, name="n").digest).depth for data in versions(20, 30_000)]
    assert max(depths) == MAX_DEPTH
    assert store.usage().stored_bytes < 45_000


def test_a_version_that_goes_back_is_a_delta_of_an_older_one(store: Store) -> None:
    one, other = noise(50_000, 1), noise(50_000, 2)
    store.put(one, name="n")
    store.put(other, name="n")
    back = bytearray(one)
    back[500:510] = b"0123456789"
    assert store.put(bytes(back), name="n").stored_bytes < 1000


def test_a_blob_in_a_store_is_a_delta_only_where_that_pays(store: Store) -> None:
    source = random.Random(5)
    for _ in range(5):
        assert store.stat(store.put(source.randbytes(40_000), name="n").digest).encoding == "plain"
