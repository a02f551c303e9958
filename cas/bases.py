"""Which blobs of a store are worth trying as the base of a new one, the most promising first, without reading any.

The last version of the same name comes first, as a rule: it is nearly always the most similar, and what a receiver most
likely has. Another one comes before it where the sketches say that it is clearly more alike: a name that two lines of
versions take turns under, a version that goes back, a file that came by another name. What is tried is then measured
(`cas.encoding`); the order only sees to it that the first try is the one that is kept.
"""

from __future__ import annotations

from itertools import islice

import lmdb

from cas import names, reading, similarity
from cas.access import Access
from cas.batch import Batch
from cas.encoding import Candidate
from cas.entries import BadEntry, Entry
from cas.environment import Environment
from cas.errors import BlobDamaged
from cas.similarity import Sketch

RECENT_VERSIONS = 4
"""How many blobs of a name are looked at."""
SIMILAR_BLOBS = 3
"""How many blobs of any other name."""
MOST_LINKS = 64
"""A chain this long is not one that a store has written."""
NEWEST_ADVANTAGE = 0.15
"""How much more alike than the last version another blob must look to be tried before it."""


def candidates(access: Access, name: str | None, sketch: Sketch) -> list[Candidate]:
    """Blobs to try, in order; where the chain of one is as long as it may be, what it is built on comes at the end."""
    env = access.env
    with env.reading() as txn:
        promising = _promising(env, txn, name, sketch)
        chains = [chain_of(env, txn, raw, promise) for promise, raw in promising]
    first = [candidate for chain in chains for candidate in chain[:1]]
    below = [candidate for chain in chains for candidate in chain[1:]]
    found: dict[bytes, Candidate] = {}
    for candidate in first + below:
        found.setdefault(candidate.raw, candidate)
    return list(found.values())


def _promising(
    env: Environment, txn: lmdb.Transaction[memoryview], name: str | None, sketch: Sketch
) -> list[tuple[float, bytes]]:
    """How alike each is expected to be, and its raw digest; the best first."""
    recent = [] if name is None else list(islice(names.newest_first(env, txn, name), RECENT_VERSIONS))
    promise: dict[bytes, float] = {}
    for raw in recent:
        known = similarity.known(env, txn, raw)
        # Without sketches to compare, age is all there is to go by.
        promise[raw] = similarity.resemblance(sketch, known) if sketch and known else 1.0
    if recent:
        promise[recent[0]] += NEWEST_ADVANTAGE
    for alike, raw in similarity.similar(env, txn, sketch, SIMILAR_BLOBS) if sketch else ():
        promise.setdefault(raw, alike)
    return [(value, raw) for raw, value in sorted(promise.items(), key=lambda item: item[1], reverse=True)]


def chain_of(env: Environment, txn: lmdb.Transaction[memoryview], raw: bytes, promise: float = 1.0) -> list[Candidate]:
    """A blob and what it is built on, the blob first, with depths and bytes as they are now, whatever the entries say.
    Empty where it is not here, is damaged, or is built on something that is not whole."""
    links: list[tuple[bytes, Entry]] = []
    wanted: bytes | None = raw
    while wanted is not None:
        if len(links) > MOST_LINKS:
            return []
        try:
            entry = reading.find_entry(env, txn, wanted)
        except BlobDamaged:
            return []
        if entry is None:
            return []
        links.append((wanted, entry))
        wanted = entry.base
    found: list[Candidate] = []
    bytes_to_read = 0
    for depth, (link, entry) in enumerate(reversed(links)):
        bytes_to_read += entry.stored
        found.append(Candidate(link, entry.size, depth, bytes_to_read, promise))
    return found[::-1]


def links_of(batch: Batch, raw: bytes) -> list[bytes] | None:
    """As `chain_of`, as the transaction sees it: digests only, the blob first; None where it cannot be read."""
    links: list[bytes] = []
    wanted: bytes | None = raw
    while wanted is not None and len(links) <= MOST_LINKS:
        try:
            entry = batch.entry(wanted)
        except BadEntry:
            return None
        if entry is None:
            return None
        links.append(wanted)
        wanted = entry.base
    return links if wanted is None else None
