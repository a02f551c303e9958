"""Clouds' refs and stores over the real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cas.digest import Digest, digest_of
from cas.engines.address import parse_refs
from cas.engines.errors import EngineUnreachable
from cas.engines.etcd import EtcdClient
from cas.engines.etcd_refs import EtcdRefs
from cas.engines.last_seen import LastSeen, RememberedRefs
from cas.engines.origin import HOLD_S, Origin
from cas.engines.shared import SharedStore
from cas.interface import Collected
from cas.store import Store
from tests.engines.servers import EtcdCluster, Weed

PATIENCE_S = 60.0
"""A cluster whose disk is busy answers late, and elects late."""
A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))
"""What a ref points to, one after the other."""


def refs_at(etcd: EtcdCluster, name: str, *, only: list[int] | None = None, deadline_s: float = PATIENCE_S) -> EtcdRefs:
    """`only`: the members that this client knows of."""
    address = parse_refs(etcd.address(name, only=only))
    assert address is not None
    client = EtcdClient(address, attempt_s=2.0)
    return EtcdRefs(client, address.name, read_deadline_s=deadline_s, move_deadline_s=deadline_s)


class Told:
    """What was said about answers from the local copy."""

    def __init__(self) -> None:
        self.ages_s: list[float] = []

    def __call__(self, error: EngineUnreachable, age_s: float) -> None:
        assert str(error)
        self.ages_s.append(age_s)


class CollectsBoth(SharedStore):
    """Keeps the promises of a store that is one place: a collection here is one at the origin too, whatever is young
    there."""

    def collect(self, roots: Iterable[Digest], *, dry_run: bool = False, ignoring: str | None = None) -> Collected:
        roots = list(roots)
        if self.origin is not None and not dry_run:
            self.origin.hold_s = 0.0
            self.collect_origin(roots, ignoring=ignoring)
        return super().collect(roots, dry_run=dry_run, ignoring=ignoring)


def shared_store(
    directory: Path,
    *,
    weed: Weed | None = None,
    etcd: EtcdCluster | None = None,
    name: str,
    hold_s: float = HOLD_S,
    told: Told | None = None,
    clock: Callable[[], float] | None = None,
    before_move: Callable[[SharedStore, Digest], None] | None = None,
    kind: type[SharedStore] = SharedStore,
) -> SharedStore:
    """The store of one operator, in a directory of its own."""
    local = Store.open(directory / "store") if clock is None else Store.open(directory / "store", clock=clock)
    refs = None
    if etcd is not None:
        seen = LastSeen(directory / "last-refs.json", etcd.address(name))
        refs = RememberedRefs(refs_at(etcd, name), seen, tell=told or Told())
    origin = Origin(weed.objects(name), hold_s=hold_s) if weed is not None else None
    return kind(local, origin=origin, refs=refs, before_move=before_move)
