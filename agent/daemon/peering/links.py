"""Connections to other hosts, and the counting of what goes over them.

A link is made when it is first used, and few are kept. Everything that comes is taken for hostile: an answer is bounded
before it is decoded, a piece is checked before it counts, and a stream is cut off where it stalls, goes on after its
last piece, or brings one wrong byte.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

import msgspec

from agent.api.fetching import HaveAnswer, HaveQuery, PiecesQuery
from agent.api.neighbours import Neighbour
from agent.api.words import WordsAnswer, WordsQuery
from agent.client.client import PEER_TIMEOUT_S, AgentClient
from agent.client.errors import HostUnreachable
from agent.client.greetings import Greetings
from agent.daemon.peering.flows import Flow, Flows
from agent.daemon.peering.limits import PeerLimits, Throttle
from cas.digest import Digest

LINKS: Final = 64
GREETING_S: Final = 15.0
"""For a connection and its greeting, which is 5 KB: several at once take so long over a thin line."""
STALLED_S: Final = 300.0
"""Pieces of which no record has come for so long are cut off, if nobody has left them before (`cas.swarm.doubt`)."""


class Counted(msgspec.Struct):
    """What one neighbour has sent."""

    received_bytes: int = 0
    receiving_s: float = 0.0
    failures: int = 0
    banned: dict[Digest, None] = {}

    @property
    def rate_bytes_s(self) -> float:
        return self.received_bytes / self.receiving_s if self.receiving_s else 0.0


class Links:
    """The links of one host. Use from one event loop; `close` at the end."""

    def __init__(
        self,
        credentials: Path,
        limits: PeerLimits,
        now_s: Callable[[], float],
        *,
        stalled_s: float = PEER_TIMEOUT_S,
    ) -> None:
        self._credentials = credentials
        self._now_s = now_s
        self._stalled_s = stalled_s
        self._throttle = Throttle(limits, now_s)
        self._clients: OrderedDict[Neighbour, asyncio.Task[AgentClient]] = OrderedDict()
        self._in_use: dict[Neighbour, int] = {}
        self.counted: dict[str, Counted] = {}
        self._flows = Flows()
        self.greetings = Greetings(GREETING_S)
        self.moved_s = float("-inf")
        """When bytes of any answer came last, whoever waits for it."""

    async def close(self) -> None:
        while self._clients:
            await self._end(next(iter(self._clients)))

    def of(self, peer: str) -> Counted:
        return self.counted.setdefault(peer, Counted())

    async def have(self, neighbour: Neighbour, query: HaveQuery) -> HaveAnswer:
        """Raises AgentError."""
        client = await self._client(neighbour)
        try:
            return await client.have(query)
        finally:
            self._leave(neighbour)

    async def words(self, neighbour: Neighbour, query: WordsQuery) -> WordsAnswer:
        """Raises AgentError."""
        client = await self._client(neighbour)
        try:
            return await client.words(query)
        finally:
            self._leave(neighbour)

    def begin(self, neighbour: Neighbour, size_bytes: int) -> Flow:
        """An answer of so many bytes is about to come."""
        return self._flows.begin(size_bytes, lambda: self._received_bytes(neighbour))

    def _received_bytes(self, neighbour: Neighbour) -> int | None:
        client = self._clients.get(neighbour)
        if client is None or not client.done() or client.cancelled() or client.exception():
            return None
        return client.result().received_bytes()

    async def pieces(
        self, neighbour: Neighbour, query: PiecesQuery, sizes: list[int], taken: Callable[[int], None]
    ) -> AsyncGenerator[bytes, None]:
        """The pieces asked for, each of the size given for it, as long as the neighbour has them; `taken` is told of
        all bytes as they come. Raises AgentError, HostUnreachable also where the stream stalls, ends inside a piece or
        does not end."""
        client = await self._client(neighbour)
        try:
            held = bytearray()
            places = iter(sizes)
            size = next(places, 0)
            async with aclosing(client.pieces(query, stalled_s=STALLED_S)) as parts:
                began_s = self._now_s()
                async for part in parts:
                    now_s = self._now_s()
                    self.count(neighbour.host, len(part), now_s - began_s)
                    taken(len(part))
                    await self._throttle.take(neighbour.host, len(part))
                    held += part
                    while size and len(held) >= size:
                        yield bytes(held[:size])
                        del held[:size]
                        size = next(places, 0)
                    if held and not size:
                        raise HostUnreachable(f"{neighbour.host} sends more than it was asked for")
                    began_s = self._now_s()
            if held:
                raise HostUnreachable(f"{neighbour.host} ended in the middle of a piece")
        finally:
            self._leave(neighbour)

    async def blob(self, neighbour: Neighbour, digest: Digest) -> AsyncGenerator[bytes, None]:
        """The bytes of a whole blob, unchecked and without bound. Raises AgentError."""
        client = await self._client(neighbour)
        try:
            async with aclosing(client.blob_of_peer(digest, stalled_s=self._stalled_s)) as parts:
                began_s = self._now_s()
                async for part in parts:
                    self.count(neighbour.host, len(part), self._now_s() - began_s)
                    await self._throttle.take(neighbour.host, len(part))
                    yield part
                    began_s = self._now_s()
        finally:
            self._leave(neighbour)

    def count(self, peer: str, count: int, waited_s: float) -> None:
        counted = self.of(peer)
        counted.received_bytes += count
        counted.receiving_s += waited_s

    # --- connections ---

    async def _client(self, neighbour: Neighbour) -> AgentClient:
        self._in_use[neighbour] = self._in_use.get(neighbour, 0) + 1
        try:
            if neighbour not in self._clients:
                made = AgentClient(neighbour.host, neighbour.address, self._credentials, greetings=self.greetings)
                self._clients[neighbour] = asyncio.ensure_future(made.__aenter__())
                for idle in [other for other in self._clients if other not in self._in_use][: self._surplus()]:
                    await self._end(idle)
            self._clients.move_to_end(neighbour)
            return await asyncio.shield(self._clients[neighbour])
        except BaseException:
            self._clients.pop(neighbour, None)
            self._leave(neighbour)
            raise

    def _surplus(self) -> int:
        return max(0, len(self._clients) - LINKS)

    def _leave(self, neighbour: Neighbour) -> None:
        self._in_use[neighbour] -= 1
        if not self._in_use[neighbour]:
            del self._in_use[neighbour]

    async def _end(self, neighbour: Neighbour) -> None:
        task = self._clients.pop(neighbour)
        (client,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(client, AgentClient):
            await client.__aexit__(None, None, None)
