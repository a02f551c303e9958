"""What every store promises about blobs."""

from __future__ import annotations

import random

import pytest

import delta
from cas.digest import digest_of
from cas.errors import AmbiguousDigest, BlobMissing, BlobTooLarge, DigestMismatch, NotADigest
from tests.conformance.stores import AnyStore

SIZES = [0, 1, 31, 300, 5_000, 16 << 10, (64 << 10) - 16, (256 << 10) - 16, (256 << 10) - 15, 1_000_000]
ABSENT = digest_of(b"never stored")


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def versions(count: int, size: int = 200_000) -> list[bytes]:
    """Successive versions of something that does not compress."""
    made = [noise(size)]
    for number in range(1, count):
        data = bytearray(made[-1])
        data[100 * number : 100 * number + 8] = noise(8, number)
        made.append(bytes(data))
    return made


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["noise", "zeros"])
def test_what_was_put_is_read_back(store: AnyStore, size: int, kind: str) -> None:
    data = noise(size) if kind == "noise" else bytes(size)
    stored = store.put(data)
    assert stored.digest == digest_of(data)
    assert (stored.size, stored.new) == (size, True)
    assert store.contains(stored.digest)
    assert store.read(stored.digest) == data
    assert b"".join(store.stream(stored.digest)) == data
    assert store.stat(stored.digest).size == size


def test_the_same_bytes_again_change_nothing(store: AnyStore) -> None:
    data = noise(100_000)
    store.put(data)
    again = store.put(data)
    assert (again.new, again.stored_bytes) == (False, 0)
    assert store.usage().blobs == 1


def test_a_stream_is_the_same_blob_as_its_bytes(store: AnyStore) -> None:
    data = noise(1_000_000)
    streamed = store.put_stream(data[start : start + 999] for start in range(0, len(data), 999))
    assert streamed.digest == digest_of(data)
    assert store.put(data).new is False
    assert store.read(streamed.digest) == data


def test_the_pieces_of_a_stream_are_bounded(store: AnyStore) -> None:
    stored = store.put(noise(3_000_000))
    assert max(map(len, store.stream(stored.digest))) <= 1 << 20


def test_a_blob_that_is_not_what_is_expected_is_not_kept(store: AnyStore) -> None:
    with pytest.raises(DigestMismatch):
        store.put(b"other bytes", expect=ABSENT)
    with pytest.raises(DigestMismatch):
        store.put_stream(iter([b"other ", b"bytes"]), expect=ABSENT)
    assert store.usage().blobs == 0


def test_a_missing_blob_is_said_to_be_missing(store: AnyStore) -> None:
    assert not store.contains(ABSENT)
    with pytest.raises(BlobMissing):
        store.read(ABSENT)
    with pytest.raises(BlobMissing):
        store.stat(ABSENT)
    with pytest.raises(BlobMissing):
        list(store.stream(ABSENT))
    with pytest.raises(BlobMissing):
        store.patch(ABSENT, [])


def test_missing_gives_each_absent_blob_once_in_the_order_given(store: AnyStore) -> None:
    here = store.put(b"here").digest
    others = [digest_of(bytes([number])) for number in range(5)]
    assert store.missing([others[3], here, others[0], others[3]]) == [others[3], others[0]]
    assert store.missing([]) == []


def test_something_that_is_no_digest_is_refused(store: AnyStore) -> None:
    for text in ["", "b3:", "b3:12", ABSENT.upper(), ABSENT + "0", "/etc/passwd"]:
        with pytest.raises(ValueError, match="digest"):
            store.contains(text)
        with pytest.raises(ValueError, match="digest"):
            store.read(text)


def test_digests_lists_every_blob(store: AnyStore) -> None:
    stored = {store.put(noise(500, seed)).digest for seed in range(20)}
    assert list(store.digests()) == sorted(stored)


def test_many_blobs_are_stored_at_once(store: AnyStore) -> None:
    blobs = [noise(seed, seed) for seed in range(1, 300)] + [noise(7, 7)]
    stored = store.put_many(blobs)
    assert [one.digest for one in stored] == [digest_of(data) for data in blobs]
    assert sum(one.new for one in stored) == 299
    assert all(store.read(digest_of(data)) == data for data in blobs)


def test_versions_of_a_name_are_read_back_and_listed_newest_first(store: AnyStore) -> None:
    made = versions(12)
    for data in made:
        store.put(data, name="web.wasm")
    assert store.history("web.wasm") == [digest_of(data) for data in reversed(made)]
    assert store.history("another") == []
    assert all(store.read(digest_of(data)) == data for data in made)


def test_a_blob_put_again_becomes_the_newest_of_its_name(store: AnyStore) -> None:
    first, second = store.put(b"one", name="n").digest, store.put(b"two", name="n").digest
    store.put(b"one", name="n")
    assert store.history("n") == [first, second]


def test_a_blob_is_found_by_the_start_of_its_digest(store: AnyStore) -> None:
    digest = store.put(b"something").digest
    assert store.find(digest) == digest
    assert store.find(digest[:11]) == digest
    assert store.find(digest[3:12]) == digest
    with pytest.raises(BlobMissing):
        store.find(ABSENT[:15])
    for text in ["", "b3:1234", "xyz", digest + "0"]:
        with pytest.raises(NotADigest):
            store.find(text)


def test_an_abbreviation_of_two_blobs_is_ambiguous(store: AnyStore) -> None:
    # Two inputs whose digests share their first eight digits, found by search.
    pair = [b"ambiguous-18794", b"ambiguous-129422"]
    digests = [store.put(data).digest for data in pair]
    assert digests[0][:11] == digests[1][:11]
    with pytest.raises(AmbiguousDigest):
        store.find(digests[0][:11])
    assert store.find(digests[0][:20]) == digests[0]


def test_a_patch_brings_its_target(store: AnyStore) -> None:
    base, target = versions(2)
    store.put(base)
    patch = delta.encode(base, target)
    stored = store.put_patch(digest_of(target), patch, max_size=len(target))
    assert stored.new
    assert store.read(digest_of(target)) == target
    assert store.patch(digest_of(target), [digest_of(base)]) == (digest_of(base), patch)
    assert store.patch(digest_of(target), [ABSENT]) is None
    assert store.patch(digest_of(base), [digest_of(target)]) is None
    assert store.put_patch(digest_of(target), patch, max_size=len(target)).new is False


def test_a_patch_that_cannot_be_applied_leaves_nothing(store: AnyStore) -> None:
    base, target = versions(2)
    patch = delta.encode(base, target)
    name = digest_of(target)
    with pytest.raises(BlobMissing):
        store.put_patch(name, patch, max_size=len(target))
    store.put(base)
    with pytest.raises(BlobTooLarge):
        store.put_patch(name, patch, max_size=len(target) - 1)
    with pytest.raises(DigestMismatch):
        store.put_patch(ABSENT, patch, max_size=len(target))
    with pytest.raises(delta.DeltaError):
        store.put_patch(name, b"not a patch", max_size=len(target))
    with pytest.raises(delta.DeltaError):
        store.put_patch(name, patch[:-3] + b"abc", max_size=len(target))
    assert list(store.digests()) == [digest_of(base)]


def test_usage_counts_blobs_and_bytes(store: AnyStore) -> None:
    store.put(noise(10_000))
    store.put(noise(20_000, 1))
    usage = store.usage()
    assert (usage.blobs, usage.raw_bytes, usage.stored_bytes) == (2, 30_000, 30_000)


def test_check_of_a_sound_store_finds_nothing(store: AnyStore) -> None:
    for data in versions(5):
        store.put(data, name="n")
    store.put_many(noise(100, seed) for seed in range(100))
    seen: list[tuple[int, int]] = []
    checked = store.check(progress=lambda done, total: seen.append((done, total)))
    assert (checked.blobs, checked.damaged) == (105, ())
    assert checked.bytes == store.usage().raw_bytes
    assert seen[-1] == (105, 105)


def test_what_is_known_of_many_blobs_is_what_is_known_of_each(store: AnyStore) -> None:
    digests = [store.put(data).digest for data in (b"", noise(100), bytes(5000), noise(300_000))]
    digests += [store.put(data, name="web").digest for data in versions(3)]
    absent = digest_of(b"not here")
    assert store.stats([*digests, absent]) == {digest: store.stat(digest) for digest in digests}
    assert store.stats([]) == {}
    assert [data for _, data in store.read_many(digests)] == [store.read(digest) for digest in digests]
    with pytest.raises(BlobMissing):
        list(store.read_many([absent]))
