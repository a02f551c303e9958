"""What a host fetches from whom: blobs that it wants, from the peers that have them or are getting them too.

`Fetch` decides and does nothing else. It is told events, and answers each with requests (`cas.swarm.messages`); it has
no clock, no randomness and no I/O of its own, so the agent (over HTTP) and the simulator drive the same object.

- **One crossing.** In each region one host brings a blob in (`ranking`). The others wait for news from inside; only
  when there is none for long enough does the next in the ranking go outside too (`asking`).
- **No queue.** Of small blobs no more is asked for over a border than it lets through soon (`inflow`).
- **Shares.** A source sends each piece once, and the group that it serves hands the pieces on (`pieces`); what was not
  taken in time, others take (`late`).
- **Left.** A peer that fails, or is silent for much longer than peers lately were, is left alone for a while, each time
  for longer (`doubt`); one that is slow is asked for little at a time; one that sends a wrong piece is banned for
  the blob. A bringer that owes what it told of, or is far slower than the others, is replaced (`bringers`).
- **Forms.** The smallest form that can be used and that somebody has; a larger one when that leads nowhere (`wanted`).

A piece is asked for once at a time. Bounded are the questions and the bytes in flight, the blobs that are open at a
time, and what is remembered of peers. Nothing loops: requests are made only in answer to an event, and a blob about
which nothing new comes for `patience_s` ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cas.digest import Digest
from cas.swarm.asking import Asking
from cas.swarm.blob import Blob, Want
from cas.swarm.doubt import Doubt
from cas.swarm.getting import Getting
from cas.swarm.in_flight import InFlight, PendingGet, Question
from cas.swarm.late import Late
from cas.swarm.limits import Limits
from cas.swarm.messages import (
    Arrived,
    Ask,
    Busy,
    Cancel,
    Ended,
    Event,
    Failed,
    Flowing,
    Keep,
    Kept,
    Over,
    Request,
    Tick,
    Told,
    Wrong,
    everything,
)
from cas.swarm.patience import Pace
from cas.swarm.peer import Peer
from cas.swarm.pieces import Picker
from cas.swarm.wanted import Wanted


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
        self._wanted = Wanted(me, self.limits.open_blobs)
        self._peers: dict[str, Peer] = {}
        self._flight = InFlight()
        picker = Picker(me, self.limits)
        self._near_pace, self._far_pace = Pace(), Pace()
        self._doubt = Doubt(self.limits, self._wanted, self._peers, self._flight, self._near_pace, self._far_pace)
        self._getting = Getting(self.limits, self._wanted, self._flight, picker, self._far_pace, self._doubt)
        self._late = Late(self.limits, self._peers, self._near_pace, self._far_pace)
        self._asking = Asking(me, self.limits, self._peers, picker, self._near_pace)
        self._out: list[Request] = []
        self._tick_s = 0.0
        self._asks_s = 0.0
        """When one that is to be asked may be asked again."""

    # --- what a driver calls ---

    def want(
        self, wants: Iterable[Want], now_s: float, *, spooled: Mapping[Digest, int] | None = None
    ) -> list[Request]:
        """Fetch these too; `spooled` is what the spool has of their forms. A blob that is wanted already is not
        fetched twice. Raises ValueError for a swarm that this host is not in."""
        wants = list(wants)
        for want in wants:
            if self.me not in want.swarm.region_of:
                raise ValueError(f"{self.me} is no host of the swarm of {want.item.whole.digest}")
        self._wanted.add(wants, spooled or {})
        self._tick_s = now_s
        return self.take(Tick(), now_s)

    def take(self, event: Event, now_s: float) -> list[Request]:
        """What to do now that this has happened, in this order."""
        self._getting.look(now_s)
        match event:
            case Arrived():
                self._arrived(event, now_s)
            case Flowing():
                self._flowing(event, now_s)
            case Told():
                self._told(event, now_s)
            case Tick():
                if now_s >= self._tick_s:
                    self._tick(now_s)
            case Wrong():
                self._wrong(event, now_s)
            case Over() | Busy() | Failed():
                self._over(event, now_s)
            case Kept():
                self._kept(event, now_s)
        gets, none_from = self._getting.fill(now_s)
        self._out += gets
        for peer in none_from:
            self._asking.again(peer.name)
        self._ask(now_s)
        out, self._out = self._out, []
        return out

    @property
    def wake_s(self) -> float | None:
        """When a Tick is due; None where nothing is wanted. A host that waits for pieces hears of them then; one that
        does not is to ask as soon as it may, so that the last pieces of a blob wait for nobody's clock."""
        if not self._wanted.digests:
            return None
        return self._tick_s if self._flight.gets else min(self._tick_s, self._asks_s)

    @property
    def wanted(self) -> frozenset[Digest]:
        """The blobs that have not ended."""
        return frozenset(self._wanted.digests)

    def stay_inside(self, stays: bool, now_s: float) -> None:
        """Whether hosts of other regions are to be asked nothing, from the next tick on: as long as somebody has this
        region's hosts bring in what they are told to."""
        self._asking.stay_inside(stays, now_s)

    @property
    def is_near(self) -> bool:
        """Whether something is wanted, and hosts of the own region that are believed have all of it."""
        wanted = self._wanted
        is_open = bool(wanted.digests) and wanted.digests == wanted.open.keys()
        return is_open and all(blob.is_near() for blob in wanted.open.values())

    def sources(self) -> list[Source]:
        return [
            Source(p.name, p.near, p.bytes, p.rate, p.failures, p.reason, tuple(sorted(p.banned)))
            for p in self._peers.values()
        ]

    # --- what was told ---

    def _told(self, event: Told, now_s: float) -> None:
        question = self._flight.remove_question(event.id)
        if question is None:
            return
        peer = question.peer
        peer.answered(now_s)
        self._asking.answered()
        news = False
        for form, said in event.holdings.items():
            blob = self._wanted.by_form.get(form)
            if blob is not None and form in question.forms and blob.blob not in peer.banned and said > 0:
                news = self._has(peer, blob, form, said, now_s) or news
        if news:
            self._getting.offer(peer)
        self._asking.again(peer.name)
        few = min(1.0, len(self._asking.about) / self.limits.neighbours)  # who has few to ask may ask them more often
        peer.tell_s = now_s + few * (self.limits.ask_gap_s if news else self.limits.tick_s)

    def _has(self, peer: Peer, blob: Blob, form: Digest, said: int, now_s: float) -> bool:
        """Note what a peer has of a form; whether there is something new among it that may be asked for."""
        whole, known = blob.wholes[form], peer.known.get(form)
        held = said & whole
        if held == (known or 0):
            return False
        if known is None and held == whole and not peer.near:
            blob.sources.add(blob.swarm.region_of[peer.name])
        peer.known[form] = held
        if not peer.near and held & ~(known or 0):
            blob.told_s[peer.name] = now_s
        blob.offered.setdefault(form, now_s)
        said_before = blob.said_near if peer.near else blob.said_far
        seen = said_before.get(form, 0)
        if new := held & ~seen:
            said_before[form] = seen | held
            blob.heard_s = now_s
            new &= ~blob.have.get(form, 0)
            if peer.near and not peer.suspect and new:
                self._asking.told(blob, new.bit_count(), now_s)
        if peer.near and not peer.suspect:
            blob.near[form] = blob.near.get(form, 0) | held
        if blob.form is None:
            self._choose(blob, now_s)
        return bool(held & ~(known or 0) & blob.open)

    def _arrived(self, event: Arrived, now_s: float) -> None:
        get = self._flight.gets.get(event.id)
        if get is None or event.first < 0 or event.count < 1 or event.form not in get.left:
            return
        came = get.left[event.form] & (everything(event.count) << event.first)
        if not came:
            return
        wait_s = now_s - max(get.last_s, get.peer.last_s)
        get.peer.delivered(now_s, wait_s, event.wire_bytes)
        (self._near_pace if get.peer.near else self._far_pace).waited(wait_s)
        self._getting.came(get.peer, event.wire_bytes, now_s)
        get.last_s = now_s
        is_last = self._flight.came(get, event.form, came)
        blob = self._wanted.by_form[event.form]
        new = came & ~blob.near.get(event.form, 0)
        self._asking.came(blob, new.bit_count(), now_s)
        blob.came(event.form, came, now_s)
        if is_last:
            self._close(get, cancel=False)
        self._keep_if_whole(blob)

    def _flowing(self, event: Flowing, now_s: float) -> None:
        """It is not silent, though no piece is whole yet: this host's own link may be the slow one."""
        get = self._flight.gets.get(event.id)
        if get is None:
            return
        get.flowed_s = now_s
        for form in get.left:
            self._wanted.by_form[form].flowed_s = now_s

    def _wrong(self, event: Wrong, now_s: float) -> None:
        get = self._flight.gets.get(event.id)
        if get is None:
            return
        blob = self._wanted.by_form.get(event.form)
        self._close(get, cancel=False)
        if blob is None or event.form not in get.left:
            return
        get.peer.ban(blob.blob, f"sent a wrong piece {event.index} of {event.form}")
        get.peer.suspect = True
        if get.peer.near:  # Nor what it says of other blobs, until it has sent something of them.
            self._believe_no_more(get.peer, get.peer.known)
        for form in blob.forms:
            get.peer.known.pop(form, None)
        for other in self._flight.gets_of(blob.forms):
            if other.peer is get.peer:
                self._close(other, cancel=True)
        self._asking.plan(self._wanted.open.values(), now_s)

    def _over(self, event: Over | Busy | Failed, now_s: float) -> None:
        question, get = self._flight.remove_question(event.id), self._flight.gets.get(event.id)
        empty = False
        if question is not None:
            peer = question.peer
        elif get is not None:
            peer = get.peer
            empty = get.last_s == get.since_s
            if not isinstance(event, Busy):
                for form, left in get.left.items():  # It may not have these after all.
                    if form in peer.known:
                        peer.known[form] &= ~left
            self._close(get, cancel=False)
        else:
            return
        peer.tell_s = max(peer.tell_s, now_s + self.limits.tick_s)
        if isinstance(event, Busy):
            peer.busy_s = max(peer.busy_s, now_s + min(max(event.again_s, 0.0), 60.0))
            if get is not None:
                self._was_busy(peer, get, now_s)
            else:
                peer.mute = peer.gets > 0
        elif isinstance(event, Failed):
            if question is None:
                self._leave(peer, now_s, event.reason)
            else:
                self._not_answered(question, now_s, event.reason)
        elif empty:
            peer.suspect = True
            self._leave(peer, now_s, "offered pieces that it did not have")

    def _not_answered(self, question: Question, now_s: float, reason: str) -> None:
        """Who sends pieces meanwhile is there: over a thin line there is no room for more."""
        self._asking.failed(question.asked_s)
        gets = self._flight.gets_from(question.peer)
        if any(max(get.flowed_s, get.last_s) > max(get.since_s, question.asked_s) for get in gets):
            question.peer.mute = True
        else:
            self._leave(question.peer, now_s, reason)

    def _was_busy(self, peer: Peer, get: PendingGet, now_s: float) -> None:
        """That is no blame, but for as long as silence is borne, while nobody of the region gets anything of it either,
        it is as if it kept what it has."""
        if peer.busy_since_s is None:
            peer.busy_since_s = now_s
        for form in get.left:
            self._wanted.by_form[form].asked_in_vain()
        news_s = max(self._wanted.by_form[form].news_s for form in get.left)
        if now_s - max(peer.busy_since_s, news_s) >= self.limits.stall_s and not peer.suspect:
            peer.suspect = True
            if peer.near:
                self._believe_no_more(peer, peer.known)
            self._asking.plan(self._wanted.open.values(), now_s)

    def _kept(self, event: Kept, now_s: float) -> None:
        blob = self._wanted.open.get(event.blob)
        if blob is None or not blob.keeping or blob.form is None:
            return
        if event.ok:
            self._end(blob, ok=True, reason="")
            for other in list(self._wanted.open.values()):
                self._keep_if_whole(other)
            return
        blob.keeping = False
        self._discard(blob, blob.form, event.reason)
        blob.news_s = blob.moved_s = blob.heard_s = now_s

    # --- time ---

    def _tick(self, now_s: float) -> None:
        self._tick_s = now_s + self.limits.tick_s
        self._open(now_s)
        for number, question in list(self._flight.questions.items()):
            if now_s >= question.deadline_s and number in self._flight.questions:
                self._flight.remove_question(number)
                self._out.append(Cancel(number))
                self._not_answered(question, now_s, "did not answer a question")
        for peer, silent_s in self._doubt.silent(now_s):
            peer.suspect = True
            self._leave(peer, now_s, f"sent nothing for {silent_s:.1f} s")
        if self._doubt.starving:
            self._getting.starve()
        for get in self._doubt.needless(now_s):
            self._close(get, cancel=True)
        for blob in list(self._wanted.open.values()):
            if not blob.keeping:
                self._look_after(blob, now_s)
        self._late.look(self._wanted.open.values(), now_s)
        self._asking.plan(self._wanted.open.values(), now_s)
        self._look_again()

    def _open(self, now_s: float) -> None:
        for blob in self._wanted.open_more(now_s):
            self._asking.join(blob.swarm)
            if (form := self._wanted.whole(blob)) is not None:
                self._use(blob, form)

    def _look_after(self, blob: Blob, now_s: float) -> None:
        if now_s - max(blob.heard_s, blob.flowed_s) >= self.limits.patience_s:
            self._end(blob, ok=False, reason=blob.why_not(self.limits.patience_s))
        elif blob.form is None:
            self._choose(blob, now_s)
        elif not blob.pending and now_s - blob.moved_s > 2 * self.limits.relief_s:
            self._change_form(blob, now_s)

    # --- forms ---

    def _choose(self, blob: Blob, now_s: float) -> None:
        form = self._wanted.best_offer(blob, now_s, self.limits.settle_s)
        if form is not None:
            self._use(blob, form)

    def _change_form(self, blob: Blob, now_s: float) -> None:
        """Where nobody offers what is missing of the form, take another one that somebody does offer."""
        for form in blob.forms:
            lacking = 0 if self._wanted.is_circular(blob, form) else blob.lacking(form)
            for peer in self._peers.values():
                if lacking & peer.known.get(form, 0) and peer.is_well(now_s) and (peer.near or blob.outside):
                    if form != blob.form:
                        self._use(blob, form)
                    return

    def _use(self, blob: Blob, form: Digest) -> None:
        """Fetch the blob in this form from now on."""
        if blob.form is not None and blob.pending:
            self._close_all_of([blob.form])
        blob.use(form)
        self._look_again()
        self._keep_if_whole(blob)

    def _keep_if_whole(self, blob: Blob) -> None:
        if blob.form is not None and self._wanted.can_be_kept(blob):
            blob.keeping = True
            self._out.append(Keep(blob.blob, blob.form))

    def _discard(self, blob: Blob, form: Digest, reason: str) -> None:
        """This form leads nowhere; another one, or none."""
        if blob.form == form:
            blob.use(None)
        self._wanted.drop(blob, form)
        self._forget([form])
        if not blob.forms:
            self._end(blob, ok=False, reason=reason)

    def _end(self, blob: Blob, *, ok: bool, reason: str) -> None:
        self._close_all_of(blob.forms)
        self._wanted.close(blob)
        self._forget(blob.forms)
        self._out.append(Ended(blob.blob, ok, reason))
        if not ok:
            for other, form in self._wanted.deltas_of(blob.blob):
                if other.form == form:
                    self._close_all_of([form])
                self._discard(other, form, f"the base {blob.blob} of its delta could not be had")
        if not self._wanted.digests:
            self._out += [Cancel(number) for number in self._flight.questions]
            self._flight.questions.clear()

    def _forget(self, forms: Iterable[Digest]) -> None:
        for form in forms:
            for peer in self._peers.values():
                peer.known.pop(form, None)

    # --- requests ---

    def _look_again(self) -> None:
        """Something is free to be asked for that was not."""
        self._getting.offer_anew(self._peers.values())
        self._asking.all_again()

    def _ask(self, now_s: float) -> None:
        """Ask those that have nothing to offer what they have by now."""
        limits, flight = self.limits, self._flight
        self._asks_s = self._tick_s
        if not self._getting.has_room and not self._asking.doubtful:
            return
        for name in list(self._asking.due):
            if len(flight.questions) >= limits.asks:
                return
            peer = self._peers.get(name)
            if peer is None:
                peer = self._peers[name] = Peer(name, near=self._is_near(name))
            if now_s < peer.tell_s:
                if not peer.asked:
                    self._asks_s = min(self._asks_s, peer.tell_s)
                continue
            del self._asking.due[name]
            if peer.asked or peer.mute or name in self._getting.offering or not peer.is_well(now_s):
                continue
            forms = self._asking.questions_for(peer, self._wanted.open)
            if forms:
                number = flight.add_question(peer, forms, now_s, now_s + limits.wait_s + limits.answer_s)
                self._out.append(Ask(number, name, forms, limits.wait_s))

    def _is_near(self, name: str) -> bool:
        swarms = (blob.swarm.region_of for blob in self._wanted.open.values())
        return any(name in regions and regions[name] == regions[self.me] for regions in swarms)

    # --- requests that are over ---

    def _close(self, get: PendingGet, *, cancel: bool) -> None:
        """This request is over; what did not come is free to be asked for again."""
        self._flight.remove_get(get)
        if get.peer.mute:
            get.peer.mute = False
            self._asking.again(get.peer.name)
        freed = False
        for form, left in get.left.items():
            blob = self._wanted.by_form.get(form)
            if blob is not None and left and blob.form == form:
                blob.given_up(left)
                freed = True
        if freed:
            self._look_again()
        else:
            self._getting.offer(get.peer)
        if cancel:
            self._out.append(Cancel(get.id))

    def _close_all_of(self, forms: Iterable[Digest]) -> None:
        for get in self._flight.gets_of(forms):
            self._close(get, cancel=True)

    def _leave(self, peer: Peer, now_s: float, reason: str) -> None:
        peer.failed(now_s, reason)
        if peer.near:
            self._believe_no_more(peer, peer.known)
        peer.known.clear()
        self._getting.withdraw(peer)
        for get in self._flight.gets_from(peer):
            self._close(get, cancel=True)
        for number in self._flight.questions_to(peer):
            self._flight.remove_question(number)
            self._out.append(Cancel(number))
        self._asking.plan(self._wanted.open.values(), now_s)

    def _believe_no_more(self, peer: Peer, forms: Iterable[Digest]) -> None:
        """What only this peer of the region had may be brought by another one."""
        others = [other for other in self._peers.values() if other.near and other is not peer and not other.suspect]
        for form in forms:
            believed = 0
            for other in others:
                believed |= other.known.get(form, 0)
            self._wanted.by_form[form].near[form] = believed
