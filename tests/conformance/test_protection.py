"""What every store promises about collection: what goes, and what stays."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas.digest import Digest, digest_of
from tests.conformance.stores import AnyStore, Clock
from tests.conformance.test_blobs import noise, versions


def test_collect_removes_what_is_no_root(store: AnyStore) -> None:
    digests = [store.put(noise(1000, seed)).digest for seed in range(10)]
    foreseen = store.collect(digests[:4], dry_run=True)
    assert (foreseen.blobs, foreseen.kept) == (6, 4)
    assert store.usage().blobs == 10
    collected = store.collect(digests[:4])
    assert (collected.blobs, collected.bytes, collected.kept, collected.failed) == (6, 6000, 4, ())
    assert sorted(digests[:4]) == list(store.digests())
    assert store.usage().raw_bytes == 4000
    assert store.check().damaged == ()


def test_a_root_that_is_not_here_is_no_trouble(store: AnyStore) -> None:
    store.put(b"x" * 1000)
    assert store.collect([digest_of(b"not here")]).blobs == 1


def test_what_a_blob_is_built_on_stays(store: AnyStore) -> None:
    made = versions(5)
    for data in made:
        store.put(data, name="n")
    newest = digest_of(made[-1])
    store.collect([newest])
    assert store.read(newest) == made[-1]
    assert store.check().damaged == ()


def test_a_collected_blob_leaves_its_name(store: AnyStore) -> None:
    first, second = store.put(b"one" * 100, name="n").digest, store.put(b"two" * 100, name="n").digest
    store.collect([first])
    assert store.history("n") == [first]
    assert second not in store.history("n")


def test_a_lease_protects_until_it_ends(store: AnyStore, clock: Clock) -> None:
    digest = store.put(noise(1000)).digest
    store.lease([digest], owner="push", ttl_s=60)
    assert store.collect([]).blobs == 0
    clock.now += 61
    assert store.collect([]).blobs == 1


def test_a_lease_protects_what_arrives_later(store: AnyStore) -> None:
    store.lease([digest_of(noise(1000))], owner="fetch", ttl_s=60)
    store.put(noise(1000))
    assert store.collect([]).blobs == 0


def test_leasing_again_extends_and_never_shortens(store: AnyStore, clock: Clock) -> None:
    digest = store.put(noise(1000)).digest
    store.lease([digest], owner="a", ttl_s=60)
    store.lease([digest], owner="a", ttl_s=600)
    store.lease([digest], owner="a", ttl_s=1)
    clock.now += 100
    assert store.collect([]).blobs == 0


def test_releasing_ends_the_leases_of_one_owner_only(store: AnyStore) -> None:
    one, two = store.put(noise(1000)).digest, store.put(noise(1000, 1)).digest
    store.lease([one, two], owner="a", ttl_s=60)
    store.lease([two], owner="ab", ttl_s=60)
    store.release("a")
    store.collect([])
    assert list(store.digests()) == [two]


def test_a_blob_stays_while_any_owner_pins_it(store: AnyStore) -> None:
    digest = store.put(noise(1000)).digest
    store.pin(digest, owner="a")
    store.pin(digest, owner="b")
    store.unpin(digest, owner="a")
    assert store.collect([]).blobs == 0
    store.unpin(digest, owner="b")
    store.unpin(digest, owner="b")
    assert store.collect([]).blobs == 1


def test_what_a_ref_points_at_stays(store: AnyStore) -> None:
    digest = store.put(noise(1000)).digest
    store.move_ref("prod", None, digest)
    assert store.collect([]).blobs == 0


def test_many_blobs_stored_with_a_lease_are_protected(store: AnyStore, clock: Clock) -> None:
    store.put_many([noise(100, seed) for seed in range(10)], lease_owner="x", ttl_s=60)
    assert store.collect([]).blobs == 0
    clock.now += 61
    assert store.collect([]).blobs == 10


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), rounds=st.integers(1, 4))
def test_any_mix_of_puts_and_collections_keeps_exactly_what_is_wanted(store: AnyStore, seed: int, rounds: int) -> None:
    store.collect([])
    source = random.Random(seed)
    expected: dict[Digest, bytes] = {}
    for _ in range(rounds):
        for _ in range(source.randrange(1, 12)):
            data = bytes([source.randrange(8)]) * source.choice([10, 900, 20_000]) + source.randbytes(
                source.randrange(40)
            )
            expected[store.put(data, name=source.choice([None, "n", "m"])).digest] = data
        roots = source.sample(sorted(expected), source.randrange(len(expected) + 1))
        store.collect(roots)
        here = set(store.digests())
        assert set(roots) <= here
        expected = {digest: data for digest, data in expected.items() if digest in here}
        assert here == set(expected)
        assert all(store.read(digest) == data for digest, data in expected.items())
    assert store.usage().blobs == len(expected)
    assert store.usage().raw_bytes == sum(map(len, expected.values()))


@pytest.mark.parametrize("owner", ["", "x" * 2000])
def test_an_owner_has_a_name_of_reasonable_length(owner: str) -> None:
    from cas import protection

    with pytest.raises(ValueError, match="owner"):
        protection.key_of(owner)


@pytest.mark.parametrize("how", ["lease", "pin"])
def test_what_an_ignored_owner_protects_goes_and_the_rest_stays(store: AnyStore, how: str) -> None:
    mine, other, both = (store.put(noise(1000, seed)).digest for seed in range(3))
    for owner, digests in (("push", [mine, both]), ("release", [other, both])):
        if how == "lease":
            store.lease(digests, owner=owner, ttl_s=60)
        else:
            for digest in digests:
                store.pin(digest, owner=owner)
    assert store.collect([], dry_run=True).blobs == 0
    assert store.collect([], dry_run=True, ignoring="push").blobs == 1
    assert store.collect([]).blobs == 0, "ignoring an owner ends nothing"
    assert store.collect([], ignoring="push").blobs == 1
    assert store.missing([mine, other, both]) == [mine]
