"""A large blob whose stream broke off: what had come of it is not sent again, and is never believed unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cas import wire
from cas.begun import MAX_BEGUN
from cas.bodies import RECORD_BYTES
from cas.digest import Digest, digest_of, to_raw
from cas.errors import ExchangeError
from cas.exchange import Receiver, frames
from cas.incoming import PENDING_TTL_S
from cas.interface import Begun
from cas.store import Store
from tests.cas.damage import flip, overwrite, values
from tests.conformance.stores import Clock
from tests.conformance.test_blobs import noise

PLAIN = noise(5 * RECORD_BYTES)
ZSTD = b"".join(noise(100_000, seed) + bytes(100_000) for seed in range(12))


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "source") as opened:
        yield opened


def break_off(store: Store, stream: bytes, at: int) -> None:
    with Receiver(store) as receiver:
        receiver.feed(stream[:at])
        with pytest.raises(ExchangeError, match="cut off"):
            receiver.finish()


def send(source: Store, store: Store, digests: list[Digest]) -> int:
    """How many bytes it took."""
    sent = 0
    with Receiver(store) as receiver:
        for chunk in frames(source, digests, (), store.begun(digests)):
            receiver.feed(chunk)
            sent += len(chunk)
        receiver.finish()
    return sent


@pytest.mark.parametrize("data", [PLAIN, ZSTD])
def test_only_the_rest_is_sent_however_often_the_stream_breaks(source: Store, store: Store, data: bytes) -> None:
    digest = source.put(data).digest
    stored = source.stat(digest).stored_bytes
    assert source.stat(digest).encoding == ("plain" if data is PLAIN else "zstd")
    had = 0
    for records in (1, 2, 4):
        stream = b"".join(frames(source, [digest], (), store.begun([digest])))
        break_off(store, stream, len(stream) - (stored - records * RECORD_BYTES) - wire.HEADER_BYTES + 1000)
        had = records * RECORD_BYTES
        assert store.begun([digest, digest_of(b"other")]) == (Begun(digest, source.stat(digest).encoding, had),)
    assert store.usage().blobs == 0
    overhead = wire.PREAMBLE_BYTES + 2 * wire.HEADER_BYTES + wire.REST_BYTES
    assert send(source, store, [digest]) == stored - had + overhead
    assert store.read(digest) == data
    assert (store.begun([digest]), values(store, "begun"), values(store, "pending")) == ((), [], [])
    assert store.check().damaged == ()


def test_a_blob_of_which_everything_had_come_needs_no_byte_again(source: Store, store: Store) -> None:
    digest = source.put(PLAIN).digest
    stream = b"".join(frames(source, [digest]))
    incoming = store.receive(digest, encoding="plain", size=len(PLAIN))
    incoming.write(PLAIN)
    incoming.suspend()
    assert send(source, store, [digest]) == len(stream) - len(PLAIN) + wire.REST_BYTES
    assert store.read(digest) == PLAIN


def test_a_sender_that_has_it_in_another_form_sends_it_whole(source: Store, store: Store) -> None:
    digest = source.put(ZSTD).digest
    incoming = store.receive(digest, encoding="plain", size=len(ZSTD))
    incoming.write(ZSTD[: 3 * RECORD_BYTES])
    incoming.suspend()
    assert send(source, store, [digest]) > source.stat(digest).stored_bytes
    assert store.read(digest) == ZSTD


def test_what_went_bad_meanwhile_is_found_out_before_the_rest_is_taken_and_then_all_is_sent(
    source: Store, store: Store
) -> None:
    digest = source.put(PLAIN).digest
    break_off(store, b"".join(frames(source, [digest])), 3 * RECORD_BYTES)
    key, value = values(store, "records")[0]
    overwrite(store, "records", key, flip(value, 9))
    stream = b"".join(frames(source, [digest], (), store.begun([digest])))
    with Receiver(store) as receiver, pytest.raises(ExchangeError, match="not what the sender has"):
        receiver.feed(stream[: wire.PREAMBLE_BYTES + wire.HEADER_BYTES + wire.REST_BYTES])
    assert (store.begun([digest]), values(store, "records"), values(store, "pending")) == ((), [], [])
    send(source, store, [digest])
    assert store.read(digest) == PLAIN


def test_two_streams_never_go_on_with_one_body(source: Store, store: Store) -> None:
    digest = source.put(PLAIN).digest
    break_off(store, b"".join(frames(source, [digest])), 3 * RECORD_BYTES)
    stream = b"".join(frames(source, [digest], (), store.begun([digest])))
    first, second = Receiver(store), Receiver(store)
    first.feed(stream[:RECORD_BYTES])
    with pytest.raises(ExchangeError, match="is gone"):
        second.feed(stream)
    first.feed(stream[RECORD_BYTES:])
    first.finish()
    assert store.read(digest) == PLAIN


@pytest.mark.parametrize("records", [(1, 3), (3, 1)])
def test_of_streams_that_break_off_again_and_again_only_the_longest_beginning_is_kept(
    source: Store, store: Store, records: tuple[int, int]
) -> None:
    digest = source.put(PLAIN).digest
    stream = b"".join(frames(source, [digest]))
    for one in (*records, *records):
        break_off(store, stream, one * RECORD_BYTES + 1000)
    assert [one.bytes for one in store.begun([digest])] == [3 * RECORD_BYTES]
    assert (len(values(store, "pending")), len(values(store, "records"))) == (1, 3)


def test_bytes_that_are_something_else_are_not_kept(store: Store) -> None:
    header = wire.header(wire.PLAIN, to_raw(digest_of(PLAIN)), len(PLAIN), len(PLAIN))
    with Receiver(store) as receiver, pytest.raises(ExchangeError, match="something else"):
        receiver.feed(wire.preamble() + header + noise(len(PLAIN), 7))
    assert (values(store, "begun"), values(store, "records"), values(store, "pending")) == ([], [], [])


def test_what_nobody_goes_on_with_is_thrown_away(source: Store, store: Store, clock: Clock) -> None:
    digest = source.put(PLAIN).digest
    break_off(store, b"".join(frames(source, [digest])), 3 * RECORD_BYTES)
    store.collect([])
    assert store.begun([digest])
    clock.now += PENDING_TTL_S + 1
    store.collect([])
    assert (values(store, "begun"), values(store, "records"), values(store, "pending")) == ([], [], [])


def test_only_so_many_are_kept(store: Store) -> None:
    for seed in range(MAX_BEGUN + 2):
        data = noise(2 * RECORD_BYTES, seed)
        incoming = store.receive(digest_of(data), encoding="plain", size=len(data))
        incoming.write(data[:RECORD_BYTES])
        incoming.suspend()
    assert len(values(store, "begun")) == len(values(store, "pending")) == len(values(store, "records")) == MAX_BEGUN


def test_a_rest_that_no_sender_would_make_is_refused(store: Store) -> None:
    raw, size = to_raw(digest_of(PLAIN)), len(PLAIN)

    def stream(payload: int, kind: int, offset: int) -> bytes:
        return wire.preamble() + wire.header(wire.REST, raw, size, payload) + wire.rest(kind, offset, bytes(32))

    for payload, kind, offset in (
        (wire.REST_BYTES - 1, wire.PLAIN, size),
        (wire.REST_BYTES + 2 * size, wire.PLAIN, 0),
        (wire.REST_BYTES + 10, wire.PLAIN, size),
        (wire.REST_BYTES + 10, wire.ZSTD, 2 * size),
        (wire.REST_BYTES + 10, wire.DELTA, size - 10),
        (wire.REST_BYTES + 10, wire.PLAIN, size - 10),
    ):
        with Receiver(store) as receiver, pytest.raises(ExchangeError):
            receiver.feed(stream(payload, kind, offset))
    assert store.usage().blobs == 0
