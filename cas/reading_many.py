"""Reading many small blobs in one go: one transaction for a group instead of one for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from blake3 import blake3

from cas import entries, reading
from cas.digest import Digest, from_raw, to_raw
from cas.environment import Environment
from cas.errors import BlobDamaged, BlobMissing

GROUP_BLOBS = 512


def read_many(env: Environment, digests: Iterable[Digest]) -> Iterator[tuple[Digest, bytes]]:
    """Raises BlobMissing, BlobDamaged for the first blob that cannot be read."""
    wanted = iter(digests)
    while group := list(islice(wanted, GROUP_BLOBS)):
        raws = [to_raw(digest) for digest in group]
        packed = _read_packed(env, raws)
        for digest, raw, data in zip(group, raws, packed, strict=True):
            yield digest, reading.read(env, raw) if data is None else data


def _read_packed(env: Environment, raws: list[bytes]) -> list[bytes | None]:
    """The plain blobs that lie in packs, verified; None for all others."""
    found: list[bytes | None] = []
    with env.reading() as txn:
        get, blobs, records = txn.get, env.blobs, env.records
        for raw in raws:
            sealed = get(raw, db=blobs)
            if sealed is None:
                raise BlobMissing(from_raw(raw))
            place = entries.locate_packed_plain(sealed)
            if place is None:
                found.append(None)
                continue
            key, start, end = place
            pack = get(key, db=records)
            data = b"" if pack is None else bytes(pack[start:end])
            if blake3(data).digest() != raw:
                reading.get_entry(env, txn, raw)  # It may be the entry that is damaged.
                raise BlobDamaged(from_raw(raw), "its bytes have changed on disk")
            found.append(data)
    return found
