"""Leaving word of a release with the hosts, so that those that were away learn of it from their neighbours.

A word is small: it names the release and three blobs, and an operator signs it. One host of each region is left it,
with the blobs: who the hosts are, who needs what, and the inventory with its manifests. It tells its region, which gets
the blobs from it. A host that comes back asks its neighbours, and fetches what it needs; it
runs nothing of it before the next apply. What no other host has does not come that way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.api.answers import Reason
from agent.api.fetching import Party
from agent.api.records import encode_record
from agent.api.words import WORD_CONTEXT, SignedWord, Wishes, Word
from agent.client.errors import AgentError, refused_because
from cas.digest import Digest
from cas.errors import CasError
from cas.inventory import Inventory
from cas.swarm.ranking import Swarm
from deployer.applying.fleet import for_each
from deployer.applying.introducing import keep_neighbours
from deployer.applying.outcome import Applied, HostEnd
from deployer.applying.progress import Quiet
from deployer.applying.site import Site
from deployer.applying.transfer import HOSTS_AT_ONCE, Source, serve
from deployer.errors import DeployerError
from deployer.history.release import Link
from deployer.history.stocktaking import read_inventory
from deployer.language.schema import Definition
from deployer.planning.plan import blobs_of
from deployer.planning.signing import sign_with
from deployer.resolving.specs import specs_of

TRIED_IN_EACH_REGION: Final = 3
"""So many hosts of a region are tried before it is left to hear of it from others."""
WITHIN_S: Final = 10.0
"""Whoever cannot be told in this time hears of it from others."""


def wishes_of(definition: Definition, listed: Inventory, behind: Iterable[str] = ()) -> Wishes:
    """Who needs what of the blobs of an inventory. `behind`: hosts that do not run their part."""
    known = {item.whole.digest for item in listed.items}
    wanted_by: dict[Digest, dict[str, None]] = {}
    programs: set[Digest] = set()
    for host, specs in sorted(specs_of(definition).items()):
        for spec in specs.values():
            programs.add(spec.binary)
            for blob in blobs_of(spec):
                wanted_by.setdefault(blob, {})[host] = None
    by_hosts: dict[tuple[str, ...], list[Digest]] = {}
    for blob in sorted(wanted_by.keys() & known):
        by_hosts.setdefault(tuple(wanted_by[blob]), []).append(blob)
    everybody = len(definition.host)
    parties = tuple(
        Party(hosts if len(hosts) < everybody else (), tuple(blobs)) for hosts, blobs in sorted(by_hosts.items())
    )
    return Wishes(parties, tuple(sorted(programs & known)), tuple(sorted(behind)))


async def leave_word(site: Site, definition: Definition, link: Link, applied: Applied) -> str:
    """Leave word of this release with its hosts, as far as they answered in the end. Returns why nobody could be told,
    "" where somebody was, or nobody needs to be. Never raises for what hosts answer."""
    inventory = link.release.inventory
    if inventory is None or site.credentials is None:
        return ""
    try:
        behind = [host for host in definition.host if applied.hosts.get(host, HostEnd.NEW) is not HostEnd.NEW]
        listing, word = await asyncio.to_thread(_made, site, site.credentials, definition, link, inventory, behind)
    except (DeployerError, CasError) as error:
        return str(error)
    here = sorted(host for host in definition.host if applied.hosts.get(host) is not HostEnd.UNKNOWN)
    telling = _Telling(site, word, listing)
    try:
        async with asyncio.timeout(WITHIN_S):
            await for_each(_first_of_each(definition, here, link.digest), telling.region, at_once=HOSTS_AT_ONCE)
    except TimeoutError:
        pass
    return "" if telling.told or not here else telling.trouble or f"no host could be told within {WITHIN_S:.0f} s"


class _Telling:
    def __init__(self, site: Site, word: SignedWord, listing: tuple[Digest, ...]) -> None:
        self._site = site._replace(progress=Quiet())  # who watches the transfer is shown what was to be transferred
        self._word = word
        self._listing = listing
        self._source = Source(site.store)
        self.told = 0
        self.trouble = ""

    async def region(self, hosts: Iterable[str]) -> None:
        """Leave word with the first of these that takes it."""
        for host in hosts:
            try:
                await serve(self._site, self._source, host, self._listing)
                await (await self._site.fleet.client(host)).leave_word(self._word)
            except (AgentError, CasError) as error:
                if not refused_because(error, Reason.NOT_FOUND):  # an agent of before is none to be told
                    self.trouble = str(error)
            else:
                self.told += 1
                return


def _made(
    site: Site, credentials: Path, definition: Definition, link: Link, inventory: Digest, behind: Iterable[str]
) -> tuple[tuple[Digest, ...], SignedWord]:
    """The blobs that a word names, in the store, and the word. Raises TrustError, CasError."""
    listed = read_inventory(site.store, inventory)
    neighbours, _ = keep_neighbours(site, definition)
    wishes = site.store.put(encode_record(wishes_of(definition, listed, behind)), name=f"wishes/{site.ref}").digest
    data = encode_record(
        Word(
            ref=site.ref,
            release=link.digest,
            at_unix_ns=link.release.at_unix_ns,
            inventory=inventory,
            inventory_bytes=site.store.stat(inventory).size,
            wishes=wishes,
            wishes_bytes=site.store.stat(wishes).size,
            neighbours=neighbours,
            neighbours_bytes=site.store.stat(neighbours).size,
        )
    )
    word = SignedWord(data, sign_with(credentials, data, WORD_CONTEXT))
    return (neighbours, wishes, inventory, *listed.manifests()), word


def _first_of_each(definition: Definition, hosts: Iterable[str], release: Digest) -> list[tuple[str, ...]]:
    """A few hosts of each region, other ones for each release."""
    regions: dict[str, list[str]] = {}
    for host in hosts:
        regions.setdefault(definition.host[host].region, []).append(host)
    swarm = Swarm(regions)
    return [swarm.ranking(region, release)[:TRIED_IN_EACH_REGION] for region in regions]
