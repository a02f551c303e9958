"""`check`: read and verify every blob, name what is damaged, and repair it where another store has it.

Blobs that stand alone come first, deltas after what they are built on; so a base is repaired before the blobs on top of
it are read, and one damaged base is not taken for many damaged blobs.
"""

from __future__ import annotations

from collections.abc import Callable

from cas import encoding, patches, reading
from cas.access import Access
from cas.batch import Batch, Totals
from cas.collect import scan
from cas.digest import digest_of, from_raw
from cas.errors import BlobMissing, CasError
from cas.interface import BlobSource, Checked, Damage
from cas.putting import store_encoded

REPAIR_BYTES = 256 << 20
"""A larger blob is not repaired from a source that can only be read whole."""
_PROGRESS_BLOBS = 64


class _Tally:
    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.blobs = 0
        self.bytes = 0
        self.damaged: list[Damage] = []
        self._total = total
        self._progress = progress

    def count(self, size: int) -> None:
        self.blobs += 1
        self.bytes += size
        if self._progress is not None and self.blobs % _PROGRESS_BLOBS == 0:
            self.report()

    def report(self) -> None:
        if self._progress is not None:
            self._progress(self.blobs, max(self.blobs, self._total))


def check(access: Access, *, source: BlobSource | None, progress: Callable[[int, int], None] | None) -> Checked:
    with access.env.reading() as txn:
        total = int(txn.stat(access.env.blobs)["entries"])
        Totals.read(access.env, txn)
    tally = _Tally(total, progress)
    deltas: list[tuple[int, int, bytes]] = []
    for raw, entry in scan(access):
        if isinstance(entry, str) or entry.base is None:
            _verify(access, raw, source, tally)
        else:
            deltas.append((entry.depth, entry.body, raw))
    for _, _, raw in sorted(deltas):
        _verify(access, raw, source, tally)
    _drop_damaged_patches(access)
    tally.report()
    return Checked(tally.blobs, tally.bytes, tuple(tally.damaged))


def _verify(access: Access, raw: bytes, source: BlobSource | None, tally: _Tally) -> None:
    size = 0
    try:
        for piece in reading.stream(access.env, raw):
            size += len(piece)
    except BlobMissing:
        return  # Collected meanwhile.
    except CasError as error:
        reason = str(getattr(error, "reason", error))
        repaired = source is not None and _repair(access, raw, source)
        tally.damaged.append(Damage(from_raw(raw), reason, repaired))
    tally.count(size)


def _drop_damaged_patches(access: Access) -> None:
    """Deltas that are kept for receivers: without one, they are sent another or the whole blob."""
    with access.env.reading() as txn:
        kept = [key for key, _ in patches.every(access.env, txn)]
    damaged = []
    for key in kept:
        with access.env.reading() as txn:
            if not patches.is_sound(access.env, txn, key):
                damaged.append(key)

    def change(batch: Batch) -> None:
        for key in damaged:
            patches.drop(batch, key)

    if damaged:
        access.write(change)


def _repair(access: Access, raw: bytes, source: BlobSource) -> bool:
    """Whether the source had the blob, as its name says, and it is whole again."""
    digest = from_raw(raw)
    try:
        if not source.contains(digest):
            return False
        data = source.read(digest)
        if len(data) > REPAIR_BYTES or digest_of(data) != digest:
            return False
        return store_encoded(access, raw, len(data), encoding.whole(raw, data), None) is not None
    except CasError:
        return False
