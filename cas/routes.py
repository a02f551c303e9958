"""How a blob can reach a receiver: which deltas there are, and which of them cost the fewest bytes.

A blob can be sent whole, or as a delta of a blob that the receiver has, or gets earlier in the same stream. A store has
the delta that a blob is stored as, and sometimes more that it keeps beside it (`cas.patches`); in a store that was
repacked these lead in both directions, from old versions to new ones and back. So the blobs and their deltas are a
graph, and the cheapest way is its shortest path (Dijkstra 1959), looked for in a bounded part of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Set
from typing import NamedTuple

from cas.digest import Digest
from cas.errors import BlobMissing
from cas.interface import BlobStat

MAX_BLOBS = 64
"""How many blobs are looked at for one."""

Stat = Callable[[Digest], BlobStat]


class Step(NamedTuple):
    """One blob to send: as a delta of `base`, or whole where that is None."""

    stat: BlobStat
    base: Digest | None
    bytes: int
    """About how many; exact but for a blob that is stored as a delta and sent whole."""


def deltas_of(stat: BlobStat) -> Iterator[tuple[Digest, int]]:
    """The bases that a blob can be sent as a delta of, and how many bytes each delta has."""
    if stat.base is not None:
        yield stat.base, stat.stored_bytes
    for kept in stat.patches:
        yield kept.base, kept.stored_bytes


def reach(stat: Stat, digest: Digest) -> dict[Digest, BlobStat]:
    """A blob and those that deltas lead to it from, the nearest first. Raises BlobMissing for the blob itself."""
    found = {digest: stat(digest)}
    waiting = [digest]
    for one in waiting:
        for base, _ in deltas_of(found[one]):
            if base in found or len(found) >= MAX_BLOBS:
                continue
            try:
                found[base] = stat(base)
            except BlobMissing:
                continue  # Collected meanwhile.
            waiting.append(base)
    return found


def whole_bytes(stats: dict[Digest, BlobStat], digest: Digest) -> int:
    """How many bytes a blob has when it is sent whole: where it is stored as a delta, as many as the whole blob that
    its chain begins with."""
    at = stats[digest]
    for _ in range(MAX_BLOBS):
        if at.base is None or at.base not in stats:
            break
        at = stats[at.base]
    return at.stored_bytes


def cheapest(stat: Stat, digest: Digest, held: set[Digest], wanted: Set[Digest]) -> list[Step]:
    """What to send, in order, so that a receiver that holds `held` can build this blob. Where nothing of that helps,
    one of `wanted`, which it is to get anyway, may begin the chain: what that costs is not this blob's. Raises
    BlobMissing."""
    if digest in held:
        return []
    own = stat(digest)
    if own.base is None and not own.patches:
        return [Step(own, None, own.stored_bytes)]  # No delta leads to it, as to most small blobs.
    stats = reach(stat, digest)
    whole = {digest: whole_bytes(stats, digest)}
    best = _search(stats, digest, whole | dict.fromkeys(held & stats.keys(), 0))
    if best[digest] is None:
        best = _search(stats, digest, whole | dict.fromkeys(_also_wanted(stats, digest, wanted), 0))
    return _steps(stats, digest, held, best)


def _also_wanted(stats: dict[Digest, BlobStat], digest: Digest, wanted: Set[Digest]) -> set[Digest]:
    """Wanted blobs that a chain may begin with: those that the others are built on, whatever the order they come in."""
    depths = {one: stats[one].depth for one in (wanted & stats.keys()) - {digest}}
    lowest = min(depths.values(), default=0)
    if lowest and lowest >= stats[digest].depth:
        return set()
    return {one for one, depth in depths.items() if depth == lowest}


def _search(
    stats: dict[Digest, BlobStat], digest: Digest, beginnings: dict[Digest, int]
) -> dict[Digest, Digest | None]:
    """The base that each blob is best built on, None where it begins a chain; as far as is needed for this one."""
    onward: dict[Digest, list[tuple[Digest, int]]] = {}
    for target in stats.values():
        for base, size in deltas_of(target):
            onward.setdefault(base, []).append((target.digest, size))
    best: dict[Digest, Digest | None] = {}
    waiting: list[tuple[int, int, Digest, Digest | None]] = [(cost, 0, one, None) for one, cost in beginnings.items()]
    heapq.heapify(waiting)
    while waiting and digest not in best:
        cost, steps, one, begun = heapq.heappop(waiting)
        if one in best:
            continue
        best[one] = begun
        for further, size in onward.get(one, ()):
            heapq.heappush(waiting, (cost + size, steps + 1, further, one))
    return best


def _steps(
    stats: dict[Digest, BlobStat], digest: Digest, held: set[Digest], best: dict[Digest, Digest | None]
) -> list[Step]:
    steps: list[Step] = []
    at: Digest | None = digest
    while at is not None and at not in held:
        base = best[at]
        sizes = [size for other, size in deltas_of(stats[at]) if other == base]
        size = min(sizes, default=whole_bytes(stats, at))
        steps.append(Step(stats[at], base, size))
        at = base
    return steps[::-1]
