"""Answering questions about which blobs are here (`cas.reconcile`), for who compares a whole store with this one.

A conversation is a few questions in a row about one state of the store: the list is taken with the first of them, and
kept until none has come for `KEPT_S`, because taking it costs a look at every digest. What comes or goes meanwhile is
not in it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cas import reconcile
from cas.interface import BlobStore
from cas.reconcile import Summary

KEPT_S: Final = 30.0
"""40 bytes for each blob, for so long."""


class Reconciling:
    """The side that answers. Use from one event loop."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._summary: Summary | None = None
        self._taking = asyncio.Lock()
        self._dropping: asyncio.TimerHandle | None = None

    async def answer(self, question: bytes) -> bytes:
        """Raises ExchangeError for what nobody would ask."""
        async with self._taking:
            summary = self._summary
            if summary is None or reconcile.is_first(question):
                summary = self._summary = None  # Not two at a time.
                summary = self._summary = await asyncio.to_thread(lambda: Summary(self._store.digests()))
            self._keep()
        return await asyncio.to_thread(reconcile.answer, summary, question)

    def _keep(self) -> None:
        if self._dropping is not None:
            self._dropping.cancel()
        self._dropping = asyncio.get_running_loop().call_later(KEPT_S, self._drop)

    def _drop(self) -> None:
        self._summary = None
