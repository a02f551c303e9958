"""This cloud's store and a host's, compared as wholes and made to hold the same, whatever each of them lacks.

An apply brings hosts what a release needs. This is for the rest: a store that was lost or restored from an old backup
gets back what the hosts still have, a host is given all versions before its deployer leaves. `cas.reconcile` finds what
differs in a few questions, however much the two hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple

from agent.client import AgentClient
from cas.digest import Digest
from cas.interface import BlobStore, ExchangeStore
from cas.reconcile import Difference, Summary, reconcile
from deployer.applying.fleet import for_each
from deployer.applying.progress import Quiet
from deployer.applying.site import Site
from deployer.applying.transfer import Source, serve

AT_ONCE: Final = 8
GATHER_BYTES: Final = 8 << 20
"""So much is stored in one go; what is larger, alone."""
LEASE_OWNER: Final = "sync"
LEASE_S: Final = 7 * 86400.0
"""What comes from a host is kept for so long at least, like what was pushed."""


class Compared(NamedTuple):
    """What only one of two stores has, and what it took to find out."""

    theirs: list[Digest]
    ours: list[Digest]
    round_trips: int
    wire_bytes: int
    """Of questions and answers."""


async def compare(store: BlobStore, client: AgentClient) -> Compared:
    """Raises AgentError, and ExchangeError for an answer that no honest host would give."""
    summary = await asyncio.to_thread(lambda: Summary(store.digests()))
    conversation = reconcile(summary)
    round_trips = wire_bytes = 0
    said = await asyncio.to_thread(_go_on, conversation, None)
    while not isinstance(said, Difference):
        answers = await asyncio.gather(*(client.reconcile(question) for question in said))
        round_trips += 1
        wire_bytes += sum(map(len, [*said, *answers]))
        said = await asyncio.to_thread(_go_on, conversation, list(answers))
    return Compared(said.theirs, said.ours, round_trips, wire_bytes)


def _go_on(
    conversation: Generator[list[bytes], list[bytes], Difference], answers: list[bytes] | None
) -> list[bytes] | Difference:
    """The questions of the next round trip, or what was found out."""
    try:
        return next(conversation) if answers is None else conversation.send(answers)
    except StopIteration as ended:
        found: Difference = ended.value
        return found


async def bring(
    store: ExchangeStore, client: AgentClient, digests: Sequence[Digest], tell: Callable[[int, int], None]
) -> int:
    """Store what the host has of these, each blob verified and leased; the bytes that came. `tell` is called with
    (blobs done, blobs in all). What has come stays, whatever happens to the rest. Raises AgentError, StoreFull."""
    gathered: list[bytes] = []
    done = came_bytes = 0

    async def one(digest: Digest) -> None:
        nonlocal came_bytes
        data = await client.blob(digest)
        gathered.append(data)
        came_bytes += len(data)
        if sum(map(len, gathered)) >= GATHER_BYTES:
            await keep()

    async def keep() -> None:
        nonlocal done
        whole = gathered.copy()
        gathered.clear()
        if whole:
            await asyncio.to_thread(store.put_many, whole, lease_owner=LEASE_OWNER, ttl_s=LEASE_S)
            done += len(whole)
            tell(done, len(digests))

    try:
        await for_each(digests, one, at_once=AT_ONCE)
    finally:
        await keep()
    return came_bytes


async def send(site: Site, host: str, digests: Sequence[Digest], tell: Callable[[int, int], None]) -> int:
    """Send a host what it lacks of these, in the form that costs the fewest bytes; the bytes that were sent. `tell` is
    called with (bytes sent, bytes in all). Raises AgentError, CasError."""
    told = site._replace(progress=_Told(tell))
    return (await serve(told, Source(site.store), host, tuple(digests))).wire_bytes


class _Told(Quiet):
    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell

    def transfer(self, host: str, done_bytes: int, total_bytes: int) -> None:  # noqa: ARG002 (the interface's name)
        self._tell(done_bytes, total_bytes)
