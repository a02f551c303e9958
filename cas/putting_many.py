"""Storing many blobs at once: few transactions, little work for each blob, no deltas.

Most are small and many of them noise, so a sample decides whether it is worth trying to compress each of them. Whether
the store has a small plain blob is asked only inside the transaction, once. While one group is written, the next ones
are hashed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3

from cas import encoding, protection, putting
from cas.access import Access
from cas.batch import Batch
from cas.bodies import SMALL_BYTES
from cas.digest import PREFIX
from cas.encoding import Encoded
from cas.entries import PLAIN
from cas.errors import StoreFull
from cas.interface import Stored

GROUP_BLOBS = 16384
GROUP_BYTES = 16 << 20
"""How much goes into one job."""
AHEAD_GROUPS = 2
"""How many groups may wait to be written while the next one is hashed."""
SAMPLES = 16
SAMPLE_BYTES = 64 << 10
"""How many blobs of a group, and how much of them, are asked whether the group compresses."""

Leased = tuple[str, float]
"""Owner and expiry of a lease that is taken in the same transaction as the blob is stored."""


def put_many(access: Access, blobs: Iterable[bytes], lease: Leased | None = None) -> list[Stored]:
    """Many blobs in few transactions, each whole (no delta). Where it raises, some of them may have been stored."""
    results: list[Stored] = []
    waiting: deque[Callable[[], list[Stored]]] = deque()
    for group in _groups(blobs):
        if len(waiting) == AHEAD_GROUPS:
            results += waiting.popleft()()
        waiting.append(_submit(access, group, lease))
    while waiting:
        results += waiting.popleft()()
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


def _submit(access: Access, group: list[bytes], lease: Leased | None) -> Callable[[], list[Stored]]:
    """Hand a group to the writer. Returns what waits until it is durable."""
    raws = [blake3(data).digest() for data in group]
    every = dict(zip(raws, group, strict=True))
    noise = _looks_like_noise(group[:: max(1, len(group) // SAMPLES)])
    if noise and max(map(len, group)) <= SMALL_BYTES:
        small = every
    else:
        small = {raw: data for raw, data in every.items() if _is_small_plain(data, noise)}
    encoded = _encode(access, {raw: data for raw, data in every.items() if raw not in small})

    def change(batch: Batch) -> dict[bytes, int]:
        """Stored bytes of each blob that is new."""
        if lease is not None:
            protection.lease(batch, every, *lease)
        new = dict(zip(small, map(len, small.values()), strict=True))
        for raw in batch.present(small):
            del new[raw]
        batch.add_small_plain(zip(new, map(small.__getitem__, new), strict=True))
        for raw, (form, damaged_body) in encoded.items():
            if form is None:
                batch.protect(raw)
            elif putting.clear_damaged(batch, raw, damaged_body):
                new[raw] = putting.add_encoded(batch, raw, len(every[raw]), form)
        return new

    job = access.submit(change, max(1, _room(access, small, encoded)))

    def finish() -> list[Stored]:
        new = job.wait()
        if len(new) == len(group):
            return [
                Stored(PREFIX + raw.hex(), len(data), True, new[raw]) for raw, data in zip(raws, group, strict=True)
            ]
        if len(new) < len(every):
            _heal(access, {raw: data for raw, data in small.items() if raw not in new}, new)
        return [
            Stored(PREFIX + raw.hex(), len(data), raw in new, new.pop(raw, 0))
            for raw, data in zip(raws, group, strict=True)
        ]

    return finish


Form = tuple[Encoded | None, int | None]
"""How a blob will be stored, None where it is here and whole; and the body that it has, where that is damaged."""


def _encode(access: Access, blobs: dict[bytes, bytes]) -> dict[bytes, Form]:
    forms: dict[bytes, Form] = {}
    for raw, data in blobs.items():
        if putting.is_whole(access, raw):
            forms[raw] = None, None
        else:
            forms[raw] = encoding.whole(raw, data), putting.body_in_index(access, raw)
    return forms


def _heal(access: Access, here: dict[bytes, bytes], new: dict[bytes, int]) -> None:
    """Store those anew that were here, but damaged."""
    for raw, data in here.items():
        if not putting.is_whole(access, raw):
            stored = putting.store_encoded(access, raw, len(data), encoding.whole(raw, data), None)
            if stored is not None and stored.new:
                new[raw] = stored.stored_bytes


def _room(access: Access, small: dict[bytes, bytes], encoded: dict[bytes, Form]) -> int:
    """Bytes that will be added. Where there may be too little room, what is here already is not counted."""
    large = sum(len(form.stored) for form, _ in encoded.values() if form is not None)
    room = large + sum(map(len, small.values()))
    try:
        access.ensure_room(room)
    except StoreFull:
        return large + sum(len(data) for raw, data in small.items() if not putting.is_indexed(access, raw))
    return room


def _is_small_plain(data: bytes, noise: bool) -> bool:
    return len(data) <= SMALL_BYTES and (noise or encoding.stays_plain(data))


def _looks_like_noise(some: list[bytes]) -> bool:
    """Whether a few blobs of a group do not compress even together; then the others are not asked one by one."""
    from cas import compression

    return compression.smallest(b"".join(some)[:SAMPLE_BYTES], level=compression.QUICK_LEVEL)[0] == PLAIN
