"""What every store promises about refs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from cas.digest import digest_of
from cas.engines.etcd_refs import EtcdRefs
from cas.errors import RefMoved
from cas.interface import RefStore
from cas.watching import watch
from tests.conformance.stores import KINDS, Clock, open_store
from tests.engines.support import refs_at

A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))


@pytest.fixture(params=[*KINDS, "etcd"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, engine_name: str) -> Iterator[RefStore]:
    if request.param == "etcd":
        yield refs_at(request.getfixturevalue("etcd"), engine_name)
        return
    with open_store(request.param, tmp_path, clock) as opened:
        yield opened


def test_a_ref_moves_only_from_where_it_is(store: RefStore) -> None:
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


def test_a_ref_is_removed_by_moving_it_to_nothing(store: RefStore) -> None:
    store.move_ref("prod", None, A)
    with pytest.raises(RefMoved):
        store.move_ref("prod", B, None)
    store.move_ref("prod", A, None)
    assert store.read_ref("prod") is None
    assert store.refs() == {}


def test_one_of_many_that_move_a_ref_at_once_succeeds(store: RefStore) -> None:
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


def test_a_ref_that_was_removed_can_be_set_again(store: RefStore) -> None:
    store.move_ref("prod", None, A)
    store.move_ref("prod", A, None)
    with pytest.raises(RefMoved):
        store.move_ref("prod", A, B)
    store.move_ref("prod", None, B)
    assert store.refs() == {"prod": B}


def test_refs_have_any_names_and_do_not_touch_each_other(store: RefStore) -> None:
    names = ["prod", "prod2", "pro", "a/b", "Größe", "x" * 400]
    for name in names:
        store.move_ref(name, None, digest_of(name.encode()))
    assert store.refs() == {name: digest_of(name.encode()) for name in names}
    for name in ["", "x" * 401]:
        with pytest.raises(ValueError, match="ref's name"):
            store.read_ref(name)


def test_whoever_watches_a_ref_sees_where_it_is_and_then_each_move(store: RefStore) -> None:
    store.move_ref("prod", None, A)
    moves = iter([(A, B), (B, C), (C, None)])
    seen = []

    def move_next(_: float = 0.0) -> None:
        """Whenever the watch pauses, or has given something."""
        if (move := next(moves, None)) is not None:
            store.move_ref("prod", *move)

    watched = store.watch("prod") if isinstance(store, EtcdRefs) else watch(store, "prod", pause=move_next)
    for target in islice(watched, 4):
        seen.append(target)
        if isinstance(store, EtcdRefs):
            move_next()
    assert seen == [A, B, C, None]
