"""Blobs from any kind of store to any other."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import delta
from cas import wire
from cas.digest import Digest, digest_of, to_raw
from cas.errors import BlobMissing, ExchangeError
from cas.exchange import Receiver, bases_of, cost, frames, transfer
from cas.fresh import freshen
from tests.conformance.stores import AnyStore, Clock, open_store
from tests.conformance.test_blobs import noise, versions

LONG = bytes(200_000) + noise(200_000) + bytes(800_000)
BLOBS = [b"", b"x", noise(300), bytes(5000), noise(70_000), bytes(3_000_000), noise(1_500_000), LONG]


@pytest.fixture(params=["lmdb", "memory"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> AnyStore:
    context = open_store(request.param, tmp_path / "peer", Clock())
    opened = context.__enter__()
    request.addfinalizer(lambda: context.__exit__(None, None, None))
    return opened


def stream_of(store: AnyStore, digests: list[Digest], bases: list[Digest] | None = None) -> bytes:
    return b"".join(frames(store, digests, bases or []))


@pytest.mark.parametrize("chunk", [7, 4096, 1 << 30])
def test_every_kind_of_blob_arrives_whatever_the_chunks(store: AnyStore, peer: AnyStore, chunk: int) -> None:
    blobs = BLOBS[:5] if chunk == 7 else BLOBS
    digests = [peer.put(data).digest for data in blobs]
    stream = stream_of(peer, digests)
    with Receiver(store) as receiver:
        for start in range(0, len(stream), chunk):
            receiver.feed(stream[start : start + chunk])
        received = receiver.finish()
    assert (received.blobs, received.wire_bytes) == (len(blobs), len(stream))
    assert received.raw_bytes == sum(map(len, blobs))
    assert [store.read(digest) for digest in digests] == blobs
    assert store.check().damaged == ()


def test_compressible_blobs_travel_compressed(tmp_path: Path, store: AnyStore) -> None:
    with open_store("lmdb", tmp_path / "source", Clock()) as source:
        digest = source.put(bytes(3_000_000)).digest
        assert transfer(source, store, [digest]).wire_bytes < 10_000
        assert store.read(digest) == bytes(3_000_000)


def test_a_new_version_travels_as_its_delta(tmp_path: Path, store: AnyStore) -> None:
    with open_store("lmdb", tmp_path / "source", Clock()) as source:
        made = versions(4)
        digests = [source.put(data, name="web").digest for data in made]
        assert transfer(source, store, digests[:1]).wire_bytes > len(made[0])
        assert set(bases_of(source, digests[3:])) == set(digests[:3])
        skipped = transfer(source, store, digests[3:])
        assert skipped.wire_bytes < 5000
        assert store.read(digests[3]) == made[3]
        assert transfer(source, store, digests).wire_bytes < 5000
        assert store.check().damaged == ()


def test_versions_sent_together_travel_as_one_whole_and_deltas(tmp_path: Path, store: AnyStore) -> None:
    with open_store("lmdb", tmp_path / "source", Clock()) as source:
        made = versions(9)
        digests = [source.put(data, name="web").digest for data in made]
        random.Random(1).shuffle(digests)
        received = transfer(source, store, digests)
        assert received.wire_bytes < 1.1 * len(made[0])
        assert store.missing(digests) == []
        assert store.check().damaged == ()


def test_one_late_version_alone_travels_whole(tmp_path: Path, store: AnyStore) -> None:
    with open_store("lmdb", tmp_path / "source", Clock()) as source:
        digests = [source.put(data, name="web").digest for data in versions(4)]
        assert transfer(source, store, digests[3:]).blobs == 1
        assert list(store.digests()) == digests[3:]


def test_nothing_to_send_is_a_sound_stream(store: AnyStore, peer: AnyStore) -> None:
    assert transfer(peer, store, []).blobs == 0


def test_a_sender_that_lacks_a_blob_says_so(store: AnyStore) -> None:
    with pytest.raises(BlobMissing):
        list(frames(store, [digest_of(b"absent")], []))


def test_what_arrives_is_protected_before_it_is_used(store: AnyStore, peer: AnyStore) -> None:
    base, target = versions(2)
    digests = [peer.put(data).digest for data in [base, *BLOBS]]
    digests.append(peer.put_patch(digest_of(target), delta.encode(base, target), max_size=len(target)).digest)
    transfer(peer, store, digests)
    assert store.collect([]).blobs == 0


def bad_streams() -> dict[str, bytes]:
    data, other = noise(300), noise(100_000)
    good = wire.preamble() + wire.header(wire.PLAIN, to_raw(digest_of(data)), 300, 300) + data
    name = to_raw(digest_of(other))
    patch = delta.encode(data, other)
    return {
        "another magic": b"nope\x01\x00" + good[6:] + wire.end(1),
        "another version": b"lcxs\x63\x00" + good[6:] + wire.end(1),
        "cut in the preamble": b"lcx",
        "cut in a header": good + b"\x00\x01",
        "cut in a payload": good[:-1],
        "no end": good,
        "a wrong count": good + wire.end(2),
        "bytes behind the end": good + wire.end(1) + b"\0",
        "small bytes of another name": good + wire.header(0, to_raw(digest_of(b"x")), 5, 5) + b"12345" + wire.end(2),
        "long bytes of another name": good + wire.header(0, to_raw(digest_of(b"x")), 100_000, 100_000) + other,
        "an unknown kind": good + b"\x09" + bytes(48),
        "a plain size that is not the payload's": good + wire.header(0, name, 6, 5) + b"12345",
        "a size beyond every bound": good + wire.header(0, name, 1 << 60, 1 << 60),
        "a delta beyond its bound": good + wire.header(2, name, 1 << 30, 100),
        "a small frame that is not zstd": good + wire.header(1, name, 100_000, 50) + bytes(50) + wire.end(2),
        "a long frame that is not zstd": good + wire.header(1, name, 100_000, 90_000) + other[:90_000] + wire.end(2),
        "a delta whose base is not here": good
        + wire.header(2, name, 100_000, len(delta.encode(b"?" * 999, other)))
        + delta.encode(b"?" * 999, other),
        "a delta that is none": good + wire.header(2, name, 100_000, 60) + bytes(60),
        "a delta of another size": good + wire.header(2, name, 99_999, len(patch)) + patch,
        "an end with a payload": good + b"\xff" + bytes(32) + (1).to_bytes(8, "little") * 2,
    }


@pytest.mark.parametrize("case", bad_streams())
@pytest.mark.parametrize("chunk", [13, 1 << 30])
def test_a_bad_stream_is_refused_and_leaves_nothing_wrong(store: AnyStore, case: str, chunk: int) -> None:
    stream = bad_streams()[case]
    with pytest.raises(ExchangeError), Receiver(store) as receiver:
        for start in range(0, len(stream), chunk):
            receiver.feed(stream[start : start + chunk])
        receiver.finish()
    complete = [] if case.startswith(("another", "cut in the pre", "cut in a payload")) else [digest_of(noise(300))]
    assert list(store.digests()) == complete
    assert store.check().damaged == ()


def test_a_receiver_that_failed_refuses_the_rest(store: AnyStore) -> None:
    receiver = Receiver(store)
    with pytest.raises(ExchangeError):
        receiver.feed(b"nonsense")
    with pytest.raises(ExchangeError):
        receiver.feed(wire.end(0))
    with pytest.raises(ExchangeError):
        receiver.finish()


def test_a_delta_that_no_chain_has_is_made_for_who_holds_a_relative_and_kept(tmp_path: Path, store: AnyStore) -> None:
    """The receiver has an earlier version by another name, so that nothing that is stored leads from it."""
    earlier, later = lines(1), lines(2)
    with open_store("lmdb", tmp_path / "source", Clock()) as source:
        target = source.put(later).digest
        base = source.put(earlier).digest
        assert source.stat(target).base is None
        assert source.patch(target, [base]) is None
        assert source.relatives(target, 4) == [base]
        store.put(earlier)
        whole_bytes = cost(source, [target], [base])
        assert freshen(source, [target], [base]) == 1
        assert freshen(source, [target], [base]) == 0
        assert [kept.base for kept in source.stat(target).patches] == [base]
        received = transfer(source, store, [target])
        assert received.wire_bytes < whole_bytes / 20
        assert store.read(target) == later
        assert source.check().damaged == ()
        assert source.collect([target]).blobs == 1
        assert source.stat(target).patches == ()


def test_nothing_is_made_where_it_would_save_nothing(tmp_path: Path) -> None:
    with open_store("lmdb", tmp_path / "source", Clock()) as source:
        old, new = source.put(lines(1), name="web").digest, source.put(lines(2), name="web").digest
        assert freshen(source, [new], [old]) == 0, "the delta is stored already"
        assert freshen(source, [new], []) == 0, "the receiver has nothing"
        assert freshen(source, [old, new], []) == 0, "the base is sent too"
        assert source.stat(new).patches == ()


def test_a_patch_that_was_made_is_given_out_and_makes_the_blob(store: AnyStore) -> None:
    older, newer = versions(2, 300_000)
    first, _, third = (store.put(data, name="web").digest for data in [older, noise(300_000, 9), newer])
    made_bytes = store.make_patch(third, first)
    assert made_bytes is not None
    found = store.patch(third, [first])
    assert found is not None
    assert (found[0], len(found[1])) == (first, made_bytes)
    assert delta.decode(older, found[1], max_size=1 << 20) == newer
    assert store.make_patch(third, store.put(noise(400_000, 5)).digest) is None
    for pair in ((third, digest_of(b"absent")), (digest_of(b"absent"), third)):
        with pytest.raises(BlobMissing):
            store.make_patch(*pair)


def lines(version: int) -> bytes:
    """A text of half a megabyte that does not compress well; versions differ in a few lines."""
    chance = random.Random(7)
    text = [f"{number} {chance.randbytes(24).hex()}" for number in range(9_000)]
    for number in range(20 * version):
        text[number * 37] = f"changed in {version}: {number}"
    return "\n".join(text).encode()
