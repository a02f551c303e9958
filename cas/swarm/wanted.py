"""The blobs that are wanted, which of them are open, and the forms in which each may come.

A form can be used where its base is in the store, or is being fetched too. The smallest that somebody offers is taken
once it is clear that no smaller one comes; blobs whose deltas need each other in a circle never wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from cas.digest import Digest
from cas.inventory import Form
from cas.swarm.blob import Blob, Want


class Wanted:
    """Mutable; belongs to one `Fetch`."""

    def __init__(self, me: str, open_blobs: int) -> None:
        self._me = me
        self._most_open = open_blobs
        self._waiting: deque[Want] = deque()
        self._spooled: dict[Digest, int] = {}
        self.digests: set[Digest] = set()
        """Of the blobs that have not ended."""
        self.open: dict[Digest, Blob] = {}
        self.by_form: dict[Digest, Blob] = {}

    def add(self, wants: Iterable[Want], spooled: Mapping[Digest, int]) -> None:
        """Those that are wanted already are passed over."""
        self._spooled.update(spooled)
        fresh = {want.item.whole.digest: want for want in wants if want.item.whole.digest not in self.digests}
        self.digests.update(fresh)
        self._waiting.extend(_bases_first(fresh))

    def open_more(self, now_s: float) -> Iterator[Blob]:
        """Those that there is room for."""
        while self._waiting and len(self.open) < self._most_open:
            want = self._waiting.popleft()
            forms = sorted(self._usable(want), key=lambda form: (form.size, form.digest))
            have = {form.digest: self._spooled.pop(form.digest, 0) for form in forms}
            blob = Blob(want, forms, {form: held for form, held in have.items() if held}, self._me, now_s)
            self.open[blob.blob] = blob
            self.by_form.update(dict.fromkeys(blob.forms, blob))
            yield blob

    def _usable(self, want: Want) -> Iterator[Form]:
        for form in (want.item.whole, *want.item.others):
            possible = form.base is None or form.base in want.bases or form.base in self.open
            if possible and form.digest not in self.by_form and form.digest not in want.unchecked:
                yield form

    def close(self, blob: Blob) -> None:
        """It is here, or given up."""
        blob.ended = True
        for form in blob.forms:
            self.by_form.pop(form, None)
        self.open.pop(blob.blob, None)
        self.digests.discard(blob.blob)

    def drop(self, blob: Blob, form: Digest) -> None:
        """This form leads nowhere."""
        for known in (blob.forms, blob.have, blob.offered, self.by_form):
            known.pop(form, None)

    # --- forms ---

    def whole(self, blob: Blob) -> Digest | None:
        """A form of which all pieces are here."""
        return next((f for f in blob.forms if not blob.lacking(f) and not self.is_circular(blob, f)), None)

    def best_offer(self, blob: Blob, now_s: float, settle_s: float) -> Digest | None:
        """The smallest form that is offered, once it is clear that no smaller one comes."""
        offered = [form for form in blob.forms if form in blob.offered and not self.is_circular(blob, form)]
        if not offered:
            return None
        settled = now_s >= min(blob.offered[form] for form in offered) + settle_s
        return offered[0] if settled or offered[0] == next(iter(blob.forms)) else None

    def is_circular(self, blob: Blob, form: Digest) -> bool:
        """Whether the blobs that are waiting for each other's deltas would form a circle."""
        base = blob.forms[form].base
        for _ in range(len(self.open)):
            if base is None or base == blob.blob:
                break
            other = self.open.get(base)
            base = None if other is None or other.form is None else other.forms[other.form].base
        return base is not None

    def can_be_kept(self, blob: Blob) -> bool:
        """Whether the blob can be made of its form now."""
        if blob.form is None or blob.keeping or blob.lacking(blob.form):
            return False
        base = blob.forms[blob.form].base
        return base is None or base not in self.digests

    def deltas_of(self, base: Digest) -> Iterator[tuple[Blob, Digest]]:
        """Open blobs' forms that are made from this base."""
        for blob in list(self.open.values()):
            for form in [form.digest for form in blob.forms.values() if form.base == base]:
                yield blob, form


def _bases_first(wants: dict[Digest, Want]) -> Iterator[Want]:
    """The same wants, those first that others may be made from: a delta is used once its base is on its way."""
    seen: set[Digest] = set()
    for start in wants:
        path = [(start, False)]
        while path:
            digest, ready = path.pop()
            if ready:
                yield wants[digest]
            elif digest not in seen:
                seen.add(digest)
                bases = (form.base for form in wants[digest].item.others)
                path.append((digest, True))
                path += [(base, False) for base in bases if base in wants and base not in seen and base is not None]
