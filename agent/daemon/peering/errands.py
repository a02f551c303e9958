"""Wishes for blobs that outlive their caller: kept in files, taken up again when the agent starts, tried for a day.

An errand is what a `Fetch` call asks for. The caller may leave at once; a second call for the same joins the first. As
long as an operator who brings something into the region waits for it, it is attended.
Where nobody has what is missing the errand rests, longer each time, and a call wakes it. A few are kept; a new one
ends the oldest. A blob that several want is fetched for the one that was given last, as long as pieces of it come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from agent.api.base import canonical
from agent.api.fetching import Fetch, Fetched
from agent.daemon.durable import FileDamaged, remove_file, seal, unseal, write_file
from agent.daemon.peering.serving import News
from cas.digest import PREFIX, Digest, digest_of

MOST: Final = 4
LASTS_S: Final = 86400.0
REST_S: Final = 5.0
"""After the first try that left something missing; doubled each time."""
LONGEST_REST_S: Final = 300.0
SETTLE_S: Final = 0.02
ATTENDED_S: Final = 20.0
"""Who has waited for an errand is about to ask again, for so long: over a thin line that is full a question takes many
seconds. Where nothing comes any more, that is noticed sooner (`driver.INSIDE_S`)."""

_MAGIC: Final = b"lcer"
_VERSION: Final = 1

_log = logging.getLogger(__name__)

Progress = Callable[[Fetched], None]
Carry = Callable[[Fetch, Progress, Callable[[], bool]], Awaitable[Fetched]]
"""Tries to carry an errand out once, telling how far it has come; the last word is what it returns. It can ask whether
the errand is attended."""


class _Kept(msgspec.Struct, frozen=True):
    fetch: Fetch
    until_unix: float


class Errands:
    """The errands of one host. Use from one event loop; `open` and `close` it."""

    def __init__(self, directory: Path, carry: Carry, unix_s: Callable[[], float]) -> None:
        self._directory = directory
        self._carry = carry
        self._unix_s = unix_s
        self._running: dict[Digest, _Errand] = {}

    async def open(self) -> None:
        """Go on with what is unfinished."""
        for path, kept in await asyncio.to_thread(self._read):
            self._begin(_name_of(kept.fetch), path, kept)

    async def close(self) -> None:
        for errand in self._running.values():
            errand.task.cancel()
        await asyncio.gather(*(errand.task for errand in self._running.values()), return_exceptions=True)
        self._running.clear()

    async def fetch(self, fetch: Fetch) -> Fetched:
        """Take the errand on, wait for it as long as it says, and tell how far it is."""
        plain = msgspec.structs.replace(fetch, wait_s=0.0)
        name = _name_of(plain)
        errand = self._running.get(name)
        if errand is None:
            while len(self._running) >= MOST:
                await self._drop(next(iter(self._running)))
            path = self._directory / name.removeprefix(PREFIX)
            kept = _Kept(plain, self._unix_s() + LASTS_S)
            await asyncio.to_thread(self._write, path, kept)
            errand = self._running.get(name) or self._begin(name, path, kept)
        return await errand.join(fetch.wait_s)

    async def forget(self, fetch: Fetch) -> None:
        """End an errand that nobody wants any more. Idempotent."""
        name = _name_of(msgspec.structs.replace(fetch, wait_s=0.0))
        if name in self._running:
            await self._drop(name)

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        return tuple(errand.fetch for errand in self._running.values())

    # --- inside ---

    def _begin(self, name: Digest, path: Path, kept: _Kept) -> _Errand:
        errand = self._running[name] = _Errand(kept.fetch)
        errand.task = asyncio.get_running_loop().create_task(self._go(name, path, kept, errand))
        return errand

    async def _go(self, name: Digest, path: Path, kept: _Kept, errand: _Errand) -> None:
        rest_s = REST_S
        while True:
            errand.tell(await self._try(kept.fetch, errand))
            if not errand.state.missing or self._unix_s() + rest_s > kept.until_unix:
                break
            await errand.rest(rest_s)
            rest_s = min(rest_s * 2, LONGEST_REST_S)
        await asyncio.to_thread(remove_file, path)
        self._running.pop(name, None)

    async def _try(self, fetch: Fetch, errand: _Errand) -> Fetched:
        try:
            return msgspec.structs.replace(await self._carry(fetch, errand.tell, errand.attended), under_way=False)
        except Exception as error:
            _log.exception("an errand failed")
            return msgspec.structs.replace(errand.state, under_way=False, trouble=f"{type(error).__name__}: {error}")

    async def _drop(self, name: Digest) -> None:
        errand = self._running.pop(name)
        errand.task.cancel()
        await asyncio.gather(errand.task, return_exceptions=True)
        await asyncio.to_thread(remove_file, self._directory / name.removeprefix(PREFIX))

    def _write(self, path: Path, kept: _Kept) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        write_file(path, seal(_MAGIC, _VERSION, msgspec.msgpack.encode(kept)))

    def _read(self) -> list[tuple[Path, _Kept]]:
        found: list[tuple[Path, _Kept]] = []
        for path in sorted(self._directory.iterdir()) if self._directory.is_dir() else ():
            try:
                kept = msgspec.msgpack.decode(unseal(path, _MAGIC, _VERSION), type=_Kept)
            except (FileDamaged, msgspec.MsgspecError, OSError) as error:
                _log.warning("an errand is forgotten: %s", error)
                path.unlink(missing_ok=True)
                continue
            if kept.until_unix > self._unix_s() and len(found) < MOST:
                found.append((path, kept))
            else:
                path.unlink(missing_ok=True)
        return found


class _Errand:
    """One errand while the agent runs."""

    task: asyncio.Task[None]

    def __init__(self, fetch: Fetch) -> None:
        wanted = tuple(dict.fromkeys(blob for party in fetch.parties for blob in party.blobs))
        self.fetch = fetch
        self.state = Fetched(wanted, under_way=True)
        self._tried = asyncio.Event()
        self._wake = asyncio.Event()
        self._news = News()
        self._can_be_attended = fetch.inside is True
        self._attending = 0
        self._now_s = asyncio.get_running_loop().time
        self._attended_s = self._now_s()
        """When somebody waited last: maybe until this agent was started again."""

    def attended(self) -> bool:
        """Does somebody who brings something wait for it, or did so just now?"""
        lately = self._now_s() - self._attended_s < ATTENDED_S
        return self._can_be_attended and (self._attending > 0 or lately)

    def tell(self, state: Fetched) -> None:
        liars, self.state = self.state.wrong, state
        if not state.under_way:
            self._tried.set()
        if not state.under_way or state.wrong != liars:
            self._news.tell()

    async def rest(self, seconds: float) -> None:
        """Until somebody asks, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def join(self, wait_s: float) -> Fetched:
        """Wait for the end of a try, of the one under way or of a new one, or until a neighbour is found to lie."""
        if not self.state.under_way and self.state.missing:
            self._tried.clear()
            self.state = msgspec.structs.replace(self.state, under_way=True, trouble="")
            self._wake.set()
        liars = self.state.wrong
        until_s = self._now_s() + max(wait_s, SETTLE_S)
        self._attending += self._can_be_attended
        try:
            while not self._tried.is_set() and self.state.wrong == liars and (left_s := until_s - self._now_s()) > 0:
                await self._news.wait(left_s)
        finally:
            self._attending -= self._can_be_attended
            self._attended_s = self._now_s()
        return self.state


def _name_of(fetch: Fetch) -> Digest:
    return digest_of(canonical(fetch))
