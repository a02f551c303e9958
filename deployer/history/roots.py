"""What a collection of the deployer's store must keep: everything that any release of any ref needs, so that every
rollback stays possible, the newest blob of each name, which the next version will be a delta of, the secrets, and the
snapshots of volumes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cas.digest import Digest
from deployer.history import release
from deployer.history.release import ReleaseStore
from deployer.history.snapshots import is_of_snapshot, needs_of
from deployer.history.stocktaking import blobs_of_inventory
from deployer.resolving import canonical


class NamedStore(ReleaseStore, Protocol):
    """A store that can list what was put under names."""

    def newest_of_names(self) -> Iterable[Digest]: ...


def roots(store: NamedStore) -> set[Digest]:
    """The digests to keep. Raises BlobMissing, BlobDamaged, RecordInvalid, CanonicalInvalid, ExchangeError where a
    history cannot be read as a whole; then nothing may be collected, because what it needs is not known."""
    keep = set(store.newest_of_names())
    definitions: set[Digest] = set()
    inventories: set[Digest] = set()
    for ref, start in store.refs().items():
        if is_of_snapshot(ref):
            keep |= needs_of(store, start)
        if not release.is_history(ref):
            keep.add(start)
            continue
        for link in release.chain(store, start):
            keep |= {link.digest, link.release.plan, link.release.definition}
            keep |= {link.release.signed} if link.release.signed else set()
            definitions.add(link.release.definition)
            inventories |= {link.release.inventory} if link.release.inventory else set()
    for digest in definitions:
        keep.update(canonical.blobs_of(release.read_definition(store, digest)))
    for digest in inventories:
        keep.update(blobs_of_inventory(store, digest))
    return keep
