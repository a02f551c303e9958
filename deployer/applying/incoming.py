"""Blobs from one host into the cloud's store: what an apply does, the other way round.

Only what is missing comes, as the deltas that the host stores where their bases are here. What has arrived stays, so
what was cut off goes on where it was. A host that sends more than what was asked of it can be is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from agent.api.blobs import BlobsWanted
from agent.client.client import AgentClient
from agent.client.errors import BadAnswer, HostUnreachable
from cas.digest import Digest
from cas.errors import ExchangeError
from cas.exchange import Receiver
from cas.interface import ExchangeStore
from cas.wire import MAX_BLOB_BYTES

QUESTION_BLOBS: Final = 10_000
TRIES: Final = 3
WAIT_S: Final = 0.5
LEASE_S: Final = 86400.0
AROUND_BYTES: Final = 1024
"""What travels with a blob, at most."""
ON_THE_WAY: Final = 2
"""A blob that leads to another one by a delta comes with it; so many times as much may come as was asked for."""


class Incoming:
    """Blobs on their way from one host, leased to `owner` before they come. `tell` is called with bytes that came, and
    about how many there are in all."""

    def __init__(
        self,
        store: ExchangeStore,
        client: AgentClient,
        tell: Callable[[int, int], None],
        *,
        owner: str,
        lease_s: float = LEASE_S,
    ) -> None:
        self._store = store
        self._client = client
        self._tell = tell
        self._owner = owner
        self._lease_s = lease_s
        self.blobs = 0
        self.wire_bytes = 0

    async def get(self, wanted: Sequence[Digest], *, each_bytes: int = MAX_BLOB_BYTES) -> None:
        """Until nothing of these is missing here, from what is missing by then each time. `each_bytes`: none is larger.
        Raises AgentError, CasError."""
        for attempt in range(1, TRIES + 1):
            try:
                await self._try(wanted, each_bytes)
                return
            except (HostUnreachable, ExchangeError):  # cut off, or the host has encoded something anew meanwhile
                if attempt == TRIES:
                    raise
                await asyncio.sleep(WAIT_S * 2 ** (attempt - 1))

    async def _try(self, wanted: Sequence[Digest], each_bytes: int) -> None:
        await asyncio.to_thread(self._store.lease, wanted, owner=self._owner, ttl_s=self._lease_s)
        missing = await asyncio.to_thread(self._store.missing, wanted)
        parts = [tuple(missing[at : at + QUESTION_BLOBS]) for at in range(0, len(missing), QUESTION_BLOBS)]
        orders = [await self._order(part) for part in parts]
        total = self.wire_bytes + sum(size for _, size in orders)
        await asyncio.to_thread(self._store.ensure_room, total - self.wire_bytes)
        for order, _ in orders:
            await self._receive(order, total, ON_THE_WAY * len(order.want) * (each_bytes + AROUND_BYTES))

    async def _order(self, part: tuple[Digest, ...]) -> tuple[BlobsWanted, int]:
        """With the bases that are here, and about how many bytes will come."""
        offer = await self._client.offer(BlobsWanted(part))
        absent = set(await asyncio.to_thread(self._store.missing, offer.bases))
        bases = tuple(base for base in offer.bases if base not in absent)
        order = BlobsWanted(part, bases)
        return order, (await self._client.offer(order)).bytes if bases else offer.bytes

    async def _receive(self, order: BlobsWanted, total: int, most: int) -> None:
        with Receiver(self._store) as receiver:
            before = self.wire_bytes
            try:
                async for chunk in self._client.take(order):
                    await asyncio.to_thread(receiver.feed, chunk)
                    self.wire_bytes = before + receiver.wire_bytes
                    if receiver.wire_bytes > most:
                        raise BadAnswer(
                            f"{self._client.host_name} sends more than the {len(order.want)} blobs can have"
                        )
                    self._tell(self.wire_bytes, max(total, self.wire_bytes))
                received = await asyncio.to_thread(receiver.finish)
            finally:
                await asyncio.to_thread(receiver.close)
            self.blobs += received.blobs
