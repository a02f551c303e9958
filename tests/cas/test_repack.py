"""Repack: the newest version becomes whole, the others deltas, and nothing that can be read or sent gets worse."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cas import entries, patches, repack
from cas.bodies import record_key
from cas.digest import Digest, digest_of, to_raw
from cas.errors import StoreBusy, StoreFull
from cas.exchange import bases_of, cost, frames, transfer
from cas.inventory import take_inventory
from cas.memory import MemoryStore
from cas.names import keys
from cas.reading import MAX_DEPTH
from cas.store import Store
from tests.cas.damage import flip, overwrite, values
from tests.conformance.test_blobs import noise, versions

SIZE = 60_000


def stored(store: Store, count: int, name: str = "n", seed: int = 0) -> list[Digest]:
    return [store.put(data, name=name).digest for data in series(count, seed)]


def series(count: int, seed: int = 0) -> list[bytes]:
    """Versions of something that does not compress, each with a few bytes inserted."""
    made = [noise(SIZE, seed)]
    for number in range(1, count):
        at = random.Random(number + 1000 * seed).randrange(SIZE)
        made.append(made[-1][:at] + noise(12, number) + made[-1][at:])
    return made


def true_depth(store: Store, digest: Digest) -> int:
    depth = 0
    base = store.stat(digest).base
    while base is not None:
        depth, base = depth + 1, store.stat(base).base
    return depth


def sound(store: Store, digests: list[Digest], made: list[bytes]) -> None:
    """Every blob is what it was, the index says how deep it is, and the totals are right."""
    assert [store.read(digest) for digest in digests] == made
    assert store.check().damaged == ()
    for digest in digests:
        assert store.stat(digest).depth == true_depth(store, digest) <= MAX_DEPTH
    kept = [entry.stored for _, entry in every_patch(store) if entry is not None]
    assert store.usage().stored_bytes == sum(store.stat(digest).stored_bytes for digest in store.digests()) + sum(kept)


def every_patch(store: Store) -> list[Any]:
    with store.access.env.reading() as txn:
        return patches.every(store.access.env, txn)


@pytest.mark.parametrize("count", [2, 3, MAX_DEPTH + 1, 12])
def test_the_newest_version_becomes_whole_and_the_oldest_a_delta(store: Store, count: int) -> None:
    digests = stored(store, count)
    done = store.repack()
    assert done.complete and done.failed == () and done.blobs >= 2
    assert store.stat(digests[-1]).encoding != "delta"
    assert [store.stat(digest).encoding for digest in digests[:-1]] == ["delta"] * (count - 1)
    sound(store, digests, series(count))


def test_a_second_repack_finds_nothing_to_do(store: Store) -> None:
    stored(store, 5)
    assert store.repack().blobs == 2
    assert store.repack().blobs == 0


def test_a_store_that_is_repacked_after_every_version_stays_flat_and_small(store: Store) -> None:
    made = series(20)
    digests = []
    for data in made:
        digests.append(store.put(data, name="n").digest)
        store.repack()
        assert store.stat(digests[-1]).depth == 0
        sound(store, digests, made[: len(digests)])
    assert store.usage().stored_bytes < SIZE + 20_000
    assert len(every_patch(store)) <= repack.WIRE_VERSIONS


def test_the_delta_to_the_newest_version_still_goes_over_the_wire(store: Store) -> None:
    digests = stored(store, 4)
    before = store.patch(digests[3], [digests[2]])
    store.repack()
    assert before is not None and store.patch(digests[3], [digests[2]]) == before
    assert [kept.base for kept in store.stat(digests[3]).patches] == [digests[2]]
    for held in digests[:3]:
        receiver = MemoryStore()
        receiver.put(store.read(held))
        assert held in bases_of(store, [digests[3]])
        received = transfer(store, receiver, [digests[3]])
        assert received.wire_bytes < 2000, "a host that has any version is sent deltas"
        assert receiver.read(digests[3]) == series(4)[3]
        assert cost(store, [digests[3]], [held]) == received.wire_bytes


def test_a_kept_delta_lies_where_the_format_says(store: Store) -> None:
    first, second = stored(store, 2)
    before = store.patch(second, [first])
    store.repack()
    ((key, value),) = values(store, "patches")
    assert key == to_raw(second) + to_raw(first)
    entry = entries.decode(to_raw(second), value)
    assert (entry.encoding, entry.packed, entry.base, entry.depth) == (entries.DELTA, False, to_raw(first), 1)
    assert before is not None
    assert dict(values(store, "records"))[record_key(entry.body, 0)] == before[1]


def test_an_inventory_lists_the_kept_delta_as_it_did_before(store: Store) -> None:
    digests = stored(store, 3)
    before = take_inventory(store, digests[2:]).items[0].others
    store.repack()
    assert before[0] in take_inventory(store, digests[2:]).items[0].others


def test_everything_travels_out_of_a_repacked_store(store: Store) -> None:
    digests = stored(store, 6)
    store.repack()
    for wanted in (digests, digests[::-1], digests[1:4], digests[:1]):
        receiver = MemoryStore()
        wire_bytes = transfer(store, receiver, wanted).wire_bytes
        assert receiver.missing(wanted) == []
        assert wire_bytes < SIZE + 5000, "one whole blob, the others as deltas"


def test_a_version_that_goes_back_is_sent_as_a_delta_of_the_newer_one(store: Store) -> None:
    digests = stored(store, 2)
    store.repack()
    assert sum(map(len, frames(store, digests[:1], digests[1:]))) < 1000


def test_a_version_after_a_repack_is_a_delta_of_the_one_before(store: Store) -> None:
    made = series(5)
    for data in made[:4]:
        store.put(data, name="n")
    store.repack()
    stat = store.stat(store.put(made[4], name="n").digest)
    assert (stat.base, stat.depth) == (digest_of(made[3]), 1)


def test_the_newest_version_of_another_name_stays_whole(store: Store) -> None:
    made = series(3)
    for data in made:
        store.put(data, name="n")
    store.put(made[0], name="old but running")
    store.repack()
    assert store.stat(digest_of(made[0])).encoding != "delta"
    sound(store, [digest_of(data) for data in made], made)


def test_whole_versions_that_resemble_a_newer_one_become_deltas(store: Store) -> None:
    made = series(3)
    store.put_many(made)
    for data in made:
        store.put(data, name="n")
    assert {store.stat(digest_of(data)).encoding for data in made} == {"plain"}
    done = store.repack()
    assert (done.blobs, done.saved_bytes > 1.9 * SIZE) == (2, True)
    sound(store, [digest_of(data) for data in made], made)


def test_versions_that_have_nothing_in_common_stay_whole(store: Store) -> None:
    for seed in range(4):
        store.put(noise(SIZE, seed), name="n")
    assert store.repack().blobs == 0


def test_a_repack_stops_when_it_is_told_to_and_is_taken_up_again(store: Store) -> None:
    names = 4
    for number in range(names):
        stored(store, 3, f"name {number}", number)
    asked = iter([False, True])
    assert store.repack(should_stop=lambda: next(asked)).complete is False
    told: list[tuple[int, int]] = []
    rest = store.repack(progress=lambda done, total: told.append((done, total)))
    assert (rest.complete, rest.blobs) == (True, 2 * (names - 1))
    assert told[0] == (0, names) and told[-1] == (names, names)


def test_one_repack_at_a_time(store: Store) -> None:
    stored(store, 2)

    def again() -> bool:
        with pytest.raises(StoreBusy, match="repacked already"):
            store.repack()
        return False

    assert store.repack(should_stop=again).complete


def before_writing(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something once, after a step was planned and before it is written."""
    carry_out = repack._carry_out
    waiting = [action]

    def act_first(*args: Any) -> None:
        if waiting:
            waiting.pop()()
        carry_out(*args)

    monkeypatch.setattr(repack, "_carry_out", act_first)


@pytest.mark.parametrize("what", ["collect all", "collect the oldest", "new version", "damage healed", "name gone"])
def test_what_happens_between_planning_and_writing_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    made = series(5)
    digests = [store.put(data, name="n").digest for data in made[:4]]

    def heal() -> None:
        root = max(values(store, "records"), key=lambda record: len(record[1]))
        overwrite(store, "records", root[0], flip(root[1], 30))
        store.put(made[0])

    actions: dict[str, Callable[[], object]] = {
        "collect all": lambda: store.collect([]),
        "collect the oldest": lambda: store.collect(digests[1:]),
        "new version": lambda: store.put(made[4], name="n"),
        "damage healed": heal,
        "name gone": lambda: overwrite(store, "names", values(store, "names")[0][0], None),
    }
    before_writing(monkeypatch, actions[what])
    store.repack()
    here = [digest for digest in digests if store.contains(digest)]
    assert here == ([] if what == "collect all" else digests)
    sound(store, here, made[: len(here)])
    store.repack()
    sound(store, here, made[: len(here)])


def test_a_new_base_survives_the_collection_that_runs_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from cas import collect

    made = series(3)
    digests = [store.put(data, name="n").digest for data in made]
    mark = collect._mark

    def mark_then_repack(*args: Any) -> set[bytes]:
        keep = mark(*args)
        store.lease(digests[:1], owner="touched before", ttl_s=60)
        store.repack()
        return keep

    monkeypatch.setattr(collect, "_mark", mark_then_repack)
    store.collect(digests[:1])
    assert store.stat(digests[0]).base == digests[2]
    assert store.read(digests[0]) == made[0]
    assert store.check().damaged == ()


def test_a_damaged_version_is_reported_and_the_other_names_are_repacked(store: Store) -> None:
    bad, good = stored(store, 2, "bad", 1), stored(store, 2, "good", 2)
    raw = to_raw(bad[0])
    entry = next(value for key, value in values(store, "blobs") if key == raw)
    overwrite(store, "blobs", raw, flip(entry, 30))
    done = store.repack()
    assert len(done.failed) <= 1 and done.complete
    assert store.stat(good[1]).encoding != "delta"


def test_a_full_disk_stops_a_repack_and_leaves_everything_readable(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        digests = stored(store, 3)
    with Store.open(tmp_path / "s", quota_bytes=1) as full:
        with pytest.raises(StoreFull):
            full.repack()
        sound(full, digests, series(3))


def test_a_kept_delta_goes_with_either_of_its_blobs(store: Store) -> None:
    digests = stored(store, 3)
    store.repack()
    assert len(every_patch(store)) == 1
    store.collect([digests[2]])
    assert every_patch(store) == []
    assert store.usage().stored_bytes == store.stat(digests[2]).stored_bytes
    assert len({key[:8] for key, _ in values(store, "records")}) == 1


def test_a_damaged_kept_delta_is_not_sent_and_dropped_by_a_check(store: Store) -> None:
    digests = stored(store, 2)
    store.repack()
    _, entry = every_patch(store)[0]
    for record, value in values(store, "records"):
        if record[:8] == entry.body.to_bytes(8, "big"):
            overwrite(store, "records", record, flip(value, 100))
    assert store.patch(digests[1], [digests[0]]) is None
    receiver = MemoryStore()
    receiver.put(store.read(digests[0]))
    assert transfer(store, receiver, [digests[1]]).wire_bytes > SIZE
    assert store.check().damaged == ()
    assert every_patch(store) == []


REPACKER = """
import sys
from pathlib import Path
from cas.store import Store

with Store.open(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    while not Path(sys.argv[2]).exists():
        store.repack()
"""


def test_another_process_repacks_while_this_one_writes_and_collects(tmp_path: Path) -> None:
    made = {name: series(9, name) for name in range(2)}
    with Store.open(tmp_path / "s") as store:
        other = subprocess.Popen(
            [sys.executable, "-c", REPACKER, str(tmp_path / "s"), str(tmp_path / "stop")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        try:
            for number in range(9):
                for name, versions_ in made.items():
                    store.pin(digest_of(versions_[number]), owner="kept")
                    store.put(versions_[number], name=f"name {name}")
                store.put(noise(SIZE, 100 + number))
                store.collect([])
        finally:
            (tmp_path / "stop").touch()
            other.communicate(timeout=250)
        assert other.returncode == 0
        store.repack()
        for versions_ in made.values():
            sound(store, [digest_of(data) for data in versions_], versions_)
            assert store.stat(digest_of(versions_[-1])).depth == 0


def test_every_name_is_found_by_its_key(store: Store) -> None:
    for number in range(5):
        for data in versions(number + 1, 600):
            store.put(data, name=f"name {number}")
    with store.access.env.reading() as txn:
        assert len(keys(store.access.env, txn)) == 5
