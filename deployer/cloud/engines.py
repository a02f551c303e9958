"""The engines that a cloud's settings name, put together: shared refs and blobs over the local store.

A ref is only moved to a release once everything that the release names is at the origin, so that an operator on another
machine who can read the history can also carry it out. A release at the origin stands for its whole past: so where a
cloud has just been given an origin, the first release takes the releases before it along, oldest first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cas.digest import Digest
from cas.engines.address import parse_blobs, parse_refs
from cas.engines.errors import EngineUnreachable
from cas.engines.etcd import EtcdClient
from cas.engines.etcd_refs import EtcdRefs
from cas.engines.last_seen import LastSeen, RememberedRefs
from cas.engines.shared import SharedStore
from cas.errors import BlobMissing
from cas.interface import BlobStore, Damage
from cas.store import Store
from cas.tree import TreeInvalid, blobs_of, reader
from deployer.errors import RecordInvalid
from deployer.history import release
from deployer.history.release import Release
from deployer.history.roots import roots
from deployer.history.stocktaking import blobs_of_inventory
from deployer.resolving import canonical

LAST_REFS_NAME = "last-refs.json"


def open_shared(
    local: Store, *, refs: str, blobs: str, state: Path, tell: Callable[[EngineUnreachable, float], None]
) -> SharedStore:
    """The store of a cloud whose settings name these engines. `state` is where the last known refs are kept; `tell` is
    told of each answer that comes from there, with its age in seconds. Connects when something is first asked. Raises
    EngineAddressInvalid, EngineRefused."""
    engine = open_refs(refs)
    remembered = None
    if engine is not None:
        remembered = RememberedRefs(engine, LastSeen(state / LAST_REFS_NAME, refs), tell=tell)
    address = parse_blobs(blobs)
    if address is None:
        return SharedStore(local, origin=None, refs=remembered)
    from cas.engines.objects import Objects
    from cas.engines.origin import Origin

    return SharedStore(local, origin=Origin(Objects.open(address)), refs=remembered, before_move=share_release)


def open_refs(refs: str) -> EtcdRefs | None:
    """Raises EngineAddressInvalid, EngineRefused."""
    address = parse_refs(refs)
    return None if address is None else EtcdRefs(EtcdClient(address), address.name)


def share_release(store: SharedStore, to: Digest) -> None:
    """See to it that a release, all it names and all before it are at the origin. A ref may point at something else
    than a release (`of_no_release`). Raises BlobMissing where a part is
    in neither place."""
    if store.origin is None:
        return
    ahead: list[tuple[Digest, Release]] = []
    now: Digest | None = to
    while now is not None and (now == to or not store.origin.contains(now)):
        try:
            ahead.append((now, release.read(store, now)))
        except RecordInvalid:
            _here(store, sorted(of_no_release(store, now)))
            break
        now = ahead[-1][1].parent
    for digest, link in reversed(ahead):
        _here(store, needs_of(store, link))
        store.share([digest])


def of_no_release(store: BlobStore, digest: Digest) -> set[Digest]:
    """What a ref needs that points at something else than a release: everything of a snapshot, anything else alone."""
    try:
        return blobs_of(digest, reader(store))
    except TreeInvalid:
        return {digest}


def check_whole(store: SharedStore) -> list[Damage]:
    """What the histories need and the origin lacks; uploaded where the local store has it. Raises as `roots`."""
    found = []
    for digest in store.origin.missing(roots(store)) if store.origin is not None else ():
        try:
            store.share([digest])
            repaired = True
        except BlobMissing:
            repaired = False
        found.append(Damage(digest, "it is not at the origin, where other operators need it", repaired))
    return found


def needs_of(store: BlobStore, link: Release) -> list[Digest]:
    """Every blob that carrying out a release takes, its inventory, and the proof of who signed it."""
    definition = release.read_definition(store, link.definition)
    signed = [link.signed] if link.signed else []
    listed = blobs_of_inventory(store, link.inventory) if link.inventory else []
    return [link.plan, link.definition, *signed, *listed, *canonical.blobs_of(definition)]


def _here(store: SharedStore, digests: list[Digest]) -> None:
    """Share what is in the local store; what is not there must be at the origin, and stay there."""
    absent = set(store.local.missing(digests))
    store.share([digest for digest in digests if digest not in absent])
    for digest in store.origin.hold(absent) if store.origin else []:
        store.stat(digest)  # Raises BlobMissing with its name.
