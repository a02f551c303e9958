"""What a host fetches from whom: blobs that it wants, from the peers that have them or are getting them too.

`Fetch` decides and does nothing else. It is told events, and answers each with requests (`cas.fetch_messages`); it has
no clock, no randomness and no I/O of its own, so the agent (over HTTP) and the simulator drive the same object.

- **One crossing.** In each region one host brings a blob in (`cas.peers`). The others wait for news from inside; only
  when there is none for long enough does the next in the ranking go outside too.
- **Shares.** Whoever is the source of a blob for a group (the bringer for its region, the first holder for the
  bringers) is asked by each of the group for another share of its pieces, so it sends each piece once, and the group
  hands the pieces on. Who has had nothing for `relief_s` may take anything from anyone.
- **Left.** A peer that fails, stalls, or is much slower than one that has the same is left alone for a while, each time
  for longer; one that sends a wrong piece is banned for the blob.
- **Forms.** The smallest form that can be used and that somebody has; a larger one when that leads nowhere.

A piece is asked for once at a time. Bounded are the questions and the bytes in flight, the blobs that are open at a
time, and what is remembered of peers. Nothing loops: requests are made only in answer to an event, and a blob about
which nothing new comes for `patience_s` ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec
from blake3 import blake3

from cas.digest import PREFIX, Digest
from cas.fetch_messages import (
    MAX_ASK_FORMS,
    MAX_GET_PARTS,
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
from cas.inventory import MAX_FORMS, Form, Item
from cas.manifest import PIECE_BYTES, pieces_in
from cas.peers import Peer, Swarm

EXPLORED = 4
"""How many hosts that are no bringers are asked at a time for a blob of which there is no news."""
SLOWER = 4.0
"""A peer is left where another one would be so many times faster."""
MIN_RUNS = 8
"""A form is cut into at least so many runs, where it has as many pieces."""


class Limits(msgspec.Struct, frozen=True):
    neighbours: int = 12
    outside: int = 24
    gets: int = 8
    gets_per_peer: int = 1
    asks: int = 64
    run_pieces: int = 16
    """Pieces of a large form that are asked for at once."""
    in_flight_bytes: int = 64 << 20
    open_blobs: int = 1024
    tick_s: float = 0.5
    wait_s: float = 10.0
    answer_s: float = 5.0
    """A question is answered so long after its `wait_s` at the latest."""
    stall_s: float = 12.0
    slow_s: float = 6.0
    ask_gap_s: float = 0.1
    settle_s: float = 0.3
    relief_s: float = 1.0
    takeover_s: float = 8.0
    patience_s: float = 120.0


class Want(NamedTuple):
    item: Item
    swarm: Swarm
    bases: frozenset[Digest] = frozenset()
    """Those of the item's bases that the store holds."""


class _Blob:
    """A blob that is wanted."""

    __slots__ = (
        "bad",
        "blob",
        "crossing",
        "far",
        "first_s",
        "form",
        "forms",
        "full",
        "have",
        "heard_s",
        "keeping",
        "moved_s",
        "near",
        "news_s",
        "offered",
        "outside",
        "pending",
        "relieved",
        "root",
        "shares",
        "sources",
        "swarm",
    )

    def __init__(self, want: Want, forms: list[Form], have: dict[Digest, int], now_s: float) -> None:
        self.blob = want.item.whole.digest
        self.swarm = want.swarm
        self.forms = {form.digest: form for form in forms}
        """Those that can be used, the smallest first."""
        self.have = have
        self.form: Digest | None = None
        self.full = 0
        """All pieces of the form."""
        self.pending = 0
        """Pieces of the form that are in flight."""
        self.near: dict[Digest, int] = {}
        """What hosts of this region said they have, by form."""
        self.far: dict[Digest, int] = {}
        """What hosts of other regions said they have."""
        self.offered: dict[Digest, float] = {}
        """Forms that somebody has something of, and since when that is known."""
        self.sources: set[str] = set()
        """Regions that had the whole form when they were first heard of."""
        self.shares: dict[tuple[str, Digest, int], int] = {}
        self.bad: set[Digest] = set()
        self.keeping = False
        self.root: str | None = None
        """The host that brings it into this region."""
        self.outside = False
        """Whether this host may ask in other regions."""
        self.relieved = False
        self.first_s = now_s
        self.moved_s = now_s
        """When something of it was last asked for or came."""
        self.news_s = now_s
        """When something of it last came, or was new in this region."""
        self.heard_s = now_s
        """The same, or was new anywhere. Not moved by anything that can be said twice."""
        self.crossing = 0
        """Bytes that came from outside."""

    def lacking(self, form: Digest) -> int:
        return everything(pieces_in(self.forms[form].size)) & ~self.have.get(form, 0)


class _Get:
    __slots__ = ("bytes", "last_s", "left", "peer", "since_s")

    def __init__(self, peer: Peer, left: dict[Digest, int], size: int, now_s: float) -> None:
        self.peer = peer
        self.left = left
        self.bytes = size
        self.since_s = self.last_s = now_s


class _Question(NamedTuple):
    peer: Peer
    forms: frozenset[Digest]
    deadline_s: float


class Source(msgspec.Struct, frozen=True):
    """What a peer has been, for `lowcloud peers`."""

    peer: str
    near: bool
    wire_bytes: int
    rate: float | None
    failures: int
    reason: str
    banned: tuple[Digest, ...]


class Fetch:
    """Not thread-safe. `me` must be a host of every swarm."""

    def __init__(self, me: str, *, limits: Limits | None = None) -> None:
        self.me = me
        self.limits = limits or Limits()
        self._blobs: dict[Digest, _Blob] = {}
        self._waiting: deque[Want] = deque()
        self._wanted: set[Digest] = set()
        self._spooled: dict[Digest, int] = {}
        self._by_form: dict[Digest, _Blob] = {}
        self._peers: dict[str, Peer] = {}
        self._gets: dict[int, _Get] = {}
        self._questions: dict[int, _Question] = {}
        self._asking: dict[str, dict[Digest, _Blob] | None] = {}
        self._swarm: Swarm | None = None
        self._near: list[str] = []
        self._in_flight_bytes = 0
        self._ids = 0
        self._turn = int.from_bytes(blake3(me.encode()).digest(length=4), "little")
        self._out: list[Request] = []
        self._tick_s = 0.0

    # --- what a driver calls ---

    def want(
        self, wants: Iterable[Want], now_s: float, *, spooled: Mapping[Digest, int] | None = None
    ) -> list[Request]:
        """Fetch these too; `spooled` is what the spool has of their forms. A blob that is wanted already is not
        fetched twice. Raises ValueError for a swarm that this host is not in."""
        self._spooled.update(spooled or {})
        fresh = {want.item.whole.digest: want for want in wants if want.item.whole.digest not in self._wanted}
        for want in fresh.values():
            if self.me not in want.swarm.region_of:
                raise ValueError(f"{self.me} is no host of the swarm of {want.item.whole.digest}")
        self._wanted.update(fresh)
        self._waiting.extend(_bases_first(fresh))
        return self.take(Tick(), now_s)

    def take(self, event: Event, now_s: float) -> list[Request]:
        """What to do now that this has happened, in this order."""
        match event:
            case Arrived():
                self._arrived(event, now_s)
            case Told():
                self._told(event, now_s)
            case Tick():
                self._tick(now_s)
            case Wrong():
                self._wrong(event, now_s)
            case Over() | Busy() | Failed():
                self._over(event, now_s)
            case Kept():
                self._kept(event, now_s)
        self._fill(now_s)
        self._ask(now_s)
        out, self._out = self._out, []
        return out

    @property
    def wake_s(self) -> float | None:
        """When a Tick is due; None where nothing is wanted."""
        return self._tick_s if self._wanted else None

    @property
    def wanted(self) -> frozenset[Digest]:
        """The blobs that have not ended."""
        return frozenset(self._wanted)

    def sources(self) -> list[Source]:
        return [
            Source(p.name, p.near, p.bytes, p.rate, p.failures, p.reason, tuple(sorted(p.banned)))
            for p in self._peers.values()
        ]

    # --- blobs ---

    def _open(self, now_s: float) -> None:
        while self._waiting and len(self._blobs) < self.limits.open_blobs:
            want = self._waiting.popleft()
            forms = sorted(self._usable(want), key=lambda form: (form.size, form.digest))
            have = {form.digest: self._spooled.pop(form.digest, 0) for form in forms}
            blob = _Blob(want, forms, {form: held for form, held in have.items() if held}, now_s)
            self._blobs[blob.blob] = blob
            for form in forms:
                self._by_form[form.digest] = blob
            for digest in blob.forms:
                if not blob.lacking(digest) and not self._is_circular(blob, digest):
                    self._use(blob, digest)
                    break
            if self._swarm is not want.swarm:
                self._swarm = want.swarm
                self._near = list(want.swarm.circle(self.me))

    def _usable(self, want: Want) -> Iterator[Form]:
        for form in (want.item.whole, *want.item.others):
            possible = form.base is None or form.base in want.bases or form.base in self._blobs
            if possible and form.digest not in self._by_form:
                yield form

    def _is_circular(self, blob: _Blob, form: Digest) -> bool:
        """Whether the blobs that are waiting for each other's deltas would form a circle."""
        base = blob.forms[form].base
        for _ in range(len(self._blobs)):
            if base is None or base == blob.blob:
                break
            other = self._blobs.get(base)
            base = None if other is None or other.form is None else other.forms[other.form].base
        return base is not None

    def _use(self, blob: _Blob, form: Digest) -> None:
        """Fetch the blob in this form from now on."""
        if blob.form is not None and blob.pending:
            for number, get in list(self._gets.items()):
                if blob.form in get.left:
                    self._close(number, get, cancel=True)
        blob.form, blob.pending = form, 0
        blob.full = everything(pieces_in(blob.forms[form].size))
        for peer in self._peers.values():
            if form in peer.known:
                peer.dry = False
        self._keep_if_whole(blob)

    def _keep_if_whole(self, blob: _Blob) -> None:
        if blob.form is None or blob.keeping or blob.lacking(blob.form):
            return
        base = blob.forms[blob.form].base
        if base is None or base not in self._wanted:
            blob.keeping = True
            self._out.append(Keep(blob.blob, blob.form))

    def _kept(self, event: Kept, now_s: float) -> None:
        blob = self._blobs.get(event.blob)
        if blob is None or not blob.keeping or blob.form is None:
            return
        if event.ok:
            self._end(blob, ok=True, reason="")
            for other in list(self._blobs.values()):
                self._keep_if_whole(other)
            return
        blob.keeping = False
        self._discard(blob, blob.form, event.reason)
        blob.news_s = blob.moved_s = blob.heard_s = now_s

    def _discard(self, blob: _Blob, form: Digest, reason: str) -> None:
        """This form leads nowhere; another one, or none."""
        if blob.form == form:
            blob.form, blob.pending = None, 0
        blob.forms.pop(form, None)
        blob.have.pop(form, None)
        blob.offered.pop(form, None)
        self._by_form.pop(form, None)
        for peer in self._peers.values():
            peer.known.pop(form, None)
        if not blob.forms:
            self._end(blob, ok=False, reason=reason)

    def _end(self, blob: _Blob, *, ok: bool, reason: str) -> None:
        for number, get in list(self._gets.items()):
            if any(form in get.left for form in blob.forms):
                self._close(number, get, cancel=True)
        for form in blob.forms:
            self._by_form.pop(form, None)
            for peer in self._peers.values():
                peer.known.pop(form, None)
        self._blobs.pop(blob.blob, None)
        self._wanted.discard(blob.blob)
        self._out.append(Ended(blob.blob, ok, reason))
        if not ok:
            self._drop_deltas_of(blob.blob)
        if not self._wanted:
            self._out += [Cancel(number) for number in self._questions]
            self._questions.clear()

    def _drop_deltas_of(self, base: Digest) -> None:
        for other in list(self._blobs.values()):
            for form in [form for form in other.forms.values() if form.base == base]:
                if other.form == form.digest:
                    for number, get in list(self._gets.items()):
                        if form.digest in get.left:
                            self._close(number, get, cancel=True)
                self._discard(other, form.digest, f"the base {base} of its delta could not be had")

    # --- events ---

    def _told(self, event: Told, now_s: float) -> None:
        question = self._questions.pop(event.id, None)
        if question is None:
            return
        peer = question.peer
        peer.asked = 0
        peer.failures = 0
        news = False
        for form, said in event.holdings.items():
            blob = self._by_form.get(form)
            if blob is None or form not in question.forms or blob.blob in peer.banned:
                continue
            whole = everything(pieces_in(blob.forms[form].size))
            held = said & whole
            if not held or said < 0:
                continue
            if form not in peer.known and held == whole and not peer.near:
                blob.sources.add(blob.swarm.region_of[peer.name])
            fresh = held & ~peer.known.get(form, 0)
            peer.known[form] = held
            blob.offered.setdefault(form, now_s)
            said_before = blob.near if peer.near else blob.far
            seen = said_before.get(form, 0)
            if held & ~seen:
                said_before[form] = seen | held
                blob.heard_s = now_s
                if peer.near:
                    blob.news_s = now_s
            news = news or fresh != 0
            if blob.form is None:
                self._choose(blob, now_s)
        peer.dry = not news and peer.dry
        peer.tell_s = now_s + (self.limits.ask_gap_s if news else self.limits.tick_s)

    def _choose(self, blob: _Blob, now_s: float) -> None:
        """The smallest form that is offered, once it is clear that no smaller one comes."""
        offered = [form for form in blob.forms if form in blob.offered and not self._is_circular(blob, form)]
        if not offered:
            return
        settled = now_s >= min(blob.offered[form] for form in offered) + self.limits.settle_s
        if settled or offered[0] == next(iter(blob.forms)):
            self._use(blob, offered[0])

    def _arrived(self, event: Arrived, now_s: float) -> None:
        get = self._gets.get(event.id)
        if get is None or event.first < 0 or event.count < 1 or event.form not in get.left:
            return
        came = get.left[event.form] & (everything(event.count) << event.first)
        if not came:
            return
        get.left[event.form] &= ~came
        peer = get.peer
        peer.delivered(now_s, get.last_s, event.wire_bytes)
        get.last_s = now_s
        size = came.bit_count() * PIECE_BYTES
        get.bytes -= size
        self._in_flight_bytes -= size
        blob = self._by_form[event.form]
        blob.have[event.form] = blob.have.get(event.form, 0) | came
        blob.pending &= ~came
        blob.moved_s = blob.news_s = blob.heard_s = now_s
        blob.relieved = False
        if not peer.near:
            blob.crossing += event.wire_bytes
        if not any(get.left.values()):
            self._close(event.id, get, cancel=False)
        self._keep_if_whole(blob)

    def _wrong(self, event: Wrong, now_s: float) -> None:
        get = self._gets.get(event.id)
        if get is None:
            return
        blob = self._by_form.get(event.form)
        self._close(event.id, get, cancel=False)
        if blob is None or event.form not in get.left:
            return
        get.peer.banned.add(blob.blob)
        get.peer.reason = f"sent a wrong piece {event.index} of {event.form}"
        for form in blob.forms:
            get.peer.known.pop(form, None)
        for number, other in list(self._gets.items()):
            if other.peer is get.peer and any(form in other.left for form in blob.forms):
                self._close(number, other, cancel=True)
        self._plan(now_s)

    def _over(self, event: Over | Busy | Failed, now_s: float) -> None:
        question = self._questions.pop(event.id, None)
        get = self._gets.get(event.id)
        empty = False
        if question is not None:
            question.peer.asked = 0
            peer = question.peer
        elif get is not None:
            empty = get.last_s == get.since_s
            for form, left in get.left.items():  # It may not have these after all.
                if form in get.peer.known:
                    get.peer.known[form] &= ~left
            peer = get.peer
            self._close(event.id, get, cancel=False)
        else:
            return
        peer.tell_s = max(peer.tell_s, now_s + self.limits.tick_s)
        if isinstance(event, Busy):
            peer.again_s = max(peer.again_s, now_s + min(max(event.again_s, 0.0), 60.0))
        elif isinstance(event, Failed):
            self._leave(peer, now_s, event.reason)
        elif empty:
            self._leave(peer, now_s, "offered pieces that it did not have")

    def _leave(self, peer: Peer, now_s: float, reason: str) -> None:
        peer.failed(now_s, reason)
        peer.known.clear()
        peer.dry = True
        for number, get in list(self._gets.items()):
            if get.peer is peer:
                self._close(number, get, cancel=True)
        for number, question in list(self._questions.items()):
            if question.peer is peer:
                del self._questions[number]
                peer.asked = 0
                self._out.append(Cancel(number))
        self._plan(now_s)

    def _close(self, number: int, get: _Get, *, cancel: bool) -> None:
        """This request is over; what did not come is free to be asked for again."""
        del self._gets[number]
        get.peer.gets -= 1
        self._in_flight_bytes -= get.bytes
        freed = False
        for form, left in get.left.items():
            blob = self._by_form.get(form)
            if blob is not None and left and blob.form == form:
                blob.pending &= ~left
                freed = True
        if freed:
            for peer in self._peers.values():
                peer.dry = peer.dry and not peer.known
        elif get.peer.known:
            get.peer.dry = False
        if cancel:
            self._out.append(Cancel(number))

    # --- time ---

    def _tick(self, now_s: float) -> None:
        self._tick_s = now_s + self.limits.tick_s
        self._open(now_s)
        for number, question in list(self._questions.items()):
            if now_s >= question.deadline_s and number in self._questions:
                self._leave(question.peer, now_s, "did not answer a question")
        for number, get in list(self._gets.items()):
            if number in self._gets:
                self._look_after(get, now_s)
        for blob in list(self._blobs.values()):
            if blob.keeping:
                continue
            if now_s - blob.heard_s >= self.limits.patience_s:
                self._end(blob, ok=False, reason=_why(blob, self.limits.patience_s))
            elif blob.form is None:
                self._choose(blob, now_s)
            elif not blob.pending and now_s - blob.moved_s > 2 * self.limits.relief_s:
                self._change_form(blob, now_s)
        self._plan(now_s)
        for peer in self._peers.values():
            peer.dry = not peer.known

    def _look_after(self, get: _Get, now_s: float) -> None:
        """Leave a peer that sends nothing, or so little that another one would have been done long ago."""
        silent_s = now_s - get.last_s
        if silent_s >= self.limits.stall_s:
            self._leave(get.peer, now_s, f"sent nothing for {silent_s:.0f} s")
            return
        if silent_s < self.limits.slow_s:
            return
        rate = get.bytes / silent_s
        for peer in self._peers.values():
            if peer is get.peer or not peer.is_well(now_s) or peer.gets >= self.limits.gets_per_peer:
                continue
            quick = silent_s >= self.limits.stall_s / 2 if peer.rate is None else peer.rate > SLOWER * rate
            if quick and any(self._allowed(self._by_form[form], peer, form) & left for form, left in get.left.items()):
                get.peer.rate = rate
                self._leave(get.peer, now_s, f"slow: less than {rate:.0f} bytes in a second")
                return

    def _change_form(self, blob: _Blob, now_s: float) -> None:
        """Where nobody offers what is missing of the form, take another one that somebody does offer."""
        for form in blob.forms:
            lacking = 0 if self._is_circular(blob, form) else blob.lacking(form)
            for peer in self._peers.values():
                if lacking & peer.known.get(form, 0) and peer.is_well(now_s) and (peer.near or blob.outside):
                    if form != blob.form:
                        self._use(blob, form)
                    return

    def _plan(self, now_s: float) -> None:
        """Who is to be asked about what, as long as nothing changes."""
        limits = self.limits
        asking: dict[str, dict[Digest, _Blob] | None] = {}
        for name in self._near:
            if len(asking) >= limits.neighbours:
                break
            if self._is_well(name, now_s):
                asking[name] = None
        left = [peer.name for peer in self._peers.values() if peer.near and not peer.is_well(now_s)]
        for blob in self._blobs.values():
            if not blob.keeping:
                self._plan_one(blob, asking, left, now_s)
        self._asking = asking

    def _plan_one(
        self, blob: _Blob, asking: dict[str, dict[Digest, _Blob] | None], left: list[str], now_s: float
    ) -> None:
        limits = self.limits
        place = blob.swarm.place(self.me, blob.blob)
        ahead = sum(blob.swarm.place(name, blob.blob) < place for name in left if name in blob.swarm.region_of)
        rank = place - ahead
        region = blob.swarm.region_of[self.me]
        blob.root = next((h for h in blob.swarm.ranking(region, blob.blob) if self._is_well(h, now_s)), self.me)
        blob.outside = now_s >= blob.news_s + limits.takeover_s * rank.bit_length()
        blob.relieved = not blob.pending and now_s - blob.moved_s > limits.relief_s
        wanted = list(blob.forms) if blob.form is None else [blob.form]
        if blob.root != self.me and asking.get(blob.root, {}) is not None:
            mine = any(blob.lacking(form) & self._share_inside(blob, form) for form in wanted)
            if mine or rank <= 2 or blob.relieved:
                _add(asking, blob.root, blob)
        if blob.outside:
            quiet = now_s - max(blob.heard_s, blob.moved_s) > limits.relief_s
            for name in self._outsiders(blob, region, explore=quiet, now_s=now_s):
                _add(asking, name, blob)

    def _outsiders(self, blob: _Blob, region: str, *, explore: bool, now_s: float) -> Iterator[str]:
        """The bringers of the other regions, and in turn some other hosts where there is no news."""
        bringers = len(blob.swarm.regions) - 1
        taken = 0
        rest: list[str] = []
        for place, name in enumerate(blob.swarm.outside(region, blob.blob)):
            if place >= bringers and not explore and taken >= min(bringers, self.limits.outside):
                break
            if not self._is_well(name, now_s):
                continue
            if taken < min(bringers, self.limits.outside):
                taken += 1
                yield name
            else:
                rest.append(name)
        if explore and rest:
            turn = int((now_s - blob.first_s) / self.limits.relief_s) * EXPLORED
            yield from {rest[(turn + step) % len(rest)]: None for step in range(EXPLORED)}

    def _is_near(self, name: str) -> bool:
        swarms = (blob.swarm.region_of for blob in self._blobs.values())
        return any(name in regions and regions[name] == regions[self.me] for regions in swarms)

    def _is_well(self, name: str, now_s: float) -> bool:
        peer = self._peers.get(name)
        return peer is None or peer.is_well(now_s)

    # --- which pieces ---

    def _allowed(self, blob: _Blob, peer: Peer, form: Digest) -> int:
        """The pieces of a form that may be taken from a peer, of those it has."""
        known = peer.known.get(form, 0)
        if not known or blob.blob in peer.banned:
            return 0
        if peer.near:
            if peer.name == blob.root and not blob.relieved:
                known &= self._share_inside(blob, form)
        elif not blob.outside:
            return 0
        elif not blob.relieved:
            known &= ~blob.near.get(form, 0)
            if blob.swarm.region_of[peer.name] in blob.sources:
                known &= self._share_outside(blob, form)
        return known

    def _share_inside(self, blob: _Blob, form: Digest) -> int:
        """What this host takes from the bringer of its region."""
        root = blob.root or self.me
        hosts = blob.swarm.ranking(blob.swarm.region_of[self.me], blob.blob)
        key = (root, form, 0)
        if key not in blob.shares:
            at, before = blob.swarm.place(self.me, blob.blob), blob.swarm.place(root, blob.blob)
            blob.shares[key] = self._share(form, blob.forms[form].size, at - (before < at), len(hosts) - 1)
        return blob.shares[key]

    def _share_outside(self, blob: _Blob, form: Digest) -> int:
        """What this host takes from those that had the blob first."""
        key = ("", form, len(blob.sources))
        if key not in blob.shares:
            mine = blob.swarm.region_of[self.me]
            group = [region for region in blob.swarm.regions if region == mine or region not in blob.sources]
            blob.shares[key] = self._share(form, blob.forms[form].size, group.index(mine), len(group))
        return blob.shares[key]

    def _share(self, form: Digest, size: int, place: int, among: int) -> int:
        pieces = pieces_in(size)
        run = self._run(pieces)
        if among <= 1:
            return everything(pieces)
        first = (place - int(form[len(PREFIX) : len(PREFIX) + 8], 16)) % among
        found = 0
        for number in range(first, -(-pieces // run), among):
            found |= everything(run) << number * run
        return found & everything(pieces)

    def _run(self, pieces: int) -> int:
        return max(1, min(self.limits.run_pieces, pieces // MIN_RUNS))

    def _pick(self, peer: Peer) -> dict[Digest, int]:
        """Pieces to get from a peer: one run of a large form, or many small forms."""
        picked: dict[Digest, int] = {}
        room = min(self.limits.run_pieces * PIECE_BYTES, self.limits.in_flight_bytes - self._in_flight_bytes)
        forms = self._offers(peer)
        for form in forms:
            blob = self._by_form[form]
            if blob.form != form or blob.keeping:
                continue
            open_pieces = self._allowed(blob, peer, form) & ~blob.pending & blob.lacking(form)
            if not open_pieces:
                continue
            if blob.full != 1:
                if not picked:
                    picked[form] = self._one_run(open_pieces, blob.full.bit_length())
                    return picked
                continue
            room -= blob.forms[form].size
            if picked and (room < 0 or len(picked) >= MAX_GET_PARTS):
                break
            picked[form] = 1
        return picked

    def _offers(self, peer: Peer) -> list[Digest]:
        """What it has something of, each time beginning elsewhere."""
        self._turn += 1
        forms = list(peer.known)
        at = self._turn % len(forms) if forms else 0
        return forms[at:] + forms[:at]

    def _one_run(self, open_pieces: int, pieces: int) -> int:
        """Some consecutive ones of these, within one run."""
        run = self._run(pieces)
        runs = -(-pieces // run)
        start = (self._turn * 0x9E3779B1 >> 7) % runs * run
        behind = open_pieces >> start << start or open_pieces
        first = (behind & -behind).bit_length() - 1
        end = (first // run + 1) * run
        span = behind >> first & everything(end - first)
        count = (~span & span + 1).bit_length() - 1
        return everything(count) << first

    # --- requests ---

    def _fill(self, now_s: float) -> None:
        """Ask for pieces, of the least busy and fastest peers first, as long as there is room."""
        limits = self.limits
        ready = [
            peer
            for peer in self._peers.values()
            if not peer.dry and peer.gets < limits.gets_per_peer and peer.is_well(now_s)
        ]
        while ready and len(self._gets) < limits.gets and self._in_flight_bytes < limits.in_flight_bytes:
            peer = min(ready, key=_preference)
            picked = self._pick(peer)
            if picked:
                self._get(peer, picked, now_s)
            else:
                peer.dry = True
            if not picked or peer.gets >= limits.gets_per_peer:
                ready.remove(peer)

    def _get(self, peer: Peer, picked: dict[Digest, int], now_s: float) -> None:
        self._ids += 1
        parts = []
        pieces = 0
        for form, mask in picked.items():
            first = (mask & -mask).bit_length() - 1
            count = mask.bit_count()
            parts.append(Part(form, first, count))
            pieces += count
            blob = self._by_form[form]
            blob.pending |= mask
            blob.moved_s = now_s
        self._gets[self._ids] = _Get(peer, picked, pieces * PIECE_BYTES, now_s)
        self._in_flight_bytes += pieces * PIECE_BYTES
        peer.gets += 1
        self._out.append(Get(self._ids, peer.name, tuple(parts)))

    def _ask(self, now_s: float) -> None:
        """Ask those that have nothing to offer what they have by now."""
        if len(self._gets) >= self.limits.gets:
            return
        for name, about in self._asking.items():
            if len(self._questions) >= self.limits.asks:
                return
            peer = self._peers.get(name)
            if peer is None:
                peer = self._peers[name] = Peer(name, near=self._is_near(name))
            if peer.asked or not peer.dry or now_s < peer.tell_s or not peer.is_well(now_s):
                continue
            forms = self._questions_for(peer, self._blobs if about is None else about)
            if forms:
                self._ids += 1
                peer.asked = self._ids
                deadline_s = now_s + self.limits.wait_s + self.limits.answer_s
                self._questions[self._ids] = _Question(peer, frozenset(forms), deadline_s)
                self._out.append(Ask(self._ids, name, forms, self.limits.wait_s))

    def _questions_for(self, peer: Peer, about: dict[Digest, _Blob]) -> dict[Digest, int]:
        """By form, what would be news from this peer."""
        forms: dict[Digest, int] = {}
        for digest, blob in about.items():
            if blob.keeping or digest in peer.banned or digest not in self._blobs:
                continue
            for form in blob.forms if blob.form is None or blob.relieved else (blob.form,):
                news = blob.lacking(form) & ~peer.known.get(form, 0)
                if form == blob.form:
                    news &= ~blob.pending
                    if peer.name == blob.root and not blob.relieved:
                        news &= self._share_inside(blob, form)
                if news:
                    forms[form] = news
            if len(forms) > MAX_ASK_FORMS - MAX_FORMS - 1:
                break
        return forms


def _preference(peer: Peer) -> tuple[int, bool, float]:
    return peer.gets, not peer.near, -(peer.rate or 1e12)


def _add(asking: dict[str, dict[Digest, _Blob] | None], name: str, blob: _Blob) -> None:
    about = asking.setdefault(name, {})
    if about is not None:
        about[blob.blob] = blob


def _bases_first(wants: dict[Digest, Want]) -> Iterator[Want]:
    """The same wants, those first that others may be made from: a delta is used once its base is on its way."""
    seen: set[Digest] = set()
    for start in wants:
        path = [(start, False)]
        while path:
            digest, ready = path.pop()
            if ready:
                yield wants[digest]
            elif digest not in seen:
                seen.add(digest)
                bases = (form.base for form in wants[digest].item.others)
                path.append((digest, True))
                path += [(base, False) for base in bases if base in wants and base not in seen and base is not None]


def _why(blob: _Blob, patience_s: float) -> str:
    if not blob.offered:
        return f"no host that was asked has it; {patience_s:.0f} s without news"
    return f"the hosts that have it sent nothing for {patience_s:.0f} s"
