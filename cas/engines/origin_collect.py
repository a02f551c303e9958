"""Collection at the shared origin: what nothing refers to and nobody has lately relied on is deleted.

What refers to a blob, the caller says (every release of every ref, `deployer.history.roots`); what is young or held
stays by the rule of `cas.engines.origin`, and so does every base of what stays. All times are the store's own: "now" is
the time it gave to the announcement. The announcement belongs to one collection, is renewed under its tag before each
deletion, and one that has lost it deletes nothing more. Killed at any point: what it had not deleted stays for the next
one. Where an object that stays cannot be read, nothing is deleted: `check` repairs it first. What is not guarded
against is a collection whose machine stands still for a quarter of an hour between renewing its announcement and
deleting.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from cas.digest import Digest
from cas.engines.errors import EngineUnreachable
from cas.engines.object_format import BadObject
from cas.engines.objects import Meta, side_by_side
from cas.engines.origin import BLOBS, COLLECTING, COLLECTION_S, HELD, Origin, digest_at, path_of
from cas.errors import BlobMissing, CasError, StoreBusy
from cas.interface import Collected, Damage

DELETE_BLOBS: Final = 500
MAX_CHAIN: Final = 64


def collect(origin: Origin, keep: Iterable[Digest], *, dry_run: bool = False) -> Collected:
    """Raises StoreBusy where another collection is deleting, EngineUnreachable, EngineRefused."""
    announcement = _Announcement(origin)
    now = announcement.begin()
    try:
        held = {digest: meta.modified_unix_s for meta in origin.objects.list(HELD) if (digest := digest_at(meta.path))}
        blobs = {digest: meta for meta in origin.objects.list(BLOBS) if (digest := digest_at(meta.path))}
        staying = set(keep) & blobs.keys()
        for digest, meta in blobs.items():
            if now - max(meta.modified_unix_s, held.get(digest, 0.0)) < origin.hold_s:
                staying.add(digest)
        failed = _add_bases(origin, staying, blobs)
        # What an unreadable object is built on is not known: then nothing is safe to delete.
        doomed = [] if failed else [meta for digest, meta in blobs.items() if digest not in staying]
        if not dry_run:
            _delete(origin, doomed, announcement)
            over = [
                f"{HELD}/{path_of(digest).rsplit('/', 1)[-1]}" for digest, at in held.items() if digest not in blobs
            ]
            origin.objects.delete(over)
    finally:
        announcement.end()
    return Collected(len(doomed), sum(meta.size for meta in doomed), len(blobs) - len(doomed), tuple(failed))


def _add_bases(origin: Origin, staying: set[Digest], blobs: dict[Digest, Meta]) -> list[Damage]:
    """Every base of what stays, stays. Where a header cannot be read its base is not known: the blob is reported."""
    failed: list[Damage] = []
    fresh = sorted(staying)
    for _ in range(MAX_CHAIN):
        bases = side_by_side(lambda digest: _base_of(origin, digest, failed), fresh)
        fresh = sorted({base for base in bases if base is not None and base in blobs} - staying)
        if not fresh:
            break
        staying.update(fresh)
    return failed


def _base_of(origin: Origin, digest: Digest, failed: list[Damage]) -> Digest | None:
    try:
        return origin.header(digest).base
    except BadObject as error:
        failed.append(Damage(digest, str(error)))
    except BlobMissing:
        pass
    return None


def _delete(origin: Origin, doomed: list[Meta], announcement: _Announcement) -> None:
    for start in range(0, len(doomed), DELETE_BLOBS):
        announcement.renew()
        origin.objects.delete([meta.path for meta in doomed[start : start + DELETE_BLOBS]])


class _Announcement:
    """The object that says that a collection is deleting. It holds a token, so that each has its own tag."""

    def __init__(self, origin: Origin) -> None:
        self._objects = origin.objects
        self._token = secrets.token_hex(16)
        self._count = 0
        self._e_tag: str | None = None

    def begin(self) -> float:
        """Returns the store's time. Raises StoreBusy."""
        if not self._objects.create(COLLECTING, self._text()) and not self._is_ours():
            found = self._objects.head(COLLECTING)
            probe = f"{COLLECTING}-{self._token}"
            self._objects.put(probe, b"")
            now = self._objects.head(probe)
            self._objects.delete([probe])
            dead = found and now and now.modified_unix_s - found.modified_unix_s > COLLECTION_S
            if found is None or not dead or not self._take_over(found.e_tag):
                raise StoreBusy(
                    f"another collection is deleting at {self._objects.name}",
                    hint=f"wait for it; one that was killed counts as over after {COLLECTION_S / 60:g} minutes",
                )
        announced = self._objects.head(COLLECTING)
        if announced is None:
            raise StoreBusy(f"another collection has taken over at {self._objects.name}")
        self._e_tag = announced.e_tag
        return announced.modified_unix_s

    def renew(self) -> None:
        """Raises StoreBusy where another collection has taken over."""
        self._count += 1
        if not self._take_over(self._e_tag):
            raise StoreBusy(f"another collection has taken over at {self._objects.name}")
        found = self._objects.head(COLLECTING)
        self._e_tag = found.e_tag if found else None

    def end(self) -> None:
        with suppress(EngineUnreachable, CasError):
            if self._is_ours():
                self._objects.delete([COLLECTING])

    def _take_over(self, e_tag: str | None) -> bool:
        return self._objects.replace(COLLECTING, self._text(), e_tag) or self._is_ours()

    def _is_ours(self) -> bool:
        """The answer to an attempt may have been lost."""
        found = self._objects.start(COLLECTING, len(self._text()))
        return found is not None and found[1] == self._text()

    def _text(self) -> bytes:
        return f"{self._token} {self._count}".encode()
