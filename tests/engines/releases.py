"""Releases that nothing carries out: a history to move, to watch and to share."""

from __future__ import annotations

import msgspec

from cas.digest import Digest
from deployer.applying.observe import HostState, Observed
from deployer.cloud.cloud import Cloud
from deployer.history import release as releases
from deployer.history.release import Release
from deployer.language.schema import Process
from deployer.planning import plan as plans
from deployer.planning.planners import make_plan
from deployer.planning.planning import keep_definition
from tests.deployer.worlds import BASE

REF = "prod"


def make_release(cloud: Cloud, binary: bytes, *, ref: str = REF, parent: Digest | None = None) -> Digest:
    """A release of a process with this binary, on top of the newest (or of `parent`)."""
    store = cloud.store
    process = Process(binary=store.put(binary, name="web.wasm").digest, hosts=("h1",))
    following = keep_definition(store, msgspec.structs.replace(BASE, process={"web": process}, volume={}, secret={}))
    parent = parent or store.read_ref(ref)
    plan = make_plan("minimal", None, following, Observed({"h1": HostState(), "h2": HostState()}), from_release=parent)
    release = Release(
        definition=following.digest,
        plan=store.put(plans.encode(plan)).digest,
        parent=parent,
        at_unix_ns=1,
        by="operator:ada",
    )
    return releases.publish(store, ref, release).digest
