"""Who brings a blob into a region, and whose neighbour a host is.

All of it is computed from the names of hosts and regions, so that every host comes to the same answer without a word
being said. Rendezvous hashing (Thaler and Ravishankar 1998) ranks the hosts of a region for a blob: the first of them
that is well brings the blob across the border. Blobs are ranked by the first byte of their digest, so a region of any
size needs at most 256 rankings, and a crowd of small blobs shares its connections.

Inside a region the hosts stand in a circle, and a host's neighbours are those at distances of powers of two and of
halves of the circle: few connections for each, few steps between any two, whoever fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from blake3 import blake3

from cas.digest import PREFIX, Digest


class Swarm:
    """The hosts that are to have the same blobs, by region. Shared by the wants, and by all that agree on it."""

    def __init__(self, regions: Mapping[str, Iterable[str]]) -> None:
        self.regions = {region: tuple(sorted(set(hosts))) for region, hosts in sorted(regions.items())}
        self.region_of = {host: region for region, hosts in self.regions.items() for host in hosts}
        self._rankings: dict[tuple[str, bytes], tuple[str, ...]] = {}
        self._places: dict[tuple[str, bytes], dict[str, int]] = {}

    def ranking(self, region: str, blob: Digest) -> tuple[str, ...]:
        """The hosts of a region, the one that should bring this blob first."""
        return self._ranked(region, _bucket(blob))

    def place(self, host: str, blob: Digest) -> int:
        """Where in the ranking of its region a host stands."""
        key = (self.region_of[host], _bucket(blob))
        places = self._places.get(key)
        if places is None:
            places = self._places[key] = {name: place for place, name in enumerate(self._ranked(*key))}
        return places[host]

    def circle(self, host: str) -> Iterator[str]:
        """The other hosts of its region, in the order in which they are made neighbours."""
        ring = self._ranked(self.region_of[host], b"circle")
        at, size = ring.index(host), len(ring)
        seen = {0}
        for step in _steps(size):
            if step % size not in seen:
                seen.add(step % size)
                yield ring[(at + step) % size]

    def outside(self, region: str, blob: Digest) -> Iterator[str]:
        """The hosts of all other regions, those that bring this blob into theirs first."""
        others = [self.ranking(other, blob) for other in self.regions if other != region]
        for rank in range(max(map(len, others), default=0)):
            yield from (hosts[rank] for hosts in others if rank < len(hosts))

    def _ranked(self, region: str, key: bytes) -> tuple[str, ...]:
        found = self._rankings.get((region, key))
        if found is None:
            hosts = self.regions[region]
            found = tuple(sorted(hosts, key=lambda host: blake3(key + b"\0" + host.encode()).digest()))
            self._rankings[region, key] = found
        return found


def _bucket(blob: Digest) -> bytes:
    return blob[len(PREFIX) : len(PREFIX) + 2].encode()


def _steps(size: int) -> Iterator[int]:
    """Steps round a circle: near and far ones in turn, both ways, at last all."""
    near, far = 1, size // 2
    while near <= far:
        yield from (near, far, -near, -far)
        near, far = near * 2, far // 2
    yield from range(1, size)
