"""A blob from any neighbour that has it, for the store that found its own copy damaged or gone.

No inventory is needed: the size is bounded, and nothing is kept that the blob's name does not say. A neighbour that
sends something else is left out for this blob.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from typing import Final

from blake3 import blake3

from agent.api.neighbours import Neighbour
from agent.client.errors import AgentError, HostUnreachable
from agent.daemon.peering.acquaintance import Acquaintance
from agent.daemon.peering.links import Links
from cas.check import REPAIR_BYTES
from cas.digest import Digest, from_raw, short
from cas.errors import BlobMissing

ASKED: Final = 16
"""So many neighbours are asked for one blob, those of the same region first."""
WITHIN_S: Final = 120.0
LEFT_S: Final = 60.0
"""A neighbour that does not answer, or does not end, is asked for nothing more for so long."""

_log = logging.getLogger(__name__)


class Rescue:
    """Where a host gets a blob from that it should have."""

    def __init__(self, acquaintance: Acquaintance, links: Links, now_s: Callable[[], float]) -> None:
        self._acquaintance = acquaintance
        self._links = links
        self._now_s = now_s
        self._left_until_s: dict[str, float] = {}

    async def fetch(self, digest: Digest, *, max_bytes: int = REPAIR_BYTES) -> bytes:
        """The blob, verified. Raises BlobMissing where no neighbour gives it."""
        for neighbour in self._nearest(digest):
            if digest in self._links.of(neighbour.host).banned or self._is_left(neighbour.host):
                continue
            try:
                async with asyncio.timeout(WITHIN_S):
                    data = await self._take(neighbour, digest, max_bytes)
            except (AgentError, TimeoutError) as error:
                _log.info("%s does not give %s: %s", neighbour.host, short(digest), error)
                if isinstance(error, HostUnreachable | TimeoutError):
                    self._links.of(neighbour.host).failures += 1
                    self._left_until_s[neighbour.host] = self._now_s() + LEFT_S
                continue
            if data is not None:
                return data
        raise BlobMissing(digest)

    def _is_left(self, host: str) -> bool:
        return self._now_s() < self._left_until_s.get(host, float("-inf"))

    async def _take(self, neighbour: Neighbour, digest: Digest, max_bytes: int) -> bytes | None:
        hasher, held = blake3(), bytearray()
        async for part in self._links.blob(neighbour, digest):
            hasher.update(part)
            held += part
            if len(held) > max_bytes:
                break
        if from_raw(hasher.digest()) == digest:
            return bytes(held)
        self._links.of(neighbour.host).banned[digest] = None
        _log.warning("%s has sent other bytes for %s and is not asked for it again", neighbour.host, digest)
        return None

    def _nearest(self, digest: Digest) -> Iterable[Neighbour]:
        """In an order that differs from blob to blob, so that no neighbour is asked for all."""
        region = self._acquaintance.region
        ranked = sorted(
            self._acquaintance.others,
            key=lambda other: (other.region != region, blake3(f"{digest} {other.host}".encode()).digest()),
        )
        return ranked[:ASKED]


class Waiting:
    """The same for a thread: a `BlobSource` for `Store.check`. Make it in the event loop, use it outside of it."""

    def __init__(self, rescue: Rescue) -> None:
        self._rescue = rescue
        self._loop = asyncio.get_running_loop()

    def contains(self, digest: Digest) -> bool:
        del digest
        return True  # only asking tells

    def read(self, digest: Digest) -> bytes:
        """Raises BlobMissing."""
        asked = asyncio.run_coroutine_threadsafe(self._rescue.fetch(digest), self._loop)
        try:
            return asked.result(ASKED * WITHIN_S)
        except (TimeoutError, CancelledError) as error:  # the agent ends
            raise BlobMissing(digest) from error
