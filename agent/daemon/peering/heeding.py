"""What a host does about a release that it was not told of: asks around, and brings here what it may be asked to run.

A host that was away learns from its neighbours, when it starts and from time to time, that an operator has made a
release (`words`); a host that hears of one tells a few neighbours of its region at once. It then fetches what the word
names, each blob by its digest: who its neighbours are now, the inventory with its manifests, and who needs what; and
then, as an errand like any other, its own blobs, within its quota. Where it was left behind, it also compiles the
programs. It runs nothing: that takes a plan and an operator.

A neighbour may keep silent, so several are asked; it may repeat old words, invent some, or send too much: a word counts
by its signature alone, a blob by its name, and answers are bounded.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from agent.api.answers import Reason
from agent.api.facts import Waiting
from agent.api.fetching import Fetch
from agent.api.neighbours import Meet, Neighbour, Neighbours
from agent.api.records import decode_record
from agent.api.words import SignedWord, Wishes, WordsAnswer, WordsQuery
from agent.client.errors import AgentError, refused_because
from agent.daemon.peering.acquaintance import Acquaintance
from agent.daemon.peering.errands import Errands
from agent.daemon.peering.limits import Places
from agent.daemon.peering.links import Links
from agent.daemon.peering.repair import Rescue
from agent.daemon.peering.words import Heard, Words
from agent.daemon.refusal import Refused
from cas import inventory as inventories
from cas.digest import Digest, short
from cas.errors import CasError
from cas.interface import BlobStore
from cas.manifest import MAX_MANIFEST_BYTES

ASKED_INSIDE: Final = 2
ASKED_OUTSIDE: Final = 1
"""So many neighbours, of the own region and of others, are asked each time; more of the one where there are not enough
of the other."""
TOLD: Final = 4
"""So many neighbours of the own region are told what is new, and tell it on."""
TELLERS: Final = 64
TELLERS_OF_EACH: Final = 2
LEASE_S: Final = 30 * 86400.0
ERRAND_WAIT_S: Final = 50.0

_log = logging.getLogger(__name__)


class Pace(NamedTuple):
    """How often a host asks. Each time is drawn anew between half of it and one and a half."""

    first_s: float = 1.0
    """After the start."""
    every_s: float = 300.0
    alone_s: float = 15.0
    """After a time when nobody has answered."""
    rest_s: float = 5.0
    """Before what could not be had is tried again; doubled each time."""
    longest_rest_s: float = 600.0


class Programs(NamedTuple):
    """What the rest of the agent does with programs."""

    compile: Callable[[Digest], Awaitable[object]]
    """Raises Refused."""
    is_compiled: Callable[[Digest], bool]
    """Blocks."""


class _Share(NamedTuple):
    """What a word means for this host."""

    fetch: Fetch | None
    programs: tuple[Digest, ...]
    is_behind: bool


_NOTHING: Final = _Share(None, (), False)


class Heeding:
    """The words of one host, and what it makes of them. Use from one event loop; `open` and `close` it."""

    def __init__(
        self,
        host: str,
        words: Words,
        acquaintance: Acquaintance,
        links: Links,
        errands: Errands,
        store: BlobStore,
        rescue: Rescue,
        *,
        pace: Pace | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._host = host
        self._words = words
        self._acquaintance = acquaintance
        self._links = links
        self._errands = errands
        self._store = store
        self._rescue = rescue
        self._pace = pace or Pace()
        self._chance = chance or random.Random()
        self._programs: Programs | None = None
        self._taking = asyncio.Lock()
        self._tellers = Places(TELLERS, TELLERS_OF_EACH)
        self._telling: set[asyncio.Task[bool]] = set()
        self._asking: asyncio.Task[None] | None = None
        self._heeding: dict[str, asyncio.Task[None]] = {}
        self._errand_turn = asyncio.Lock()
        self._shares: dict[Digest, _Share] = {}
        """By the digest of the wishes."""

    def open(self, programs: Programs | None) -> None:
        self._programs = programs
        for heard in self._words.newest.values():
            self._begin(heard)
        self._asking = asyncio.get_running_loop().create_task(self._ask_around())

    async def close(self) -> None:
        tasks = [*self._heeding.values(), *self._telling, *([self._asking] if self._asking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def hear(self, word: SignedWord) -> bool:
        """Take a word from anybody; whether it was new. Raises Refused for one that does not count."""
        async with self._taking:
            heard = await asyncio.to_thread(self._words.take, word)
        if heard is not None:
            _log.info("%s has made release %s of %s", heard.by, short(heard.word.release), heard.word.ref)
            self._begin(heard)
            self._tell(heard)
        return heard is not None

    async def answer(self, peer: str, query: WordsQuery) -> WordsAnswer:
        """Take what a neighbour has heard, and tell it what it has not. Raises Refused."""
        if query.words:
            async with self._tellers.place(peer):
                for word in query.words:
                    await self.hear(word)
        return self._words.newer(query)

    def waiting(self) -> tuple[Waiting, ...]:
        """The releases that this host was away for. Blocks."""
        found = []
        for heard in self._words.newest.values():
            try:
                share = self._share(heard)
            except (CasError, ValueError):  # what keeps it from being here is logged where it is fetched
                continue
            if share.is_behind:
                blobs = _blobs_of(share)
                compiled = self._programs.is_compiled if self._programs is not None else lambda _: True
                found.append(
                    Waiting(
                        ref=heard.word.ref,
                        release=heard.word.release,
                        at_unix_ns=heard.word.at_unix_ns,
                        by=heard.by,
                        blobs=len(blobs),
                        missing=len(self._store.missing(blobs)),
                        uncompiled=sum(not compiled(program) for program in share.programs),
                    )
                )
        return tuple(found)

    # --- telling and asking ---

    def _tell(self, heard: Heard) -> None:
        """Neighbours of the own region hear of it at once, and from them others."""
        region = self._acquaintance.region
        inside = [other for other in self._acquaintance.others if other.region == region]
        for neighbour in self._chance.sample(inside, min(TOLD, len(inside))):
            task = asyncio.get_running_loop().create_task(self._ask(neighbour, (heard.signed,)))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _ask_around(self) -> None:
        await self._sleep(self._pace.first_s)
        while True:
            answers = [await self._ask(neighbour) for neighbour in self._to_ask()]
            await self._sleep(self._pace.every_s if any(answers) else self._pace.alone_s)

    async def _sleep(self, about_s: float) -> None:
        await asyncio.sleep(about_s * self._chance.uniform(0.5, 1.5))

    def _to_ask(self) -> list[Neighbour]:
        others = list(self._acquaintance.others)
        self._chance.shuffle(others)
        region = self._acquaintance.region
        inside = [other for other in others if other.region == region]
        outside = [other for other in others if other.region != region]
        wanted = ASKED_INSIDE + ASKED_OUTSIDE
        few_inside = max(0, ASKED_INSIDE - len(inside))
        chosen = inside[: wanted - min(len(outside), ASKED_OUTSIDE)] + outside[: ASKED_OUTSIDE + few_inside]
        return chosen[:wanted]

    async def _ask(self, neighbour: Neighbour, tell: tuple[SignedWord, ...] = ()) -> bool:
        """Whether it has answered with what counts."""
        try:
            query = msgspec.structs.replace(self._words.times(), words=tell)
            answer = await self._links.words(neighbour, query)
        except AgentError as error:
            if not refused_because(
                error, Reason.NOT_FOUND, Reason.BUSY
            ):  # an agent of before, or one that is told much
                self._links.of(neighbour.host).failures += 1
            return False
        for word in answer.words:
            try:
                await self.hear(word)
            except Refused as error:
                self._links.of(neighbour.host).failures += 1
                _log.warning("%s tells what is not true: %s", neighbour.host, error)
                return False
            except OSError as error:
                _log.error("a word cannot be kept: %s", error)
        return True

    # --- heeding ---

    def _begin(self, heard: Heard) -> None:
        before = self._heeding.pop(heard.word.ref, None)
        if before is not None:
            before.cancel()
        self._heeding[heard.word.ref] = asyncio.get_running_loop().create_task(self._heed(heard))

    async def _heed(self, heard: Heard) -> None:
        rest_s = self._pace.rest_s
        while True:
            try:
                if await self._bring(heard):
                    return
            except (Refused, CasError, OSError, ValueError) as error:
                _log.info("release %s is not here yet: %s", short(heard.word.release), error)
            except Exception:
                _log.exception("release %s of %s", short(heard.word.release), heard.word.ref)
            await self._sleep(rest_s)
            rest_s = min(rest_s * 2, self._pace.longest_rest_s)

    async def _bring(self, heard: Heard) -> bool:
        """Get what the release has for this host; whether all of it is here. Raises Refused, CasError, ValueError."""
        word = heard.word
        await self._have(word.ref, word.listing())
        if not await asyncio.to_thread(self._meet, heard):
            return True  # this host is in the definition no more
        inventory = inventories.decode(await asyncio.to_thread(self._store.read, word.inventory))
        await self._have(word.ref, dict.fromkeys(inventory.manifests(), MAX_MANIFEST_BYTES))
        share = await asyncio.to_thread(self._share, heard)
        if share.fetch is None:
            return True
        if await asyncio.to_thread(self._store.missing, _blobs_of(share)) and not await self._fetched(share.fetch):
            return False
        if share.is_behind:
            await self._compile(share.programs)
        return True

    async def _fetched(self, fetch: Fetch) -> bool:
        """Whether all of it is here. One release at a time, so that what operators ask for keeps its place among the
        errands; one that does not come to its end now is tried again later."""
        patiently = msgspec.structs.replace(fetch, wait_s=ERRAND_WAIT_S)
        async with self._errand_turn:
            try:
                while (state := await self._errands.fetch(patiently)).under_way:
                    pass
            finally:
                await self._errands.forget(fetch)
        return not state.missing

    async def _have(self, ref: str, wanted: Mapping[Digest, int]) -> None:
        """Get these blobs, of so many bytes at most, from any neighbour, and keep them for others. Raises BlobMissing,
        CasError."""
        await asyncio.to_thread(self._store.lease, wanted, owner=f"word:{ref}", ttl_s=LEASE_S)
        for digest in await asyncio.to_thread(self._store.missing, wanted):
            data = await self._rescue.fetch(digest, max_bytes=wanted[digest])
            await asyncio.to_thread(self._store.put, data, expect=digest)

    async def _compile(self, programs: Iterable[Digest]) -> None:
        if self._programs is None:
            return
        for program in programs:
            try:
                await self._programs.compile(program)
            except Refused as error:
                _log.warning("program %s of a release that waits: %s", short(program), error)

    # --- in a thread ---

    def _meet(self, heard: Heard) -> bool:
        """Be told of the neighbours that the word names; False where this host is not among them. Raises Refused."""
        listed = decode_record(self._store.read(heard.word.neighbours), Neighbours).neighbours
        is_among = any(one.host == self._host for one in listed)
        if is_among:
            self._acquaintance.meet(Meet(listed, heard.word.at_unix_ns))
        return is_among

    def _share(self, heard: Heard) -> _Share:
        """What the wishes say of this host; nothing as long as they are not here."""
        word = heard.word
        if word.wishes not in self._shares:
            if self._store.missing([word.wishes]):
                return _NOTHING
            wishes = decode_record(self._store.read(word.wishes), Wishes)
            mine = tuple(party for party in wishes.parties if not party.hosts or self._host in party.hosts)
            programs = set(wishes.programs)
            share = _Share(
                Fetch(word.inventory, mine) if mine else None,
                tuple(blob for party in mine for blob in party.blobs if blob in programs),
                self._host in wishes.behind,
            )
            current = {one.word.wishes for one in self._words.newest.values()}
            self._shares = {name: kept for name, kept in self._shares.items() if name in current} | {word.wishes: share}
            return share
        return self._shares[word.wishes]


def _blobs_of(share: _Share) -> list[Digest]:
    return [blob for party in share.fetch.parties for blob in party.blobs] if share.fetch is not None else []
