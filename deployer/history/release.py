"""Releases: what should run, since when, who decided so and why. A chain of blobs, and one ref that points at its end.

A release names its parent, so the newest one proves the whole history; moving the ref (`prod`) from the parent to the
new release by compare-and-swap is the decision, and the only thing in the system that two operators can race for.

**When the ref moves.** After every host has staged and before the first call that touches something that runs. So

- `prod` always says what *should* run, and an apply that was cut off shows as drift that the next apply heals;
- of two operators one wins before anything was touched;
- an apply that failed is part of the history for ever: the hosts that had moved go back by a release of their own
  (`kind` is `revert`, `restores` names the release whose definition is meant to run again), never by rewriting. What
  really runs is not a matter of the history at all: hosts tell (`drift`), and their journals prove it (`audit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from cas.digest import Digest, abbreviation, short
from cas.errors import BlobMissing, RefMoved
from cas.interface import BlobStore, ExchangeStore, RefStore
from deployer.errors import ApplyRaced, NothingReleased, ReleaseMissing
from deployer.history.records import seal, unseal

if TYPE_CHECKING:
    from deployer.language.schema import Definition

MAX_RELEASE_BYTES: Final = 4 << 20
MAX_BEHIND: Final = 20_000
"""So many hosts may be left for later, and so many may be leaving."""
MAX_MESSAGE_CHARS: Final = 1 << 16

Kind = Literal["apply", "rollback", "revert"]


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One link of the chain."""

    definition: Digest
    """The canonical form of everything that should run."""
    plan: Digest
    """The calls that lead there."""
    parent: Digest | None
    at_unix_ns: Annotated[int, Meta(ge=0)]
    by: Annotated[str, Meta(max_length=256)]
    """The name in the operator's certificate, such as `operator:ada`."""
    message: Annotated[str, Meta(max_length=MAX_MESSAGE_CHARS)] = ""
    kind: Kind = "apply"
    restores: Digest | None = None
    """For a rollback or a revert: the release whose definition this one brings back, where there is one."""
    behind: Annotated[tuple[str, ...], Meta(max_length=MAX_BEHIND)] = ()
    """Hosts that did not answer when it was decided and were left for later."""
    leaving: Annotated[dict[str, str], Meta(max_length=MAX_BEHIND)] = {}
    """Hosts that the definition does not have and that may still run something: where their agents are. Whoever plans
    next looks at them too, or what this release does not end there would run for ever, unseen."""
    signed: Digest | None = None
    """The signed plan (`deployer.planning.signing`), where the plan came with a signature."""
    signed_by: Annotated[str, Meta(max_length=256)] = ""
    """Who signed it, such as `operator:bob`; proved by `signed`."""
    inventory: Digest | None = None
    """By which hosts check what they get from each other (`deployer.history.stocktaking`); None where there is one
    host."""


class ReleaseStore(ExchangeStore, RefStore, Protocol):
    """Where releases live: blobs that can be sent to hosts, and refs."""


class Link(msgspec.Struct, frozen=True):
    """A release with its name."""

    digest: Digest
    release: Release


def is_history(ref: str) -> bool:
    """Whether a ref names a history. One with a slash in it names something else: a secret, a snapshot of a volume."""
    return "/" not in ref


def encode(release: Release) -> bytes:
    return seal("release", release)


def decode(data: bytes) -> Release:
    """Raises RecordInvalid."""
    return unseal("release", data, Release, max_bytes=MAX_RELEASE_BYTES)


def read(store: BlobStore, digest: Digest) -> Release:
    """Raises BlobMissing, BlobDamaged, RecordInvalid."""
    return decode(store.read(digest))


def read_definition(store: BlobStore, digest: Digest) -> Definition:
    """The definition of this digest. Raises BlobMissing, BlobDamaged, and what the canonical form's reader raises."""
    from deployer.resolving.canonical import decode as decode_definition

    return decode_definition(store.read(digest))


def head(store: ReleaseStore, ref: str) -> Link | None:
    """The newest release of a ref, or None before the first."""
    digest = store.read_ref(ref)
    return None if digest is None else Link(digest, read(store, digest))


def publish(store: ReleaseStore, ref: str, release: Release) -> Link:
    """Record a release and move the ref to it from its parent. Raises ApplyRaced where the ref is elsewhere by now; the
    release is then part of no history and will be collected."""
    digest = store.put(encode(release), name=f"release/{ref}").digest
    try:
        store.move_ref(ref, release.parent, digest)
    except RefMoved as error:
        now = short(error.actual) if error.actual else "nothing"
        before = short(release.parent) if release.parent else "nothing"
        raise ApplyRaced(f"{ref!r} is at {now} and no longer at {before}: another apply came first") from error
    return Link(digest, release)


def chain(store: ReleaseStore, start: Digest | None) -> Iterator[Link]:
    """A release and all before it, newest first. It ends, because a release names its parent by hash. Raises
    BlobMissing, BlobDamaged, RecordInvalid where the history is not whole."""
    while start is not None:
        release = read(store, start)
        yield Link(start, release)
        start = release.parent


def find(store: ReleaseStore, ref: str, text: str) -> Link:
    """The one release of a ref's history whose digest starts so. Raises ReleaseMissing, NothingReleased."""
    digits = abbreviation(text)
    if digits is None:
        raise ReleaseMissing(f"{text!r} names no release: give at least 8 digits of its hash")
    found = [link for link in chain(store, _start(store, ref)) if link.digest.startswith(f"b3:{digits}")]
    if len(found) != 1:
        how_many = "no release starts" if not found else f"{len(found)} releases start"
        raise ReleaseMissing(f"{how_many} with {text} in the history of {ref!r}")
    return found[0]


def previous(store: ReleaseStore, ref: str) -> Link:
    """The release that an unnamed rollback goes back to: the nearest one before what runs now that had another
    definition. Where the newest release is itself a rollback or a revert, what runs now is what it restored, and the
    search starts there; so two rollbacks go back two steps, and never forward to what was fled from. Raises
    ReleaseMissing, NothingReleased."""
    current = Link(start := _start(store, ref), read(store, start))
    seen = current
    while (digest := _before(seen.release)) is not None:
        try:
            seen = Link(digest, read(store, digest))
        except BlobMissing as error:
            raise ReleaseMissing(f"release {short(digest)} before this one is not in the store") from error
        if seen.release.definition != current.release.definition:
            return seen
    raise ReleaseMissing(
        f"there is no release before {short(current.digest)} with another definition",
        hint="a rollback counts as the release that it went back to, and the search goes on before that one; any "
        "release of `lowcloud history` can be named: `lowcloud rollback HASH`",
    )


def _before(release: Release) -> Digest | None:
    return release.parent if release.kind == "apply" else release.restores


def _start(store: ReleaseStore, ref: str) -> Digest:
    digest = store.read_ref(ref)
    if digest is None:
        raise NothingReleased(ref)
    return digest
