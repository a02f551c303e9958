"""The exchange format, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import delta
from cas import wire
from cas.digest import digest_of, to_raw
from cas.errors import CasError, ExchangeError
from cas.exchange import Receiver, frames
from cas.memory import MemoryStore
from tests.conformance.test_blobs import versions

HELLO = "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f"
GOLDEN = bytes.fromhex(
    "6c637873 0100"  # "lcxs", version 1
    f"00 {HELLO} 0500000000000000 0500000000000000 68656c6c6f"  # plain "hello"
    "ff 0000000000000000000000000000000000000000000000000000000000000000 0100000000000000 0000000000000000"
)


def test_a_stream_is_written_as_documented() -> None:
    store = MemoryStore()
    digest = store.put(b"hello").digest
    assert digest == "b3:" + HELLO
    assert b"".join(frames(store, [digest])) == GOLDEN


def test_a_documented_stream_is_read() -> None:
    store = MemoryStore()
    receiver = Receiver(store)
    for byte in GOLDEN:
        receiver.feed(bytes([byte]))
    assert receiver.finish() == (received := receiver.finish())
    assert (received.blobs, received.raw_bytes, received.wire_bytes) == (1, 5, len(GOLDEN))
    assert store.read("b3:" + HELLO) == b"hello"


def test_a_delta_is_one_frame_around_the_stored_patch() -> None:
    store = MemoryStore()
    base, target = versions(2, 10_000)
    patch = delta.encode(base, target)
    store.put(base)
    store.put_patch(digest_of(target), patch, max_size=len(target))
    stream = b"".join(frames(store, [digest_of(target)], [digest_of(base)]))
    frame = wire.header(wire.DELTA, to_raw(digest_of(target)), len(target), len(patch)) + patch
    assert stream == wire.preamble() + frame + wire.end(1)


@given(st.binary(max_size=400), st.booleans())
def test_noise_is_refused_and_leaves_nothing(noise: bytes, preamble: bool) -> None:
    store = MemoryStore()
    with pytest.raises(ExchangeError), Receiver(store) as receiver:
        receiver.feed(wire.preamble() + noise if preamble else noise)
        receiver.finish()
    assert list(store.digests()) == []


@given(st.data())
def test_a_changed_byte_never_brings_a_wrong_blob(data: st.DataObject) -> None:
    source = MemoryStore()
    base, target = versions(2, 6000)
    source.put(base)
    source.put_patch(digest_of(target), delta.encode(base, target), max_size=len(target))
    source.put(b"small")
    stream = bytearray(b"".join(frames(source, list(source.digests()))))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    store = MemoryStore()
    try:
        with Receiver(store) as receiver:
            receiver.feed(bytes(stream))
            receiver.finish()
    except CasError as error:
        assert isinstance(error, ExchangeError)
    assert store.check().damaged == ()


@given(st.integers(0, 3), st.binary(min_size=32, max_size=32), st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_a_header_is_read_back_or_refused(kind: int, raw: bytes, size: int, payload: int) -> None:
    size, payload = min(size, (1 << 64) - 1), min(payload, (1 << 64) - 1)
    packed = wire.header(kind, raw, size, payload)
    assert len(packed) == wire.HEADER_BYTES
    try:
        assert wire.parse_header(packed) == wire.Header(kind, raw, size, payload)
    except ExchangeError:
        return
    assert size <= wire.MAX_BLOB_BYTES
    assert (
        payload <= size + wire.ZSTD_MARGIN_BYTES + (wire.REST_BYTES if kind == wire.REST else 0) or kind == wire.DELTA
    )


def test_the_rest_of_a_blob_begins_as_documented() -> None:
    header = wire.header(wire.REST, bytes.fromhex(HELLO), 262_130, wire.REST_BYTES + 2)
    head = wire.rest(wire.PLAIN, 262_128, bytes(range(32)))
    assert head.hex() == "00f0ff030000000000" + bytes(range(32)).hex()
    assert wire.parse_rest(head, wire.parse_header(header)) == (wire.PLAIN, 262_128, bytes(range(32)))
