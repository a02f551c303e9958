"""Hosts that drive `cas.swarm` over the virtual network: what the agent does over HTTP, without the HTTP.

A host may fail in one of the ways of `FAULTS`, from the start or later. Everything follows from the seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from agent.daemon.peering.driver import BUSY_AGAIN_S
from agent.daemon.peering.limits import ANSWERS
from cas.digest import Digest, digest_of
from cas.inventory import Form, Item
from cas.manifest import PIECE_BYTES, pieces_in
from cas.swarm.blob import Want
from cas.swarm.fetching import Fetch
from cas.swarm.limits import Limits
from cas.swarm.messages import (
    Arrived,
    Ask,
    Busy,
    Cancel,
    Ended,
    Event,
    Failed,
    Get,
    Keep,
    Kept,
    Over,
    Part,
    Request,
    Tick,
    Told,
    Wrong,
    everything,
)
from cas.swarm.ranking import Swarm
from tests.simulation.network import Link, Network

FAULTS = ("dead", "stalling", "slow", "lying")
CONNECT_TIMEOUT_S = 3.0
SLOW_FACTOR = 100


def item(name: str, size: int, *, deltas: Iterable[tuple[Digest, int]] = ()) -> Item:
    """A blob that nobody has to hold, with patches of so many bytes from these bases."""
    whole = _form(name, size)
    others = (_form(f"{name} from {base}", patch, base=base) for base, patch in deltas)
    return Item(whole=whole, others=tuple(others))


def _form(name: str, size: int, *, base: Digest | None = None) -> Form:
    manifest = digest_of(f"manifest {name}".encode()) if size > PIECE_BYTES else None
    digest = digest_of(name.encode())
    if base is None:
        return Form(digest=digest, size=size, manifest=manifest)
    return Form(digest=digest, size=size, manifest=manifest, encoding="delta", base=base)


class _Asked(NamedTuple):
    asker: Host
    fetch: Fetch
    ask: Ask
    until_s: float


class _Waiting:
    """Questions that wait for news. All wait equally long, so who came first is answered first."""

    def __init__(self) -> None:
        self._by_form: dict[Digest, dict[tuple[str, int], _Asked]] = {}
        self._open: dict[tuple[str, int], _Asked] = {}

    @property
    def next_s(self) -> float | None:
        return next((asked.until_s for asked in self._open.values()), None)

    def add(self, asked: _Asked) -> bool:
        """Whether it is the only one."""
        key = asked.asker.name, asked.ask.id
        self._open[key] = asked
        for form in asked.ask.forms:
            self._by_form.setdefault(form, {})[key] = asked
        return len(self._open) == 1

    def for_news(self, form: Digest, pieces: int) -> list[_Asked]:
        return self._take([asked for asked in self._by_form.get(form, {}).values() if asked.ask.forms[form] & pieces])

    def until(self, now_s: float) -> list[_Asked]:
        return self._take(list(itertools.takewhile(lambda asked: asked.until_s <= now_s, self._open.values())))

    def clear(self) -> None:
        self._by_form.clear()
        self._open.clear()

    def _take(self, found: list[_Asked]) -> list[_Asked]:
        for asked in found:
            key = asked.asker.name, asked.ask.id
            del self._open[key]
            for form in asked.ask.forms:
                del self._by_form[form][key]
        return found


class Host:
    def __init__(self, name: str, network: Network, hosts: dict[str, Host], limits: Limits) -> None:
        self.name = name
        self.fetch = Fetch(name, limits=limits)
        self.fault: str | None = None
        self.started = False
        self.sizes: dict[Digest, int] = {}
        """Of the forms that it knows."""
        self.held: dict[Digest, int] = {}
        """The pieces that it has, by form: its spool and its store."""
        self.ended: dict[Digest, Ended] = {}
        self.done_s: float | None = None
        self.came: dict[tuple[Digest, int], int] = {}
        """How often each piece was taken in: once, or something is wrong."""
        self.from_outside = 0
        self.messages = 0
        self._network = network
        self._hosts = hosts
        self._waiting = _Waiting()
        self._cancelled: set[int] = set()
        self._tick_due_s = -1.0
        self._answers = 0
        """Gets whose parts it is sending."""
        self.counts_pieces = True

    # --- its own side ---

    def want(self, wants: Iterable[Want]) -> None:
        wants = list(wants)
        self.started = True
        for want in wants:
            for form in (want.item.whole, *want.item.others):
                self.sizes[form.digest] = form.size
        self._do(self.fetch.want(wants, self._network.now_s, spooled=self.held))

    def restart(self, wants: Iterable[Want], limits: Limits) -> None:
        """The agent was killed: what is on disk is still there, and nothing else."""
        self.fetch = Fetch(self.name, limits=limits)
        self._waiting.clear()
        self._cancelled.clear()
        self.ended.clear()
        self.want(wants)

    def take(self, event: Event) -> None:
        if self.fault != "dead":
            self._do(self.fetch.take(event, self._network.now_s))

    def _do(self, requests: list[Request]) -> None:
        for request in requests:
            match request:
                case Ask():
                    self._send(request.peer, partial(self._hosts[request.peer].answer, self, self.fetch, request))
                case Get():
                    self._send(request.peer, partial(self._hosts[request.peer].serve, self, self.fetch, request))
                case Keep():
                    self._network.at(self._network.now_s, partial(self._keep, request))
                case Ended():
                    self.ended[request.blob] = request
                    if self.fetch.wake_s is None:
                        self.done_s = self._network.now_s
                case Cancel():
                    self._cancelled.add(request.id)
        wake_s = self.fetch.wake_s
        if wake_s is not None and wake_s != self._tick_due_s:
            self._tick_due_s = wake_s
            self._network.at(wake_s, partial(self._wake, wake_s))

    def _wake(self, due_s: float) -> None:
        if due_s == self._tick_due_s and self.fetch.wake_s is not None:
            self.take(Tick())

    def _keep(self, request: Keep) -> None:
        if self.sizes.get(request.blob) is not None:
            self._gain(request.blob, everything(pieces_in(self.sizes[request.blob])))
        self.take(Kept(request.blob, ok=True))

    def _send(self, peer: str, action: partial[None]) -> None:
        self.messages += 1
        self._network.at(self._network.now_s + self._network.delay_s(self.name, peer), action)

    def receive(self, fetch: Fetch, event: Event) -> None:
        """An event of a request that this host's fetch made, unless the host has been restarted since."""
        if fetch is not self.fetch or self.fault == "dead":
            return
        if isinstance(event, Arrived):
            if event.id in self._cancelled:
                return
            if self.counts_pieces:
                for index in range(event.first, event.first + event.count):
                    self.came[event.form, index] = self.came.get((event.form, index), 0) + 1
            self._gain(event.form, everything(event.count) << event.first)
        self.take(event)

    def _gain(self, form: Digest, pieces: int) -> None:
        self.held[form] = self.held.get(form, 0) | pieces
        for asked in self._waiting.for_news(form, pieces):
            self._tell(asked)

    # --- the side that answers ---

    def answer(self, asker: Host, fetch: Fetch, ask: Ask) -> None:
        if self._is_gone(asker, fetch, ask.id):
            return
        asked = _Asked(asker, fetch, ask, self._network.now_s + ask.wait_s)
        if any(self.held.get(form, 0) & news for form, news in ask.forms.items()):
            self._tell(asked)
        elif self._waiting.add(asked):
            self._network.at(asked.until_s, self._tell_late)

    def _tell_late(self) -> None:
        for asked in self._waiting.until(self._network.now_s):
            self._tell(asked)
        if (next_s := self._waiting.next_s) is not None:
            self._network.at(next_s, self._tell_late)

    def _tell(self, asked: _Asked) -> None:
        if self.fault != "dead":
            held = self.held
            told = Told(asked.ask.id, {form: held[form] for form in asked.ask.forms if held.get(form)})
            self._send(asked.asker.name, partial(asked.asker.receive, asked.fetch, told))

    def serve(self, asker: Host, fetch: Fetch, get: Get) -> None:
        if self._is_gone(asker, fetch, get.id) or self.fault == "stalling" or get.id in asker._cancelled:
            return
        if self._answers >= ANSWERS:
            self._send(asker.name, partial(asker.receive, fetch, Busy(get.id, BUSY_AGAIN_S)))
            return
        held = list(itertools.takewhile(self._has, get.parts))
        if len(held) < len(get.parts):
            self._send(asker.name, partial(asker.receive, fetch, Over(get.id)))
        for part in held[:1] if self.fault == "lying" else held:
            size = min(part.count * PIECE_BYTES, asker.sizes[part.form] - part.first * PIECE_BYTES)
            event: Event = Arrived(get.id, part.form, part.first, part.count, size)
            if self.fault == "lying":
                size, event = PIECE_BYTES, Wrong(get.id, part.form, part.first)
            last = part is held[-1] or self.fault == "lying"
            self._network.transfer(self.name, asker.name, size, partial(self._sent, asker, fetch, event, is_last=last))
        self._answers += bool(held)

    def _has(self, part: Part) -> bool:
        pieces = everything(part.count) << part.first
        return self.held.get(part.form, 0) & pieces == pieces

    def _sent(self, asker: Host, fetch: Fetch, event: Event, *, is_last: bool) -> None:
        self._answers -= is_last
        asker.receive(fetch, event)

    def _is_gone(self, asker: Host, fetch: Fetch, number: int) -> bool:
        if self.fault == "dead":
            failed = partial(asker.receive, fetch, Failed(number, "no connection"))
            self._network.at(self._network.now_s + CONNECT_TIMEOUT_S, failed)
        return self.fault == "dead"

    def break_down(self, fault: str) -> None:
        self.fault = fault
        if fault == "slow":
            for links in (self._network.up, self._network.down):
                links[self.name] = Link(self._network.model.host_bytes_per_s / SLOW_FACTOR)


class World:
    def __init__(self, network: Network, hosts: dict[str, Host], swarm: Swarm) -> None:
        self.network = network
        self.hosts = hosts
        self.swarm = swarm

    def hold(self, name: str, items: Iterable[Item]) -> None:
        """This host has these blobs, whole and in every other form."""
        host = self.hosts[name]
        for one in items:
            for form in (one.whole, *one.others):
                host.sizes[form.digest] = form.size
                host.held[form.digest] = everything(pieces_in(form.size))

    def sound(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.fault is None]

    def is_done(self) -> bool:
        return all(host.started and host.fetch.wake_s is None for host in self.hosts.values() if host.fault is None)

    def crossings(self, region: str) -> int:
        return self.network.border_in[region].bytes


def make_world(swarm: Swarm, network: Network, limits: Limits) -> World:
    hosts: dict[str, Host] = {}
    for name in swarm.region_of:
        hosts[name] = Host(name, network, hosts, limits)
    return World(network, hosts, swarm)


def break_some(world: World, share: float, chance: random.Random, *, within_s: float, spare: set[str]) -> list[str]:
    """So many of the hosts fail, each at some time and in some way; the first holders do not."""
    names = [name for name in world.hosts if name not in spare]
    failing = chance.sample(names, round(share * len(names)))
    _break_down(world, failing, chance, within_s)
    return failing


def break_bringers(
    world: World,
    region: str,
    blobs: Iterable[Digest],
    count: int,
    chance: random.Random,
    *,
    within_s: float,
    spare: set[str],
) -> list[str]:
    """So many of those that bring these blobs into a region fail in the same ways."""
    first = dict.fromkeys(world.swarm.ranking(region, blob)[0] for blob in blobs)
    failing = chance.sample([name for name in first if name not in spare], count)
    _break_down(world, failing, chance, within_s)
    return failing


def _break_down(world: World, names: Iterable[str], chance: random.Random, within_s: float) -> None:
    for name in names:
        fault = chance.choice(FAULTS)
        world.network.at(chance.choice([0.0, chance.random() * within_s]), partial(world.hosts[name].break_down, fault))
