"""Releases across an air gap: what a bundle of one must hold, and when a history may follow to it (`cas.bundle`).

A bundle brings the release with all that carrying it out takes, and the records, plans and definitions of the releases
before it, so that the history stays readable where it goes. What the other side has is taken to be what applying
`since` there leaves behind for good: that release's definition, and the blobs that this names. Its records are not
counted on, because a cloud that only *applies* releases of another keeps a history of its own.

Where a way over the stored deltas is long, a delta from the blob at the same place of the `since` definition is made
for the bundle, within bounds, and taken if it is smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Final

from cas import bundle
from cas.digest import Digest, abbreviation, short
from cas.errors import BlobMissing
from deployer.cloud.engines import needs_of
from deployer.errors import BadInput, ReleaseMissing
from deployer.history import release
from deployer.history.release import Link, ReleaseStore
from deployer.resolving import canonical

if TYPE_CHECKING:
    from cas.bundle import Contents, Head, Tell
    from cas.exchange import Received

MAKE_FROM_BYTES: Final = 16 << 10
"""A way that costs no more is taken as it is."""
MAKE_BLOB_BYTES: Final = 64 << 20
MAKE_TOTAL_BYTES: Final = 256 << 20
"""How much is encoded anew for one bundle, at most."""


class HistoryElsewhere(BadInput):
    """The ref is not at a release before this one."""

    hint = "leave --ref out, and `lowcloud apply RELEASE` makes it the next release of this history"


class HistoryIncomplete(BadInput):
    """Releases before this one are not in the store, so a ref at it could not be read back."""

    hint = "unbundle a bundle that was made without --since first"


class OtherRelease(BadInput):
    """The bundle holds another release than it should."""


def find(store: ReleaseStore, ref: str, text: str) -> Link:
    """The release that an (abbreviated) digest names: of the ref's history, otherwise any that the store has. Raises
    ReleaseMissing, NotADigest, AmbiguousDigest, BlobMissing, RecordInvalid."""
    if abbreviation(text) is None:
        raise ReleaseMissing(f"{text!r} names no release: give at least 8 digits of its hash")
    if store.read_ref(ref) is not None:
        try:
            return release.find(store, ref, text)
        except (ReleaseMissing, BlobMissing):
            pass  # One that was unbundled, and is of another cloud's history.
    digest = store.find(text)
    return Link(digest, release.read(store, digest))


def contents(store: ReleaseStore, to: Link, since: Link | None) -> Contents:
    """What a bundle must hold. Raises BlobMissing, BlobDamaged, RecordInvalid."""
    past = {link.digest for link in release.chain(store, since.digest)} if since else set()
    held = _left_by(store, since) if since else {}
    wanted: dict[Digest, None] = {}
    for link in reversed([link for link in release.chain(store, to.digest) if link.digest not in past]):
        parts = needs_of(store, link.release) if link.digest == to.digest else _records(store, link)
        wanted.update(dict.fromkeys([*parts, link.digest]))
    wanted.update(dict.fromkeys([*needs_of(store, to.release), to.digest]))
    blobs = tuple(digest for digest in wanted if digest not in held)
    return bundle.Contents(
        to.digest,
        since.digest if since else None,
        blobs,
        tuple(held),
        tuple(digest for digest in wanted if digest in held),
        _made(store, to, since, blobs, held),
    )


def pack(store: ReleaseStore, to: Link, since: Link | None, spool: IO[bytes], *, tell: Tell | None = None) -> Head:
    """Write the stream of a bundle (`cas.bundle.pack`)."""
    return bundle.pack(store, contents(store, to, since), spool, tell=tell)


def unpack(
    store: ReleaseStore, file: IO[bytes], *, expected: str | None = None, tell: Tell | None = None
) -> tuple[Link, Head, Received]:
    """Store a bundle's release and see that it is whole. No ref moves. Raises what `cas.bundle` raises; OtherRelease
    before anything is stored, and BlobMissing or RecordInvalid where the file does not hold what it names."""
    head = bundle.read_head(file)
    if expected is not None and not head.release.startswith(f"b3:{abbreviation(expected) or '?'}"):
        raise OtherRelease(f"the bundle holds release {short(head.release)}, not {expected}")
    received = bundle.unpack(store, head, file, tell=tell)
    link = Link(head.release, release.read(store, head.release))
    for digest in needs_of(store, link.release):
        store.stat(digest)
    return link, head, received


def advance(store: ReleaseStore, ref: str, to: Link) -> bool:
    """Let a ref follow to a release that its own newest one leads to; False where it is there already. Raises
    HistoryElsewhere, HistoryIncomplete, RefMoved."""
    before = store.read_ref(ref)
    if before == to.digest:
        return False
    try:
        past = list(release.chain(store, to.digest))
        for link in past:
            store.stat(link.release.definition)
    except BlobMissing as error:
        raise HistoryIncomplete(f"the history before release {short(to.digest)} is not whole here: {error}") from error
    if before is not None and before not in {link.digest for link in past}:
        raise HistoryElsewhere(f"{ref!r} is at {short(before)}, which is no release before {short(to.digest)}")
    store.move_ref(ref, before, to.digest)
    return True


def _records(store: ReleaseStore, link: Link) -> list[Digest]:
    """What keeps a release readable that is not to be carried out."""
    blobs = set(canonical.blobs_of(release.read_definition(store, link.release.definition)))
    return [digest for digest in needs_of(store, link.release) if digest not in blobs]


def _left_by(store: ReleaseStore, since: Link) -> dict[Digest, None]:
    definition = release.read_definition(store, since.release.definition)
    return dict.fromkeys([since.release.definition, *canonical.blobs_of(definition)])


# --- deltas made for a bundle ---------------------------------------------------------------------------------------


def _made(
    store: ReleaseStore, to: Link, since: Link | None, blobs: tuple[Digest, ...], held: dict[Digest, None]
) -> dict[Digest, bytes]:
    if since is None:
        return {}
    made: dict[Digest, bytes] = {}
    budget = MAKE_TOTAL_BYTES
    for target, base in _pairs(store, to, since):
        if target not in blobs or target in made:
            continue
        sizes = store.stat(target).size, store.stat(base).size
        if max(sizes) > MAKE_BLOB_BYTES or sum(sizes) > budget:
            continue
        patch = _smaller(store, target, base, held)
        budget -= sum(sizes)
        if patch is not None:
            made[target] = patch
    return made


def _pairs(store: ReleaseStore, to: Link, since: Link) -> Iterator[tuple[Digest, Digest]]:
    """Blobs at the same place of the two definitions, and the definitions."""
    yield to.release.definition, since.release.definition
    before = dict(canonical.references(release.read_definition(store, since.release.definition)))
    for place, target in canonical.references(release.read_definition(store, to.release.definition)):
        if before.get(place, target) != target:
            yield target, before[place]


def _smaller(store: ReleaseStore, target: Digest, base: Digest, held: dict[Digest, None]) -> bytes | None:
    """A delta that is smaller than the best way over what is stored; None where that is direct, short, or better."""
    import delta
    from cas.routes import cheapest

    way = cheapest(store.stat, target, set(held), set())
    cost = sum(step.bytes for step in way)
    if cost <= MAKE_FROM_BYTES or (len(way) == 1 and way[0].base is not None):
        return None
    patch = delta.encode(store.read(base), store.read(target))
    return patch if len(patch) < cost else None
