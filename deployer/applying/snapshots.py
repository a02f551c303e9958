"""Snapshots between hosts and the cloud's store: taken there, brought here, and sent to whichever host restores one.

Only what is missing travels, as the deltas that are stored where the other side has what they build on. What has
arrived stays, so whatever was cut off goes on where it was when it is asked for again; and a snapshot gets its name
here only once all of it is here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, NamedTuple

from agent.api.answers import Outcome, Reason, SnapshotFacts
from agent.api.calls import Envelope, RestoreVolume, SnapshotVolume
from agent.client.client import AgentClient
from agent.client.errors import BadAnswer, CallRefused, refused_because
from cas.digest import Digest
from cas.tree import (
    MAX_PAGE_BYTES,
    MAX_SNAPSHOT_BYTES,
    PIECE_BYTES,
    TreeInvalid,
    decode_snapshot,
    pieces_of,
    read_tree,
    reader,
)
from deployer.applying.incoming import Incoming
from deployer.applying.site import Site
from deployer.applying.transfer import Source, serve
from deployer.history.snapshots import Snapshots, needs_of

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
    coming = Incoming(site.store, client, partial(site.progress.transfer, client.host_name), owner=LEASE_OWNER)
    await coming.get([digest], each_bytes=MAX_SNAPSHOT_BYTES)
    snapshot = decode_snapshot(await asyncio.to_thread(reader(site.store), digest))
    if (snapshot.volume, snapshot.host) != (volume, client.host_name):
        raise TreeInvalid(f"{client.host_name} gave a snapshot of {snapshot.volume}@{snapshot.host}")
    await coming.get(snapshot.pages, each_bytes=MAX_PAGE_BYTES)
    pieces = await asyncio.to_thread(lambda: list(dict.fromkeys(pieces_of(read_tree(snapshot, reader(site.store))))))
    await coming.get(pieces, each_bytes=PIECE_BYTES)
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
