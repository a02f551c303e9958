"""Storing many blobs at once: few transactions, little work for each blob, no deltas.

Most are small and many of them noise, so a sample decides whether it is worth trying to compress each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from cas import encoding, protection, putting
from cas.access import Access
from cas.batch import Batch
from cas.bodies import SMALL_BYTES
from cas.digest import from_raw
from cas.entries import PLAIN
from cas.interface import Stored

GROUP_BLOBS = 16384
GROUP_BYTES = 16 << 20
"""How much goes into one job."""
SAMPLES = 16
SAMPLE_BYTES = 64 << 10
"""How many blobs of a group, and how much of them, are asked whether the group compresses."""

Leased = tuple[str, float]
"""Owner and expiry of a lease that is taken in the same transaction as the blob is stored."""


def put_many(access: Access, blobs: Iterable[bytes], lease: Leased | None = None) -> list[Stored]:
    """Many blobs in few transactions, each whole (no delta)."""
    results: list[Stored] = []
    for group in _groups(blobs):
        hashed = [(blake3(data).digest(), data) for data in group]
        results += _put_group(access, hashed, lease)
    return results


def _groups(blobs: Iterable[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for data in blobs:
        group.append(data)
        size += len(data)
        if len(group) == GROUP_BLOBS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _put_group(access: Access, hashed: list[tuple[bytes, bytes]], lease: Leased | None) -> list[Stored]:
    with access.env.reading() as txn:
        get, blobs = txn.get, access.env.blobs
        here = {raw for raw, _ in sorted(hashed) if get(raw, db=blobs) is not None}
    damaged = {raw: putting.body_in_index(access, raw) for raw in here if not putting.is_whole(access, raw)}
    absent = {raw: data for raw, data in hashed if raw not in here or raw in damaged}
    noise = _looks_like_noise([data for _, data in hashed[:: max(1, len(hashed) // SAMPLES)]])
    plain = {raw: data for raw, data in absent.items() if raw not in damaged and _is_small_plain(data, noise)}
    encoded = {raw: (len(data), encoding.whole(raw, data)) for raw, data in absent.items() if raw not in plain}

    def change(batch: Batch) -> dict[bytes, int]:
        """Stored bytes of each blob that is new."""
        if lease is not None:
            protection.lease(batch, (raw for raw, _ in hashed), *lease)
        if batch.collecting:
            for raw in here:
                batch.protect(raw)
        new = {raw: data for raw, data in plain.items() if batch.lacks(raw)}
        batch.add_small_plain(new.items())
        stored_bytes = {raw: len(data) for raw, data in new.items()}
        for raw, (size, form) in encoded.items():
            if putting.clear_damaged(batch, raw, damaged.get(raw)):
                stored_bytes[raw] = putting.add_encoded(batch, raw, size, form)
        return stored_bytes

    room = sum(map(len, plain.values())) + sum(len(form.stored) for _, form in encoded.values())
    new = access.write(change, max(1, room))
    return [Stored(from_raw(raw), len(data), raw in new, new.pop(raw, 0)) for raw, data in hashed]


def _is_small_plain(data: bytes, noise: bool) -> bool:
    return len(data) <= SMALL_BYTES and (noise or encoding.stays_plain(data))


def _looks_like_noise(some: list[bytes]) -> bool:
    """Whether a few blobs of a group do not compress even together; then the others are not asked one by one."""
    from cas import compression

    return compression.smallest(b"".join(some)[:SAMPLE_BYTES], level=compression.QUICK_LEVEL)[0] == PLAIN
