"""What another host may ask: which pieces are here, and to have them. Nothing else, and never more than its share.

A question that waits for news holds no thread and looks again when something has arrived; each host may have a few.
Pieces go out as one stream, as fast as the limits and the receiver allow; who does not take them is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

from agent.api.answers import Reason
from agent.api.fetching import FormAsked, HaveAnswer, HaveQuery, PiecesQuery
from agent.daemon.peering.limits import QUESTIONS, QUESTIONS_FROM_EACH, PeerLimits, Places, Throttle
from agent.daemon.peering.shelf import Shelf
from agent.daemon.refusal import Refused
from cas.digest import Digest
from cas.interface import BlobStore
from cas.manifest import PIECE_BYTES, pieces_in
from cas.swarm.messages import pack_pieces, unpack_pieces

LOOK_AGAIN_S: Final = 0.5
"""What arrives in other ways than piece by piece is noticed so late at most."""
AT_LEAST_S: Final = 0.02
"""So often a question is looked at while pieces arrive."""


class News:
    """Something has arrived. Use from one event loop."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def tell(self) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def wait(self, within_s: float) -> None:
        """Until the next, or for so long."""
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._next], timeout=within_s)


class Giving:
    """The side that is asked."""

    def __init__(
        self, store: BlobStore, shelf: Shelf, news: News, limits: PeerLimits, now_s: Callable[[], float]
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._news = news
        self._now_s = now_s
        self._throttle = Throttle(limits, now_s)
        self._answers = Places(limits.answers, limits.answers_for_each)
        self._questions = Places(QUESTIONS, QUESTIONS_FROM_EACH)
        self._closing = False
        self.sent_bytes: dict[str, int] = {}

    def close(self) -> None:
        """Answer the questions that wait for news."""
        self._closing = True
        self._news.tell()

    async def have(self, peer: str, query: HaveQuery) -> HaveAnswer:
        """Raises Refused."""
        if len(query.news) != len(query.forms):
            raise Refused(Reason.BAD_REQUEST, "a question about forms says for each which pieces would be news")
        try:
            news = [
                unpack_pieces(wanted, pieces_in(asked.size))
                for asked, wanted in zip(query.forms, query.news, strict=True)
            ]
        except ValueError as error:
            raise Refused(Reason.BAD_REQUEST, str(error)) from error
        async with self._questions.place(peer):
            return await self._wait_for(query.forms, news, self._now_s() + query.wait_s)

    async def _wait_for(self, forms: tuple[FormAsked, ...], news: list[int], until_s: float) -> HaveAnswer:
        while True:
            held = await asyncio.to_thread(lambda: [self._shelf.held(asked) for asked in forms])
            looked_s = self._now_s()
            if (
                self._closing
                or looked_s >= until_s
                or any(here & wanted for here, wanted in zip(held, news, strict=True))
            ):
                break
            while (left_s := min(until_s, looked_s + LOOK_AGAIN_S) - self._now_s()) > 0:
                await self._news.wait(left_s)
                if self._closing or any(
                    self._shelf.arriving(asked) & wanted for asked, wanted in zip(forms, news, strict=True)
                ):
                    break
                await asyncio.sleep(AT_LEAST_S)
        found = {
            place: pack_pieces(here, pieces_in(asked.size))
            for place, (asked, here) in enumerate(zip(forms, held, strict=True))
            if here or not asked.size
        }
        return HaveAnswer(found)

    async def pieces(self, peer: str, query: PiecesQuery) -> AsyncGenerator[bytes, None]:
        """Raises Refused."""
        if any(part.form >= len(query.forms) for part in query.parts):
            raise Refused(Reason.BAD_REQUEST, "a part of a form that the question does not name")
        async with self._answers.place(peer):
            for part in query.parts:
                asked = query.forms[part.form]
                for index in range(part.first, part.first + part.count):
                    piece = await asyncio.to_thread(self._shelf.read, asked, index)
                    if piece is None:
                        return
                    yield await self._passed(peer, piece)

    async def blob(self, peer: str, digest: Digest) -> AsyncGenerator[bytes, None]:
        """A whole blob, for a host whose own copy is damaged. Raises Refused, BlobMissing, BlobDamaged; after an error
        the last piece has not been given out."""
        async with self._answers.place(peer):
            chunks = self._store.stream(digest)
            while chunk := await asyncio.to_thread(next, chunks, b""):
                for start in range(0, len(chunk), PIECE_BYTES):
                    yield await self._passed(peer, chunk[start : start + PIECE_BYTES])

    async def _passed(self, peer: str, piece: bytes) -> bytes:
        await self._throttle.take(peer, len(piece))
        self.sent_bytes[peer] = self.sent_bytes.get(peer, 0) + len(piece)
        return piece
