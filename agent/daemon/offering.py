"""Giving blobs to an operator: many in one stream, each in the form that costs the fewest bytes, as hosts are sent
them.

What a host has and nobody else, such as the snapshots of its volumes, leaves it this way.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from agent import tls
from agent.api.blobs import BlobOffer, BlobsWanted
from agent.api.routes import Routes
from agent.daemon.peering.routes import stream
from agent.daemon.server import LEASE_OWNER, MAX_QUERY_BYTES, Route, answer, decode, read_body
from agent.daemon.uploads import Uploads
from agent.streaming import in_thread
from cas.exchange import bases_of, cost, frames
from cas.interface import ExchangeStore

LEASE_S: Final = 3600.0
MAX_BASES: Final = 100_000
PLACES: Final = 8


class OfferRoutes:
    """The routes of one host's store."""

    def __init__(self, store: ExchangeStore) -> None:
        self._store = store
        self._places = Uploads(places=PLACES)

    def table(self) -> tuple[Route, ...]:
        return (
            ("POST", Routes.BLOBS_OFFER, self._offer, (tls.OPERATOR,)),
            ("POST", Routes.BLOBS_TAKE, self._send, (tls.OPERATOR,)),
        )

    async def _offer(self, request: web.Request) -> web.Response:
        wanted = decode(await read_body(request, MAX_QUERY_BYTES), BlobsWanted)
        return answer(await asyncio.to_thread(self._reckon, wanted))

    def _reckon(self, wanted: BlobsWanted) -> BlobOffer:
        self._store.lease(wanted.want, owner=LEASE_OWNER, ttl_s=LEASE_S)
        bases = bases_of(self._store, wanted.want)
        return BlobOffer(bases[:MAX_BASES], cost(self._store, wanted.want, wanted.bases))

    async def _send(self, request: web.Request) -> web.StreamResponse:
        wanted = decode(await read_body(request, MAX_QUERY_BYTES), BlobsWanted)
        async with self._places.place():
            return await stream(request, in_thread(frames(self._store, wanted.want, wanted.bases)))
