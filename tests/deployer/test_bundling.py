"""Releases in bundles: what is in them, and when a history may follow."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cas.bundle import BundleBaseMissing
from cas.errors import BlobMissing
from cas.store import Store
from deployer.applying.observe import HostState, Observed
from deployer.errors import ReleaseMissing
from deployer.history import bundling
from deployer.history import release as releases
from deployer.history.bundling import HistoryElsewhere, HistoryIncomplete, OtherRelease
from deployer.history.release import Link, Release
from deployer.history.roots import roots
from deployer.language.schema import Process
from deployer.planning import plan as plans
from deployer.planning.planners import make_plan
from deployer.planning.planning import keep_definition
from deployer.resolving import canonical
from tests.deployer.worlds import BASE

COMMON = random.Random(1).randbytes(300_000)


def deploy(store: Store, binary: bytes, config: bytes = b"config") -> Link:
    """A release of a process with this binary and configuration."""
    process = Process(
        binary=store.put(binary, name="build/web.wasm").digest,
        hosts=("h1",),
        config={"/etc/web": store.put(config, name="conf/web").digest},
    )
    following = keep_definition(store, msgspec.structs.replace(BASE, process={"web": process}, volume={}, secret={}))
    newest = releases.head(store, "prod")
    parent = newest.digest if newest else None
    plan = make_plan("minimal", None, following, Observed({"h1": HostState(), "h2": HostState()}), from_release=parent)
    release = Release(
        definition=following.digest,
        plan=store.put(plans.encode(plan), name="plan/prod").digest,
        parent=parent,
        at_unix_ns=1,
        by="operator:ada",
    )
    return releases.publish(store, "prod", release)


def version(number: int) -> bytes:
    changed = bytearray(COMMON)
    changed[1000 * number : 1000 * number + 100] = random.Random(number + 100).randbytes(100)
    return bytes(changed)


def bundled(store: Store, to: Link, since: Link | None = None) -> io.BytesIO:
    from cas import bundle

    spool = io.BytesIO()
    head = bundling.pack(store, to, since, spool)
    return io.BytesIO(b"".join(bundle.write(head, spool)))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "here") as store:
        yield store


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "there") as store:
        yield store


def is_whole(store: Store, link: Link) -> bool:
    definition = releases.read_definition(store, link.release.definition)
    return all(store.read(digest) for digest in canonical.blobs_of(definition))


def test_a_release_arrives_whole_and_the_next_one_costs_its_delta(here: Store, there: Store) -> None:
    first, second = deploy(here, version(1)), deploy(here, version(2), b"other")
    whole, small = bundled(here, first), bundled(here, second, first)
    assert len(whole.getvalue()) > 300_000
    assert len(small.getvalue()) < 4_000
    assert bundling.unpack(there, whole)[0] == first
    assert bundling.unpack(there, small)[0] == second
    assert is_whole(there, second)
    assert there.refs() == {}
    small.seek(0)
    assert bundling.unpack(there, small)[2].blobs == 0


def test_over_several_versions_one_delta_is_made(here: Store, there: Store) -> None:
    first = deploy(here, version(0))
    for number in range(1, 4):
        last = deploy(here, random.Random(number).randbytes(60_000) + version(number))
    last = deploy(here, version(4))
    bundling.unpack(there, bundled(here, first))
    file = bundled(here, last, first)
    assert len(file.getvalue()) < 16_000
    bundling.unpack(there, file)
    assert is_whole(there, last)
    assert bundling.advance(there, "prod", last)
    assert len(list(releases.chain(there, last.digest))) == 5
    assert roots(there)


def test_what_applying_leaves_behind_is_enough_for_the_next_bundle(here: Store, there: Store) -> None:
    first, second = deploy(here, version(1)), deploy(here, version(2))
    bundling.unpack(there, bundled(here, first))
    there.collect(
        [first.release.definition, *canonical.blobs_of(releases.read_definition(here, first.release.definition))],
        ignoring="unbundle",
    )
    assert there.missing([first.digest]) == [first.digest]
    link, _, _ = bundling.unpack(there, bundled(here, second, first))
    assert is_whole(there, link)
    with pytest.raises(HistoryIncomplete):
        bundling.advance(there, "prod", link)


def test_a_bundle_for_elsewhere_is_refused_with_what_is_lacking(here: Store, there: Store) -> None:
    first, second = deploy(here, version(1)), deploy(here, version(2))
    with pytest.raises(BundleBaseMissing, match=first.digest):
        bundling.unpack(there, bundled(here, second, first))
    with pytest.raises(OtherRelease):
        bundling.unpack(there, bundled(here, first), expected=second.digest[3:15])
    assert there.usage().blobs == 0
    bundling.unpack(there, bundled(here, second), expected=second.digest[3:15])
    assert is_whole(there, second)


def test_a_history_follows_only_forward(here: Store, there: Store) -> None:
    first, second = deploy(here, version(1)), deploy(here, version(2))
    own = deploy(there, version(3))
    bundling.unpack(there, bundled(here, second))
    with pytest.raises(HistoryElsewhere):
        bundling.advance(there, "prod", second)
    assert there.read_ref("prod") == own.digest
    assert bundling.advance(there, "mirror", first)
    assert bundling.advance(there, "mirror", second)
    assert not bundling.advance(there, "mirror", second)
    with pytest.raises(HistoryElsewhere):
        bundling.advance(there, "mirror", first)


def test_a_release_is_found_in_the_history_or_anywhere_in_the_store(here: Store, there: Store) -> None:
    first = deploy(here, version(1))
    own = deploy(there, version(3))
    bundling.unpack(there, bundled(here, first))
    assert bundling.find(there, "prod", first.digest[3:15]) == first
    assert bundling.find(there, "prod", own.digest[:15]) == own
    with pytest.raises(ReleaseMissing):
        bundling.find(there, "prod", "newest")
    with pytest.raises(BlobMissing):
        bundling.find(there, "prod", "00000000")
