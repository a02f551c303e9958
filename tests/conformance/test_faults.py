"""A store that fails now and then still never holds anything wrong, and the same call works the next time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.digest import digest_of
from cas.errors import CasError, StoreBusy, StoreFull
from cas.exchange import Receiver, bases_of, frames
from cas.memory import MemoryStore
from tests.conformance.stores import Clock, faulty, open_store
from tests.conformance.test_blobs import noise, versions


def test_a_write_that_failed_changed_nothing_and_works_later(tmp_path: Path) -> None:
    with open_store("lmdb", tmp_path, Clock()) as real:
        store = faulty(real, "fb.")
        with pytest.raises(StoreFull):
            store.put(b"data")
        with pytest.raises(StoreBusy):
            store.put(b"data")
        assert real.usage().blobs == 0
        assert store.put(b"data").new


@settings(max_examples=40)
@given(script=st.text("..fb", max_size=12))
def test_a_transfer_into_a_failing_store_ends_after_enough_tries(script: str) -> None:
    source = MemoryStore()
    blobs = [*versions(4, 20_000), *(noise(300, seed) for seed in range(30)), bytes(70_000) + noise(70_000)]
    digests = [source.put(data).digest for data in blobs]
    real = MemoryStore()
    target = faulty(real, script)
    for _ in range(len(script) + 1):
        wanted = real.missing(digests)
        try:
            with Receiver(target) as receiver:
                for chunk in frames(source, wanted, [b for b in bases_of(source, wanted) if real.contains(b)]):
                    receiver.feed(chunk)
                receiver.finish()
        except CasError:
            pass
        assert all(real.read(digest) == blobs[digests.index(digest)] for digest in real.digests())
    assert real.missing(digests) == []
    assert digest_of(real.read(digests[-1])) == digests[-1]
