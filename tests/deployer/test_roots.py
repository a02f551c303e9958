"""What a collection keeps: every rollback stays possible, and what nothing refers to goes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cas.digest import digest_of
from cas.errors import BlobMissing
from cas.store import Store
from deployer.applying.observe import HostState, Observed
from deployer.history import release as releases
from deployer.history.release import Release
from deployer.history.roots import roots
from deployer.language.schema import Process
from deployer.planning import plan as plans
from deployer.planning.planners import make_plan
from deployer.planning.planning import keep_definition
from tests.deployer.worlds import BASE


def released(store: Store, binary: bytes, config: bytes) -> str:
    """A release of a process with this binary and configuration."""
    process = Process(binary=store.put(binary).digest, hosts=("h1",), config={"/etc/web": store.put(config).digest})
    following = keep_definition(store, msgspec.structs.replace(BASE, process={"web": process}, volume={}))
    newest = releases.head(store, "prod")
    parent = newest.digest if newest else None
    plan = make_plan("minimal", None, following, Observed({"h1": HostState(), "h2": HostState()}), from_release=parent)
    release = Release(
        definition=following.digest,
        plan=store.put(plans.encode(plan)).digest,
        parent=parent,
        at_unix_ns=1,
        by="operator:ada",
    )
    return releases.publish(store, "prod", release).digest


def test_everything_that_any_release_needs_is_kept_and_the_rest_goes(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        names = [released(store, b"binary %d" % n * 100, b"config %d" % n * 100) for n in range(3)]
        pushed = [store.put(b"pushed %d" % n * 100, name="build/web.wasm").digest for n in range(3)]
        orphan = store.put(b"nobody wants this" * 100).digest
        keep = roots(store)
        assert orphan not in keep
        assert pushed[-1] in keep
        assert not keep & set(pushed[:-1])
        store.collect(keep)
        assert store.missing([orphan]) == [orphan]
        for link in releases.chain(store, store.read_ref("prod")):
            definition = releases.read_definition(store, link.release.definition)
            for process in definition.process.values():
                store.read(process.binary)
                store.read(process.config["/etc/web"])
            plans.decode(store.read(link.release.plan))
        assert [link.digest for link in releases.chain(store, names[-1])] == names[::-1]


def test_a_history_that_cannot_be_read_lets_nothing_be_collected(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        lost = Release(
            definition=digest_of(b"lost"), plan=digest_of(b"lost"), parent=None, at_unix_ns=1, by="operator:ada"
        )
        releases.publish(store, "prod", lost)
        with pytest.raises(BlobMissing):
            roots(store)
