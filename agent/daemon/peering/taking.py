"""What an operator brings of large blobs: pieces of their forms, which can be handed on while the rest still arrives.

Every piece is checked against the inventory's manifest before it is in the spool, and so before any neighbour can have
it. A form whose pieces are all there becomes its blob while the next form arrives; the answer comes when all of them
are durable. What had arrived before a stream broke off stays in the spool for a while, and need not be sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, NamedTuple

from agent.api.answers import Reason
from agent.api.blobs import BlobReceipt
from agent.api.fetching import PiecesOffer
from agent.daemon.peering.forms import Forms
from agent.daemon.refusal import Refused
from cas.digest import Digest
from cas.errors import BlobMissing
from cas.interface import ExchangeStore
from cas.manifest import Manifest
from cas.partial import Spool

MOVING_S: Final = 5.0
"""What has brought no piece for so long may have been given up by its sender."""


class _Part(NamedTuple):
    """Consecutive pieces of a form."""

    form: Digest
    manifest: Manifest
    first: int
    end: int
    is_last: bool
    """Of those that are offered of its form."""


class Taking:
    """The side that takes. `tell` is called when there is something new to hand on, `changed` when something else is
    under way than before."""

    def __init__(
        self,
        store: ExchangeStore,
        spool: Spool,
        tell: Callable[[], None],
        changed: Callable[[], None] = lambda: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._spool = spool
        self._tell = tell
        self._changed = changed
        self._now_s = now_s
        self._under_way: dict[int, frozenset[Digest]] = {}
        self._moved_s: dict[int, float] = {}
        """By offer, when a piece of it came last."""
        self._offers = 0

    @property
    def under_way(self) -> frozenset[Digest]:
        """The forms that are being brought now."""
        return frozenset().union(*self._under_way.values())

    @property
    def moving(self) -> frozenset[Digest]:
        """Those of which pieces have come lately: nobody else need be asked for them."""
        since_s = self._now_s() - MOVING_S
        return frozenset().union(*(self._under_way[offer] for offer, at_s in self._moved_s.items() if at_s > since_s))

    async def take(self, offer: PiecesOffer, forms: Forms, parts: AsyncIterator[bytes]) -> BlobReceipt:
        """Take what is offered of these forms. Raises Refused, StoreFull, StoreBusy, CasError; what was sound until
        then stays."""
        self._offers += 1
        number = self._offers
        self._under_way[number] = frozenset(offer.forms)
        self._moved_s[number] = self._now_s()
        self._changed()
        try:
            offered = await asyncio.to_thread(_offered, offer, forms)
            whole: asyncio.Queue[Digest | None] = asyncio.Queue()
            keeping = asyncio.create_task(self._keep_all(forms, whole))
            try:
                wire_bytes = 0
                async with aclosing(self._take_pieces(offer, forms, offered, parts, whole)) as written:
                    async for size in written:
                        wire_bytes += size
                        self._moved_s[number] = self._now_s()
                        if keeping.done():
                            break  # it has failed
                whole.put_nowait(None)
                kept = await keeping
            finally:
                keeping.cancel()
        finally:
            del self._under_way[number], self._moved_s[number]
            self._changed()
        return BlobReceipt(len(kept), wire_bytes, sum(map(forms.raw_bytes, kept)))

    async def _take_pieces(
        self,
        offer: PiecesOffer,
        forms: Forms,
        offered: list[_Part],
        parts: AsyncIterator[bytes],
        whole: asyncio.Queue[Digest | None],
    ) -> AsyncGenerator[int, None]:
        """The sizes of the pieces as they are written. Forms that have come are put into `whole` in the order of the
        offer."""
        coming = {part.form for part in offered}
        waiting = deque(offer.forms)

        def put_those_that_came() -> None:
            while waiting and waiting[0] not in coming:
                whole.put_nowait(waiting.popleft())

        put_those_that_came()  # of some all pieces were here before
        held = bytearray()
        for part in offered:
            for index in range(part.first, part.end):
                size = part.manifest.length(index)
                while len(held) < size:
                    more = await anext(parts, b"")
                    if not more:
                        raise Refused(Reason.BAD_REQUEST, "the stream of pieces ended before its last one")
                    held += more
                await asyncio.to_thread(self._write, forms, part.form, index, bytes(held[:size]))
                del held[:size]
                self._tell()
                yield size
            if part.is_last:
                coming.discard(part.form)
                put_those_that_came()
        rest = await anext(parts, b"")
        if held or rest:
            raise Refused(Reason.BAD_REQUEST, "the stream of pieces goes on after its last one")

    def _write(self, forms: Forms, name: Digest, index: int, data: bytes) -> None:
        try:
            sound = self._spool.write(name, index, data)
        except BlobMissing:
            if self._store.missing([forms.blob(name)]):
                raise
            return  # the blob has come from a neighbour meanwhile
        if not sound:
            raise Refused(Reason.BAD_BLOB, f"piece {index} of {name} is not what the inventory says")

    async def _keep_all(self, forms: Forms, whole: asyncio.Queue[Digest | None]) -> list[Digest]:
        """Make blobs of these forms, in this order, so that a patch may follow its base. Those of which the blob is
        here now."""
        kept: list[Digest] = []
        while (name := await whole.get()) is not None:
            if await asyncio.to_thread(self._keep, forms, name):
                kept.append(name)
                self._tell()
        return kept

    def _keep(self, forms: Forms, name: Digest) -> bool:
        if not self._store.missing([forms.blob(name)]):
            self._spool.drop(name)
        elif forms.is_whole(name):
            forms.keep(name)
        else:
            return False
        return True


class Exactly:
    """Parts of a stream, of which so many bytes may be taken first. What is left goes on as it came."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self._held = b""

    async def read(self, count: int) -> bytes:
        """Raises Refused where the stream ends before."""
        found = bytearray()
        while len(found) < count:
            if not (part := await anext(self._parts, b"")):
                raise Refused(Reason.BAD_REQUEST, "the body ended before the blobs that it brings first")
            found += part
        self._held = bytes(found[count:])
        return bytes(found[:count])

    def __aiter__(self) -> Exactly:
        return self

    async def __anext__(self) -> bytes:
        if self._held:
            held, self._held = self._held, b""
            return held
        return await anext(self._parts)


def _offered(offer: PiecesOffer, forms: Forms) -> list[_Part]:
    """What is to come, in order; every form is begun, so that there is room for all of them. Raises Refused,
    StoreFull."""
    manifests = [forms.begin(name) for name in offer.forms]
    last = {part.form: place for place, part in enumerate(offer.parts)}
    ends = dict.fromkeys(last, 0)
    found: list[_Part] = []
    for place, part in enumerate(offer.parts):
        if part.form >= len(offer.forms):
            raise Refused(Reason.BAD_REQUEST, "a part of a form that the offer does not name")
        name, manifest, end = offer.forms[part.form], manifests[part.form], part.first + part.count
        if part.first < ends[part.form] or end > len(manifest.pieces):
            raise Refused(Reason.BAD_REQUEST, f"the parts of {name} are not in order, or more than it has")
        ends[part.form] = end
        found.append(_Part(name, manifest, part.first, end, last[part.form] == place))
    return found
