"""This cloud's store and a host's, compared as wholes and made to hold the same, whatever each of them lacks.

An apply brings hosts what a release needs. This is for the rest: a store that was lost or restored from an old backup
gets back what the hosts still have, a host is given all versions before its deployer leaves. `cas.reconcile` finds what
differs in a few questions, however much the two hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent.client.client import AgentClient
from agent.client.errors import AgentError
from cas.digest import Digest
from cas.errors import BlobMissing
from cas.interface import BlobStore, ExchangeStore
from cas.reconcile import Difference, Summary, reconcile
from deployer.applying.fleet import Fleet
from deployer.applying.incoming import Incoming
from deployer.applying.progress import Quiet
from deployer.applying.site import Site
from deployer.applying.transfer import Source, serve

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
    """Store what the host has of these, verified and kept for a week at least; the bytes that came. `tell` is called
    with (bytes that came, bytes in all, about). Raises AgentError, CasError."""
    incoming = Incoming(store, client, tell, owner=LEASE_OWNER, lease_s=LEASE_S)
    await incoming.get(digests)
    return incoming.wire_bytes


async def send(site: Site, host: str, digests: Sequence[Digest], tell: Callable[[int, int], None]) -> int:
    """Send a host what it lacks of these, in the form that costs the fewest bytes; the bytes that were sent. `tell` is
    called with (bytes sent, bytes in all). Raises AgentError, CasError."""
    told = site._replace(progress=_Told(tell))
    return (await serve(told, Source(site.store), host, tuple(digests))).wire_bytes


class HostBlobs:
    """Implements `cas.interface.BlobSource` with what some hosts have, who are asked in turn. For damaged blobs, of
    which there are few: each is a connection of its own. Blocks; not for use in an event loop."""

    def __init__(self, addresses: Mapping[str, str], credentials: Path) -> None:
        self._addresses = addresses
        self._credentials = credentials

    def contains(self, digest: Digest) -> bool:  # noqa: ARG002 (the interface's name)
        """Whoever reads finds out."""
        return True

    def read(self, digest: Digest) -> bytes:
        """Raises BlobMissing where none of them has it whole."""
        return asyncio.run(self._read(digest))

    async def _read(self, digest: Digest) -> bytes:
        async with Fleet(self._addresses, self._credentials) as fleet:
            for host in fleet.hosts:
                try:
                    return await (await fleet.client(host)).blob(digest)
                except AgentError:
                    continue
        raise BlobMissing(digest)


class _Told(Quiet):
    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell

    def transfer(self, host: str, done_bytes: int, total_bytes: int) -> None:  # noqa: ARG002 (the interface's name)
        self._tell(done_bytes, total_bytes)
