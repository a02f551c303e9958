"""What every store promises about refs."""

from __future__ import annotations

import threading

import pytest

from cas.digest import digest_of
from cas.errors import RefMoved
from tests.conformance.stores import AnyStore

A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))


def test_a_ref_moves_only_from_where_it_is(store: AnyStore) -> None:
    assert store.read_ref("prod") is None
    store.move_ref("prod", None, A)
    assert store.read_ref("prod") == A
    store.move_ref("prod", A, B)
    with pytest.raises(RefMoved) as caught:
        store.move_ref("prod", A, C)
    assert (caught.value.expected, caught.value.actual) == (A, B)
    with pytest.raises(RefMoved):
        store.move_ref("prod", None, C)
    assert store.refs() == {"prod": B}


def test_a_ref_is_removed_by_moving_it_to_nothing(store: AnyStore) -> None:
    store.move_ref("prod", None, A)
    with pytest.raises(RefMoved):
        store.move_ref("prod", B, None)
    store.move_ref("prod", A, None)
    assert store.read_ref("prod") is None
    assert store.refs() == {}


def test_one_of_many_that_move_a_ref_at_once_succeeds(store: AnyStore) -> None:
    store.move_ref("counter", None, digest_of(b"0"))
    won: list[int] = []

    def step(number: int) -> None:
        try:
            store.move_ref("counter", digest_of(b"0"), digest_of(b"%d" % number))
            won.append(number)
        except RefMoved:
            pass

    threads = [threading.Thread(target=step, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read_ref("counter") == digest_of(b"%d" % won[0])
