"""Repack: encode blobs anew, in the background: the newest version of a name whole, the older ones as deltas.

A `put` stores a new version as a delta of the one before, because that is the delta a host will be sent. So the chain
grows at the newest end, which is read most. Repack turns the chain round: in one transaction the newest version becomes
whole, and the version that was whole becomes a delta of it. One encoding for each name, however long the chain; what
lies between stays as it is, one step deeper. The delta that the newest version had been stored as is kept
(`cas.patches`), so what goes over the wire stays small.

No name changes, and nothing is ever without an encoding: each step is one transaction that first looks whether the
world is still as it was when the step was planned. So a repack may be killed or stopped at any instant, and other
processes may read, write and collect meanwhile. What a step makes a base is protected from a collection under way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, pairwise

import msgspec

from cas import bases, encoding, entries, names, patches, putting, reading, similarity
from cas.access import Access
from cas.batch import Batch
from cas.collect import alone, scan
from cas.digest import RAW_BYTES
from cas.encoding import Candidate, Encoded
from cas.entries import BadEntry, Entry
from cas.errors import BlobDamaged, BlobMissing, StoreBusy
from cas.interface import Damage, Repacked
from cas.reading import MAX_DEPTH
from cas.similarity import Sketch

LEAST_BYTES = similarity.LEAST_BYTES
"""Smaller blobs are left as they are."""
WIRE_VERSIONS = 8
"""For so many newest versions of a name the delta from the version before is kept."""


class _Blob(msgspec.Struct, frozen=True):
    """A blob and how it is stored, as it was when a step was planned."""

    raw: bytes
    entry: Entry


class _Repack:
    """What one run knows and has done."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.children: dict[bytes, set[bytes]] = defaultdict(set)
        self.heads: set[bytes] = set()
        self.blobs = 0
        self.saved_bytes = 0
        self.failed: list[Damage] = []


def repack(
    access: Access, *, should_stop: Callable[[], bool] | None, progress: Callable[[int, int], None] | None
) -> Repacked:
    """Raises StoreBusy where another repack is running."""
    stop = should_stop or (lambda: False)
    run = _Repack(access)
    complete = True
    busy = StoreBusy(
        f"the store {access.env.path} is being repacked already", hint="wait until that has ended, or end it"
    )
    with alone(access.env.repack_lock, access.env.path / "repack.lock", busy):
        for raw, entry in scan(access):
            if isinstance(entry, Entry) and entry.base is not None:
                run.children[entry.base].add(raw)
        with access.env.reading() as txn:
            keys = names.keys(access.env, txn)
            run.heads.update(names.newest_of_all(access.env, txn))
        for done, key in enumerate(keys):
            if progress is not None:
                progress(done, len(keys))
            if not _repack_name(run, key, stop):
                complete = False
                break
        else:
            _drop_old_patches(run, keys)
            if progress is not None:
                progress(len(keys), len(keys))
    return Repacked(run.blobs, run.saved_bytes, complete, tuple(run.failed))


# --- one name -------------------------------------------------------------------------------------------------------


def _repack_name(run: _Repack, key: bytes, stop: Callable[[], bool]) -> bool:
    """False where it was stopped."""
    env = run.access.env
    with env.reading() as txn:
        raws = [raw for raw in names.newest_first_of_key(env, txn, key) if txn.get(raw, db=env.blobs) is not None]
    try:
        for step in (_turn, _thin):
            for work in step(run, raws):
                if stop():
                    return False
                work()
    except BlobDamaged as error:
        run.failed.append(Damage(error.digest, error.reason))
    except BlobMissing:
        pass  # Collected meanwhile.
    return True


Work = Callable[[], None]


def _turn(run: _Repack, raws: list[bytes]) -> Iterator[Work]:
    """Make the newest version whole, and what it was built on a delta of it."""
    chain = _chain(run, raws[0]) if raws else []
    if len(chain) < 2 or chain[0].size < LEAST_BYTES:
        return
    head, root = chain[0].raw, chain[-1].raw
    if root not in raws or root in run.heads:
        return
    for raw, depth in _below(run, root).items():
        if depth >= MAX_DEPTH and raw != head:
            yield partial(_lift, run, raw)
    yield partial(_swap, run, head, root, raws)


def _thin(run: _Repack, raws: list[bytes]) -> Iterator[Work]:
    """Make other whole versions deltas of a newer one, where they resemble it."""
    for newer, raw in pairwise(raws):
        if raw in run.heads:
            continue
        chain = _chain(run, raw)
        if len(chain) == 1 and chain[0].size >= LEAST_BYTES:
            yield partial(_try_delta, run, raw, [newer, raws[0]])


def _swap(run: _Repack, head: bytes, root: bytes, raws: list[bytes]) -> None:
    before_head, before_root = _blob(run, head), _blob(run, root)
    older = before_head.entry.base if before_head else None
    if before_head is None or before_root is None or older is None:
        return
    if not encoding.may_encode(Candidate(head, before_head.entry.size, 0, 0), before_root.entry.size):
        return
    kept = reading.patch(run.access.env, head, {older}) if older in raws else None
    data = reading.read(run.access.env, head)
    whole = encoding.whole(head, data)
    patch = putting.encode_delta(data, reading.read(run.access.env, root))
    if patch is None or len(patch) >= encoding.WORTHWHILE * before_root.entry.stored:
        return
    as_delta = encoding.as_delta(Candidate(head, len(data), 0, len(whole.stored)), patch)

    def change(batch: Batch) -> bool:
        if not (_stands(batch, before_head) and _stands(batch, before_root)):
            return False
        batch.protect(head)
        _replace(batch, before_head, whole)
        _replace(batch, before_root, as_delta)
        if kept is not None:
            patches.keep(batch, head, older, len(data), kept[1])
        return True

    _carry_out(run, [(before_head, whole), (before_root, as_delta)], change)


def _lift(run: _Repack, raw: bytes) -> None:
    """A delta at the deepest level becomes one of what its chain has nearer to the root; whole, where that is too
    large."""
    before = _blob(run, raw)
    chain = _chain(run, raw)
    if before is None or len(chain) < 2:
        return
    data = reading.read(run.access.env, raw)
    encoded = encoding.choose(
        raw,
        data,
        [link for link in chain[1:] if link.depth <= MAX_DEPTH // 3],
        read_base=lambda base: reading.read(run.access.env, base),
        encode_delta=putting.encode_delta,
    )
    _rewrite(run, before, encoded)


def _try_delta(run: _Repack, raw: bytes, wanted: list[bytes]) -> None:
    """A whole blob becomes a delta of the first of these that it may be built on, where that saves enough."""
    before = _blob(run, raw)
    if before is None:
        return
    height = max(_below(run, raw).values(), default=0)
    for base in wanted:
        chain = _chain(run, base)
        if not chain or raw in {link.raw for link in chain} or len(chain) + height > MAX_DEPTH:
            continue
        if not encoding.may_encode(chain[0], before.entry.size):
            return
        if similarity.resemblance(_sketch(run, raw), _sketch(run, base)) < similarity.LEAST_RESEMBLANCE:
            return
        data, other = reading.read(run.access.env, raw), reading.read(run.access.env, base)
        if not _looks_worthwhile(other, data, before.entry.stored):
            return
        patch = putting.encode_delta(other, data)
        small = patch is not None and len(patch) < encoding.WORTHWHILE * before.entry.stored
        if patch is not None and small and encoding.chain_allows(chain[0], len(patch), before.entry.stored):
            _rewrite(run, before, encoding.as_delta(chain[0], patch))
        return


def _sketch(run: _Repack, raw: bytes) -> Sketch:
    """From the table, or else from the blob's bytes."""
    with run.access.env.reading() as txn:
        known = similarity.known(run.access.env, txn, raw)
    return known or similarity.sketch_of(reading.read(run.access.env, raw))


def _looks_worthwhile(base: bytes, data: bytes, stored_bytes: int) -> bool:
    """A quick try, so that a version that resembles no other does not cost a thorough one on every run."""
    import delta

    try:
        return len(delta.encode(base, data, effort="fast")) < stored_bytes
    except delta.DeltaError:
        return False


def _rewrite(run: _Repack, before: _Blob, encoded: Encoded) -> None:
    """Replace how one blob is stored."""

    def change(batch: Batch) -> bool:
        if not _stands(batch, before):
            return False
        if encoded.base is not None:
            links = bases.links_of(batch, encoded.base)
            if links is None or before.raw in links or len(links) != encoded.depth:
                return False
            batch.protect(encoded.base)
        _replace(batch, before, encoded)
        return True

    _carry_out(run, [(before, encoded)], change)


def _carry_out(run: _Repack, moves: list[tuple[_Blob, Encoded]], change: Callable[[Batch], bool]) -> None:
    """Make a change that stores blobs in another way, and bring the depths of all that is built on them up to date in
    the same transaction."""
    for before, after in moves:
        _move(run, before.raw, before.entry.base, after.base)
    raws = list(dict.fromkeys(raw for before, _ in moves for raw in [before.raw, *_below(run, before.raw)]))

    def whole_change(batch: Batch) -> bool:
        if not change(batch):
            return False
        _settle(batch, raws)
        return True

    if run.access.write(whole_change, sum(len(after.stored) for _, after in moves)):
        run.blobs += len(moves)
        run.saved_bytes += sum(before.entry.stored - len(after.stored) for before, after in moves)
    else:
        for before, after in moves:
            _move(run, before.raw, after.base, before.entry.base)


# --- what is stored how ---------------------------------------------------------------------------------------------


def _blob(run: _Repack, raw: bytes) -> _Blob | None:
    with run.access.env.reading() as txn:
        entry = reading.find_entry(run.access.env, txn, raw)
    return None if entry is None else _Blob(raw, entry)


def _chain(run: _Repack, raw: bytes) -> list[Candidate]:
    with run.access.env.reading() as txn:
        return bases.chain_of(run.access.env, txn, raw)


def _stands(batch: Batch, before: _Blob) -> bool:
    """Whether a blob is still stored as it was."""
    try:
        now = batch.entry(before.raw)
    except BadEntry:
        return False
    return now is not None and (now.body, now.offset, now.base) == (
        before.entry.body,
        before.entry.offset,
        before.entry.base,
    )


def _replace(batch: Batch, before: _Blob, after: Encoded) -> None:
    batch.remove(before.raw, before.entry)
    putting.add_encoded(batch, before.raw, before.entry.size, after)


def _move(run: _Repack, raw: bytes, from_base: bytes | None, to_base: bytes | None) -> None:
    if from_base is not None:
        run.children[from_base].discard(raw)
    if to_base is not None:
        run.children[to_base].add(raw)


def _below(run: _Repack, raw: bytes) -> dict[bytes, int]:
    """What is built on a blob, directly or not, and how many steps it is away; the nearest first."""
    found: dict[bytes, int] = {}
    level, steps = {raw}, 0
    while level:
        steps += 1
        level = {child for base in level for child in run.children.get(base, ())} - found.keys() - {raw}
        found.update(dict.fromkeys(level, steps))
    return found


def _settle(batch: Batch, raws: list[bytes]) -> None:
    """Bring depth and chain bytes up to date in the index; each blob comes behind what it is built on."""
    for raw in raws:
        try:
            entry = batch.entry(raw)
            base = None if entry is None or entry.base is None else batch.entry(entry.base)
        except BadEntry:
            continue
        if entry is None or base is None:
            continue
        now = msgspec.structs.replace(entry, depth=base.depth + 1, chain_bytes=base.chain_bytes + entry.stored)
        if now != entry:
            batch.txn.put(raw, entries.encode(raw, now), db=batch.env.blobs)


def _drop_old_patches(run: _Repack, keys: list[bytes]) -> None:
    """Deltas to versions that are no longer recent are kept no longer."""
    env = run.access.env
    recent: set[bytes] = set()
    with env.reading() as txn:
        kept = patches.every(env, txn)
        for key in keys if kept else ():
            recent.update(islice(names.newest_first_of_key(env, txn, key), WIRE_VERSIONS))
    old = [key for key, entry in kept if entry is None or key[:RAW_BYTES] not in recent]

    def change(batch: Batch) -> None:
        for key in old:
            patches.drop(batch, key)

    if old:
        run.access.write(change)
