"""The forms of some blobs, as an inventory lists them, on their way through the spool into the store.

Whoever takes pieces in uses it: a form is begun before its first piece, and kept once its pieces are all there. Calls
block; any thread may make them.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.api.fetching import FormAsked
from cas import manifest as manifests
from cas.digest import Digest
from cas.interface import BlobStore, ExchangeStore
from cas.inventory import Form, Item
from cas.manifest import Manifest
from cas.partial import Spool
from cas.swarm.messages import everything


def unchecked_forms(item: Item, store: BlobStore) -> frozenset[Digest]:
    """Those whose pieces cannot be checked here: their manifests are absent."""
    forms = (item.whole, *item.others)
    absent = set(store.missing(form.manifest for form in forms if form.manifest is not None))
    return frozenset(form.digest for form in forms if form.manifest in absent)


class Forms:
    """The forms of these items, by their digests."""

    def __init__(self, items: Iterable[Item], store: ExchangeStore, spool: Spool) -> None:
        self._store = store
        self._spool = spool
        self._forms: dict[Digest, tuple[Item, Form]] = {
            form.digest: (item, form) for item in items for form in (item.whole, *item.others)
        }
        self._manifests: dict[Digest, Manifest] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._forms

    def form(self, name: Digest) -> Form:
        return self._forms[name][1]

    def blob(self, name: Digest) -> Digest:
        """The blob that a form makes."""
        return self._forms[name][0].whole.digest

    def raw_bytes(self, name: Digest) -> int:
        """How large that is."""
        return self._forms[name][0].whole.size

    def spooled(self) -> dict[Digest, int]:
        """The pieces that the spool has of them, as sets; nothing of a form that it has nothing of."""
        return {name: held for name in self._forms if (held := self._spool.held(name))}

    def begin(self, name: Digest) -> Manifest:
        """Make ready to take the form's pieces in. Raises StoreFull, BlobMissing for a manifest that is not here."""
        if name not in self._manifests or name not in self._spool.forms():
            form = self.form(name)
            read = manifests.decode(self._store.read(form.manifest)) if form.manifest is not None else None
            self._manifests[name] = self._spool.begin(form, read).manifest
        return self._manifests[name]

    def is_whole(self, name: Digest) -> bool:
        """Are all its pieces in the spool?"""
        return self._spool.held(name) == everything(len(self.begin(name).pieces))

    def keep(self, name: Digest) -> None:
        """Store the blob that the form makes, durably. Raises StoreFull, StoreBusy, CasError."""
        self.begin(name)
        item, _ = self._forms[name]
        self._store.ensure_room(item.whole.size)
        self._spool.finish(name, item.whole.digest, item.whole.size, self._store)

    def asked(self, name: Digest) -> FormAsked:
        """As another host is asked for it."""
        item, form = self._forms[name]
        return FormAsked(form.digest, item.whole.digest, form.size, form.encoding, form.base)
