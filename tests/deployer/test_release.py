"""The release chain on a real store: one winner, a history that cannot be rewritten, and where a rollback leads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cas.digest import Digest, digest_of
from cas.store import Store
from deployer.errors import ApplyRaced, NothingReleased, ReleaseMissing
from deployer.history import release as releases
from deployer.history.release import Kind, Release, chain, find, head, previous, publish

REF = "prod"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def release(definition: str, parent: Digest | None, kind: Kind = "apply", restores: Digest | None = None) -> Release:
    return Release(
        definition=digest_of(definition.encode()),
        plan=digest_of(b"plan"),
        parent=parent,
        at_unix_ns=1,
        by="operator:ada",
        kind=kind,
        restores=restores,
    )


def history(store: Store, *definitions: str) -> list[Digest]:
    """Releases of these definitions, one after the other."""
    names: list[Digest] = []
    for definition in definitions:
        names.append(publish(store, REF, release(definition, names[-1] if names else None)).digest)
    return names


def test_the_chain_is_read_newest_first_and_each_release_reads_back(store: Store) -> None:
    names = history(store, "one", "two", "three")
    links = list(chain(store, store.read_ref(REF)))
    assert [link.digest for link in links] == names[::-1]
    assert [link.release.parent for link in links] == [names[1], names[0], None]
    newest = head(store, REF)
    assert newest is not None
    assert newest.digest == names[2]


def test_before_the_first_release_there_is_nothing(store: Store) -> None:
    assert head(store, REF) is None
    assert list(chain(store, None)) == []
    with pytest.raises(NothingReleased):
        previous(store, REF)
    with pytest.raises(NothingReleased):
        find(store, REF, "12345678")


def test_a_release_on_another_parent_than_the_newest_is_told_that_it_lost(store: Store) -> None:
    names = history(store, "one", "two")
    with pytest.raises(ApplyRaced, match="another apply came first"):
        publish(store, REF, release("other", names[0]))
    with pytest.raises(ApplyRaced):
        publish(store, REF, release("other", None))
    assert store.read_ref(REF) == names[1]


def test_of_many_at_once_exactly_one_wins(store: Store) -> None:
    (first,) = history(store, "one")
    won: list[Digest] = []
    lost: list[ApplyRaced] = []

    def contend(number: int) -> None:
        try:
            won.append(publish(store, REF, release(f"of {number}", first)).digest)
        except ApplyRaced as error:
            lost.append(error)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(won), len(lost)) == (1, 7)
    assert store.read_ref(REF) == won[0]


def test_a_release_is_found_by_the_beginning_of_its_name(store: Store) -> None:
    names = history(store, "one", "two")
    assert find(store, REF, names[0]).digest == names[0]
    assert find(store, REF, names[0][3:12]).digest == names[0]
    assert find(store, REF, names[1][:12]).digest == names[1]
    for text in ("b3:", "1234", "zzzzzzzzzz", "ffffffff", digest_of(b"no release")):
        with pytest.raises(ReleaseMissing):
            find(store, REF, text)


def test_the_previous_release_is_the_one_before_with_another_definition(store: Store) -> None:
    one, *_ = history(store, "one", "two", "two")
    assert previous(store, REF).digest == one


def test_a_second_rollback_goes_back_another_step_and_not_forward(store: Store) -> None:
    one, two, three = history(store, "one", "two", "three")
    assert previous(store, REF).digest == two
    fourth = publish(store, REF, release("two", three, "rollback", two)).digest
    assert previous(store, REF).digest == one
    publish(store, REF, release("one", fourth, "rollback", one))
    with pytest.raises(ReleaseMissing, match="no release before") as caught:
        previous(store, REF)
    assert "can be named" in caught.value.hint


def test_after_a_revert_a_rollback_leads_before_what_runs_and_not_to_what_failed(store: Store) -> None:
    one, two, failed = history(store, "one", "two", "failed")
    publish(store, REF, release("two", failed, "revert", two))
    assert previous(store, REF).digest == one


def test_after_a_first_apply_that_was_reverted_there_is_nothing_to_go_back_to(store: Store) -> None:
    (failed,) = history(store, "failed")
    publish(store, REF, release("empty", failed, "revert", None))
    with pytest.raises(ReleaseMissing):
        previous(store, REF)


def test_releases_of_one_ref_do_not_move_another(store: Store) -> None:
    history(store, "one")
    publish(store, "staging", release("one", None))
    assert {link.digest for link in chain(store, store.read_ref("staging"))} == {store.read_ref("staging")}


def test_a_changed_release_has_another_name(store: Store) -> None:
    (one,) = history(store, "one")
    forged = msgspec.structs.replace(releases.read(store, one), by="operator:eve")
    assert digest_of(releases.encode(forged)) != one
