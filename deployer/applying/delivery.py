"""What all that brings blobs to the hosts of one plan shares: what was brought to whom, and who could not be served.

`serve` sends a host what it lacks and notes what came of it; it never raises for what a host answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from agent.api.blobs import BlobReceipt
from agent.api.fetching import Fetched, Party
from agent.api.neighbours import Acquaint
from agent.client.errors import AgentError, HostSilent
from cas.digest import Digest
from cas.errors import CasError
from cas.inventory import Form, Inventory, Item
from deployer.applying.outcome import Brought
from deployer.applying.pieces import ByPieces
from deployer.applying.site import Site
from deployer.applying.slowness import Pace
from deployer.applying.transfer import HOSTS_AT_ONCE, TRIES, Lack, Meter, Send, Source, send_stream, serve
from deployer.language.schema import Definition

FAR_SMALLER: Final = 8
"""Where a delta has no more than this part of a blob, nobody is told how to check the whole."""


class Delivery:
    """Mutable. `acquaint`: what hosts are told of their neighbours when they are asked; None where they have been
    told."""

    def __init__(
        self,
        site: Site,
        blobs: Mapping[str, Sequence[Digest]],
        definition: Definition,
        inventory: Digest,
        listed: Inventory,
        acquaint: Acquaint | None,
    ) -> None:
        self.site = site
        self.blobs = blobs
        self.definition = definition
        self.inventory = inventory
        self.items = listed.by_blob()
        self.acquaint = acquaint
        self.source = Source(site.store)
        self.by_pieces = ByPieces(inventory, self.items)
        self.slow: set[str] = set()
        """Hosts that bring in no more than they have."""
        self.paces: dict[str, Pace] = {}
        """Of hosts that bring something in, or did."""
        self.brought: dict[str, Brought] = {}
        self.failures: dict[str, str] = {}
        self.silent: set[str] = set()
        """Of those that failed, whoever took a question and did nothing: it would be so again."""
        self.away: set[str] = set()
        """Whoever went away while it fetched, and is to get it from its region once that has it. Another time it is
        sent it."""
        self._gate = asyncio.Semaphore(HOSTS_AT_ONCE)
        self._wanted_by: dict[Digest, list[str]] = {}
        for host in sorted(set(blobs) & set(definition.host)):
            for blob in blobs[host]:
                self._wanted_by.setdefault(blob, []).append(host)

    async def serve(
        self,
        host: str,
        blobs: Sequence[Digest],
        send: Send = send_stream,
        *,
        meter: Meter | None = None,
        lack: Lack | None = None,
        tries: int = TRIES,
    ) -> bool:
        """Send a host what it lacks of these: what `lack` says, or what it says itself. Whether that went well."""
        lack = None if lack is None else of_these(lack, blobs)
        async with self._gate:
            try:
                receipt = await serve(
                    self.site, self.source, host, tuple(blobs), send=send, meter=meter, lack=lack, tries=tries
                )
            except (AgentError, CasError) as error:
                self.failed(host, error)
                return False
        self.silent.discard(host)
        self.sent(host, receipt)
        return True

    def failed(self, host: str, error: AgentError | CasError) -> None:
        self.failures[host] = str(error)
        if isinstance(error, HostSilent):
            self.silent.add(host)

    # --- what was brought ---

    def begin(self, host: str) -> None:
        """It has answered."""
        self.brought.setdefault(host, nothing(host, self.definition))

    def sent(self, host: str, receipt: BlobReceipt) -> None:
        self.begin(host)
        self.brought[host] = added(self.brought[host], receipt)

    async def fetched(self, host: str, blobs: Collection[Digest], fetched: Fetched) -> None:
        """What a host has got of these by itself. Who it says has lied is noted only where there is such a host."""
        got = {*blobs} - {*fetched.missing}
        whole_bytes = await asyncio.to_thread(lambda: sum(one.size for one in self.site.store.stats(got).values()))
        wrong = [name for name in fetched.wrong if name in self.definition.host]
        so_far = self.brought[host]
        self.brought[host] = msgspec.structs.replace(
            so_far,
            region_bytes=so_far.region_bytes + fetched.region_bytes,
            border_bytes=so_far.border_bytes + fetched.border_bytes,
            blobs=so_far.blobs + fetched.blobs,
            whole_bytes=so_far.whole_bytes + whole_bytes,
            wrong=tuple(dict.fromkeys([*so_far.wrong, *wrong])),
        )

    # --- what a host is told ---

    def neighbours(self) -> tuple[Digest, ...]:
        """The list of them, where hosts are to know it by its name."""
        return () if self.acquaint is None else (self.acquaint.neighbours,)

    def listing(self, blobs: Iterable[Digest], bases: Collection[Digest] = ()) -> tuple[Digest, ...]:
        """What it takes to check the pieces of these blobs; nothing for none. Of a blob that a delta of one of `bases`
        makes far smaller, only what that delta takes: the list of a large blob's own pieces would weigh as much."""
        items = [self.items[blob] for blob in blobs if blob in self.items]
        if not items:
            return ()
        forms = (form for item in items for form in _worth_checking(item, {*bases}))
        return self.inventory, *sorted({form.manifest for form in forms if form.manifest is not None})

    def parties(self, blobs: Iterable[Digest]) -> tuple[Party, ...]:
        """These blobs, with the hosts that want them."""
        by_hosts: dict[tuple[str, ...], list[Digest]] = {}
        for blob in blobs:
            by_hosts.setdefault(tuple(self._wanted_by[blob]), []).append(blob)
        return tuple(
            Party(hosts if len(hosts) < len(self.definition.host) else (), tuple(own))
            for hosts, own in by_hosts.items()
        )


def of_these(lack: Lack, blobs: Iterable[Digest]) -> Lack:
    """The same of these blobs only."""
    wanted = set(blobs)
    return lack._replace(missing=tuple(blob for blob in lack.missing if blob in wanted))


def nothing(host: str, definition: Definition) -> Brought:
    """To a host that may have left the definition."""
    return Brought(region=definition.host[host].region if host in definition.host else "")


def added(brought: Brought, receipt: BlobReceipt) -> Brought:
    """With what the deployer has sent."""
    return msgspec.structs.replace(
        brought,
        deployer_bytes=brought.deployer_bytes + receipt.wire_bytes,
        blobs=brought.blobs + receipt.blobs,
        whole_bytes=brought.whole_bytes + receipt.raw_bytes,
    )


def _worth_checking(item: Item, bases: Collection[Digest]) -> tuple[Form, ...]:
    """The forms of a blob that a host with these bases may be given by others."""
    deltas = tuple(form for form in item.others if form.base in bases)
    smallest = min((form.size for form in deltas), default=item.whole.size)
    return deltas if smallest * FAR_SMALLER < item.whole.size else (item.whole, *item.others)
