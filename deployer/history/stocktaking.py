"""The inventory of what a definition needs: by it hosts check what they get from each other, piece by piece.

It costs a look at every byte of every blob, so what a release before has listed is taken over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cas import inventory as inventories
from cas.digest import Digest
from cas.errors import BlobDamaged, BlobMissing, CasError
from cas.fresh import freshen
from cas.interface import BlobStore
from cas.inventory import Inventory, Item
from deployer.history.release import ReleaseStore, read, read_definition
from deployer.language.schema import Definition
from deployer.resolving import canonical


def keep_inventory(store: ReleaseStore, ref: str, definition: Definition, before: Digest | None) -> Digest | None:
    """The inventory of a definition, kept in the store with its manifests; None for one whose hosts have nobody to
    exchange anything with. A blob that the store does not have, or not whole, is not listed: hosts may have it.
    `before`: the release before. Raises StoreFull."""
    if len(definition.host) < 2:
        return None
    known = _known(store, before)
    _freshen(store, definition, before)
    items = list(_items(store, canonical.blobs_of(definition), known))
    return store.put(inventories.encode(Inventory(tuple(items))), name=f"inventory/{ref}").digest


def _freshen(store: ReleaseStore, definition: Definition, before: Digest | None) -> None:
    """Make the deltas that lead from the release before to this one where the store has none: hosts hold that release,
    and what they give each other is what the inventory lists."""
    if before is None:
        return
    try:
        held = canonical.blobs_of(read_definition(store, read(store, before).definition))
    except CasError:
        return  # Damaged or collected: it is only a saving that is lost.
    wanted = canonical.blobs_of(definition)
    absent = set(store.missing(wanted)) | set(held)
    freshen(store, (blob for blob in wanted if blob not in absent), held)


def read_inventory(store: BlobStore, digest: Digest) -> Inventory:
    """Raises BlobMissing, BlobDamaged, ExchangeError."""
    return inventories.decode(store.read(digest))


def blobs_of_inventory(store: BlobStore, digest: Digest) -> list[Digest]:
    """The blobs that an inventory is of use with: itself and its manifests. Raises as `read_inventory`."""
    return [digest, *read_inventory(store, digest).manifests()]


def _items(store: ReleaseStore, blobs: Iterable[Digest], known: dict[Digest, Item]) -> Iterator[Item]:
    for blob in blobs:
        if blob in known:
            yield known[blob]
            continue
        try:
            yield from inventories.take_inventory(store, [blob]).items
        except (BlobMissing, BlobDamaged):
            continue


def _known(store: ReleaseStore, before: Digest | None) -> dict[Digest, Item]:
    if before is None:
        return {}
    try:
        listed = read(store, before).inventory
        if listed is None:
            return {}
        inventory = read_inventory(store, listed)
    except CasError:
        return {}
    if store.missing(inventory.manifests()):
        return {}
    return inventory.by_blob()
