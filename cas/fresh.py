"""Deltas made because somebody needs one: a receiver has an older version than any stored delta leads from.

What a store keeps leads from the version before, or along a short chain. A host that was away, or a version whose chain
had to begin anew, finds none of its own blobs at its beginning, and would be sent the whole. So a sender names to the
receiver what resembles a wanted blob too (`relatives`), and where the receiver has something of that, makes one delta
(`freshen`), which is kept beside the blob: the next host that is as far behind costs nothing.

Bounded: blobs of up to `cas.encoding.MAX_ENCODED_BYTES`, `TRIED` bases for each, and only where the way that there is
costs more than `LEAST_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterable

from cas import encoding, patches, putting, reading, similarity
from cas.access import Access
from cas.batch import Batch
from cas.digest import Digest, from_raw
from cas.encoding import Candidate
from cas.errors import BlobMissing
from cas.interface import ExchangeStore
from cas.routes import cheapest

LEAST_BYTES = 64 << 10
"""What costs no more to send than this is not worth the processor time."""
RELATIVES = 8
"""How many blobs are named to a receiver for each that it wants."""
TRIED = 2


def relatives(access: Access, raw: bytes, most: int) -> list[Digest]:
    """Blobs that resemble this one, the most alike first."""
    env = access.env
    with env.reading() as txn:
        sketch = similarity.known(env, txn, raw)
        found = similarity.similar(env, txn, sketch, most + 1) if sketch else []
        here = [other for _, other in found if other != raw and txn.get(other, db=env.blobs) is not None]
    return [from_raw(other) for other in here[:most]]


def make_patch(access: Access, raw: bytes, base: bytes) -> int | None:
    """Make a delta of a blob from a base and keep it; its bytes. None where it saves too little, or may not be made.
    Raises BlobMissing, BlobDamaged, StoreFull."""
    with access.env.reading() as txn:
        entry = reading.get_entry(access.env, txn, raw)
        of_base = reading.get_entry(access.env, txn, base)
    if raw == base or not encoding.may_encode(Candidate(base, of_base.size, 0, 0), entry.size):
        return None
    known = reading.patch(access.env, raw, {base})
    if known is not None:
        return len(known[1])
    patch = putting.encode_delta(reading.read(access.env, base), reading.read(access.env, raw))
    if patch is None or len(patch) >= encoding.WORTHWHILE * entry.chain_bytes:
        return None
    access.ensure_room(len(patch))

    def change(batch: Batch) -> int | None:
        if any(batch.txn.get(one, db=access.env.blobs) is None for one in (raw, base)):
            return None  # Collected meanwhile.
        patches.keep(batch, raw, base, entry.size, patch)
        return len(patch)

    return access.write(change, len(patch))


def freshen(store: ExchangeStore, digests: Iterable[Digest], bases: Iterable[Digest] = ()) -> int:
    """See to it that these blobs can reach a receiver that holds `bases` for few bytes, as far as new deltas help; how
    many were made. Raises BlobMissing, BlobDamaged, StoreFull."""
    held = set(bases)
    wanted = list(dict.fromkeys(digests))
    among = set(wanted)
    made = 0
    for digest in wanted:
        way = cheapest(store.stat, digest, held, among)
        cost = sum(step.bytes for step in way)
        if cost > LEAST_BYTES and _makes_cheaper(store, digest, held, cost):
            made += 1
            way = cheapest(store.stat, digest, held, among)
        held.update(step.stat.digest for step in way)
    return made


def _makes_cheaper(store: ExchangeStore, digest: Digest, held: set[Digest], cost: int) -> bool:
    for base in [one for one in store.relatives(digest, RELATIVES) if one in held][:TRIED]:
        try:
            made_bytes = store.make_patch(digest, base)
        except BlobMissing:
            continue  # Collected meanwhile.
        if made_bytes is not None and made_bytes < cost:
            return True
    return False
