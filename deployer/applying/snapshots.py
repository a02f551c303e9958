"""Snapshots between hosts and the cloud's store: taken there, brought here, and sent to whichever host restores one.

Only what is missing travels, as the deltas that are stored where the other side has what they build on. What has
arrived stays, so whatever was cut off goes on where it was when it is asked for again; and a snapshot gets its name
here only once all of it is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from agent.api import BlobsWanted, Envelope, Outcome, Reason, RestoreVolume, SnapshotFacts, SnapshotVolume
from agent.client import AgentClient, BadAnswer, CallRefused, HostUnreachable, refused_because
from cas.digest import Digest
from cas.errors import ExchangeError
from cas.exchange import Receiver
from cas.tree import TreeInvalid, decode_snapshot, pieces_of, read_tree
from deployer.applying.site import Site
from deployer.applying.transfer import Source, serve
from deployer.history.snapshots import Snapshots, needs_of

QUESTION_BLOBS: Final = 10_000
TRIES: Final = 3
WAIT_S: Final = 0.5
LEASE_S: Final = 86400.0
LEASE_OWNER: Final = "snapshot"


class Brought(NamedTuple):
    """A snapshot that is in the cloud's store."""

    facts: SnapshotFacts
    blobs: int
    """That came for it."""
    wire_bytes: int


async def take(site: Site, host: str, call: SnapshotVolume) -> Brought:
    """Have a host take a snapshot, bring it here and keep it. Raises AgentError, CasError."""
    client = await site.fleet.client(host)
    outcome = await client.call(Envelope(call, by=site.by))
    if not isinstance(outcome.snapshot, SnapshotFacts):
        raise BadAnswer(f"{host} took a snapshot of {call.volume} and did not say which")
    facts = outcome.snapshot
    blobs, wire_bytes = await bring(site, client, call.volume, facts.snapshot)
    await asyncio.to_thread(Snapshots(site.store, site.ref).name, facts.snapshot)
    return Brought(facts, blobs, wire_bytes)


async def bring(site: Site, client: AgentClient, volume: str, digest: Digest) -> tuple[int, int]:
    """Everything of a snapshot into the store; how many blobs came, and bytes over the wire. Raises AgentError,
    CasError."""
    coming = _Coming(site, client)
    await coming.get([digest])
    snapshot = decode_snapshot(await asyncio.to_thread(site.store.read, digest))
    if (snapshot.volume, snapshot.host) != (volume, client.host_name):
        raise TreeInvalid(f"{client.host_name} gave a snapshot of {snapshot.volume}@{snapshot.host}")
    await coming.get(snapshot.pages)
    pieces = await asyncio.to_thread(lambda: list(dict.fromkeys(pieces_of(read_tree(snapshot, site.store.read)))))
    await coming.get(pieces)
    return coming.blobs, coming.wire_bytes


async def restore(site: Site, host: str, call: RestoreVolume) -> tuple[Outcome, int]:
    """Have a host make a volume of a snapshot that is here, and send it what it lacks of it; the bytes that were sent.
    It is asked before, so that nothing is sent in vain. Raises AgentError, CasError."""
    client = await site.fleet.client(host)
    envelope = Envelope(call, by=site.by)
    try:
        return await client.call(envelope), 0
    except CallRefused as error:
        if not refused_because(error, Reason.MISSING_BLOBS):
            raise
    wanted = await asyncio.to_thread(needs_of, site.store, call.snapshot)
    receipt = await serve(site, Source(site.store), host, tuple(sorted(wanted)))
    return await client.call(envelope), receipt.wire_bytes


class _Coming:
    """Blobs on their way from one host."""

    def __init__(self, site: Site, client: AgentClient) -> None:
        self._site = site
        self._store = site.store
        self._client = client
        self.blobs = 0
        self.wire_bytes = 0

    async def get(self, wanted: Sequence[Digest]) -> None:
        """Until nothing of these is missing here, from what is missing by then each time."""
        for attempt in range(1, TRIES + 1):
            try:
                await self._try(wanted)
                return
            except (HostUnreachable, ExchangeError):  # cut off, or the host has encoded something anew meanwhile
                if attempt == TRIES:
                    raise
                await asyncio.sleep(WAIT_S * 2 ** (attempt - 1))

    async def _try(self, wanted: Sequence[Digest]) -> None:
        await asyncio.to_thread(self._store.lease, wanted, owner=LEASE_OWNER, ttl_s=LEASE_S)
        missing = await asyncio.to_thread(self._store.missing, wanted)
        parts = [tuple(missing[at : at + QUESTION_BLOBS]) for at in range(0, len(missing), QUESTION_BLOBS)]
        orders = [await self._order(part) for part in parts]
        total = self.wire_bytes + sum(size for _, size in orders)
        await asyncio.to_thread(self._store.ensure_room, total - self.wire_bytes)
        for order, _ in orders:
            await self._receive(order, total)

    async def _order(self, part: tuple[Digest, ...]) -> tuple[BlobsWanted, int]:
        """With the bases that are here, and about how many bytes will come."""
        offer = await self._client.offer(BlobsWanted(part))
        absent = set(await asyncio.to_thread(self._store.missing, offer.bases))
        bases = tuple(base for base in offer.bases if base not in absent)
        order = BlobsWanted(part, bases)
        return order, (await self._client.offer(order)).bytes if bases else offer.bytes

    async def _receive(self, order: BlobsWanted, total: int) -> None:
        with Receiver(self._store) as receiver:
            before = self.wire_bytes
            try:
                async for chunk in self._client.take(order):
                    await asyncio.to_thread(receiver.feed, chunk)
                    self.wire_bytes = before + receiver.wire_bytes
                    self._site.progress.transfer(self._client.host_name, self.wire_bytes, max(total, self.wire_bytes))
                received = await asyncio.to_thread(receiver.finish)
            finally:
                await asyncio.to_thread(receiver.close)
            self.blobs += received.blobs
