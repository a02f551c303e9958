"""Large blobs go in and out in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cas import incoming as incoming_body
from cas.bodies import RECORD_BYTES, record_key
from cas.digest import digest_of
from cas.errors import BlobMissing, DigestMismatch, StoreBusy, StoreFull
from cas.incoming import FLUSH_RECORDS, PENDING_TTL_S
from cas.store import Store
from tests.cas.damage import flip, overwrite, values
from tests.conformance.stores import Clock
from tests.conformance.test_blobs import noise

LARGE = """
import json, sys
from pathlib import Path
from blake3 import blake3
from cas.digest import digest_of_chunks
from cas.exchange import Receiver, frames
from cas.store import Store

kind, megabytes, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
piece = bytes(1 << 20)

def chunks():
    for number in range(megabytes):
        if kind == "zeros":
            yield number.to_bytes(8, "little") + piece[8:]
        else:
            yield blake3(b"%d" % number).digest(length=1 << 20)

def anonymous():
    # What the process itself holds: pages of the mapped file are the kernel's to take back.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) >> 10

worst = 0
def watched(pieces):
    global worst
    for count, each in enumerate(pieces):
        if count % 16 == 0:
            worst = max(worst, anonymous())
        yield each

name = digest_of_chunks(chunks())
with Store.open(directory / "one") as one, Store.open(directory / "two") as two:
    before = anonymous()
    stored = one.put_stream(watched(chunks()), expect=name)
    assert stored.new and stored.size == megabytes << 20
    assert digest_of_chunks(watched(one.stream(name))) == name
    with Receiver(two) as receiver:
        for chunk in watched(frames(one, [name])):
            receiver.feed(chunk)
        receiver.finish()
    assert digest_of_chunks(watched(two.stream(name))) == name
    assert two.check().damaged == ()
    worst = max(worst, anonymous())
    print(json.dumps({"megabytes": worst - before, "stored": stored.stored_bytes}))
"""


@pytest.mark.parametrize(("kind", "megabytes"), [("zeros", 500), ("noise", 100)])
def test_a_large_blob_is_put_sent_read_and_checked_in_bounded_memory(tmp_path: Path, kind: str, megabytes: int) -> None:
    command = [sys.executable, "-c", LARGE, kind, str(megabytes), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["megabytes"] < 64
    assert result["stored"] < (2 << 20 if kind == "zeros" else (megabytes + 1) << 20)


def flushes(count: int) -> list[bytes]:
    return [noise(FLUSH_RECORDS * RECORD_BYTES, seed) for seed in range(count)]


def settled(store: Store) -> None:
    """Once this returns everything is written that was handed to the writer before."""
    store.access.write(lambda _: None)


def test_a_stream_that_fails_leaves_nothing(store: Store) -> None:
    def chunks() -> Iterator[bytes]:
        yield from flushes(3)
        raise ConnectionError("the peer is gone")

    with pytest.raises(ConnectionError):
        store.put_stream(chunks())
    with pytest.raises(DigestMismatch):
        store.put_stream(flushes(3), expect="b3:" + "0" * 64)
    assert values(store, "records") == []
    assert values(store, "pending") == []
    assert store.usage().stored_bytes == 0


def test_a_stream_whose_process_died_is_thrown_away_later(store: Store, clock: Clock) -> None:
    incoming = store.receive("b3:" + "0" * 64, encoding="plain", size=1 << 40)
    for data in flushes(2):
        incoming.write(data)
    settled(store)
    assert len(values(store, "records")) == 2 * FLUSH_RECORDS
    store.collect([])
    assert len(values(store, "records")) == 2 * FLUSH_RECORDS
    clock.now += PENDING_TTL_S + 1
    store.collect([])
    assert values(store, "records") == []


def test_a_stream_that_paused_for_too_long_must_start_again(store: Store, clock: Clock) -> None:
    data = flushes(1)[0]
    incoming = store.receive(digest_of(data), encoding="plain", size=len(data))
    incoming.write(data)
    settled(store)
    clock.now += PENDING_TTL_S + 1
    store.collect([])
    with pytest.raises(StoreBusy, match="thrown away"):
        incoming.commit()
    assert store.usage().blobs == 0
    assert values(store, "records") == []


def test_a_stream_that_paused_for_too_long_never_becomes_a_blob_without_its_first_part(
    store: Store, clock: Clock
) -> None:
    first, rest = flushes(2)
    incoming = store.receive(digest_of(first + rest), encoding="plain", size=len(first + rest))
    incoming.write(first)
    settled(store)
    clock.now += PENDING_TTL_S + 1
    store.collect([])
    incoming.write(rest)
    with pytest.raises(StoreBusy, match="thrown away"):
        incoming.commit()
    assert store.usage().blobs == 0
    assert values(store, "records") == []
    assert values(store, "pending") == []


@pytest.mark.parametrize("failing", range(4))
def test_a_stream_whose_flush_fails_is_never_indexed(
    store: Store, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever it is, and though the flushes behind it could be written."""

    def key(body: int, index: int) -> bytes:
        if index == failing * FLUSH_RECORDS:
            raise StoreFull("no room for this flush")
        return record_key(body, index)

    monkeypatch.setattr(incoming_body, "record_key", key)
    with pytest.raises(StoreFull, match="this flush"):
        store.put_stream(flushes(5))
    assert store.usage().blobs == 0
    assert values(store, "records") == []
    assert values(store, "pending") == []


def test_a_reader_of_a_blob_that_is_collected_meanwhile_gets_an_error_not_a_part(store: Store) -> None:
    digest = store.put_stream(flushes(3)).digest
    pieces = store.stream(digest)
    next(pieces)
    store.collect([])
    with pytest.raises(BlobMissing):
        list(pieces)


def test_a_reader_goes_on_when_a_blob_gets_a_new_place_meanwhile(store: Store) -> None:
    parts = flushes(3)
    digest = store.put_stream(parts).digest
    pieces = store.stream(digest)
    read = next(pieces)
    key, value = values(store, "records")[-1]
    overwrite(store, "records", key, flip(value, 1))
    assert store.put_stream(parts).new
    assert read + b"".join(pieces) == b"".join(parts)
