"""What was asked for and has not been answered: gets of pieces, and questions. Bounded by who adds to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cas.digest import Digest
from cas.swarm.peer import Peer


class PendingGet:
    __slots__ = ("bytes", "flowed_s", "id", "last_s", "left", "peer", "piece_bytes", "since_s", "starved_s")

    def __init__(
        self, number: int, peer: Peer, left: dict[Digest, int], piece_bytes: Mapping[Digest, int], now_s: float
    ) -> None:
        self.id = number
        self.peer = peer
        self.left = left
        """The pieces that have not come, by form."""
        self.piece_bytes = piece_bytes
        """How large a piece of each form is, at most."""
        self.bytes = sum(pieces.bit_count() * piece_bytes[form] for form, pieces in left.items())
        """Of what is left."""
        self.since_s = self.last_s = self.flowed_s = now_s
        self.starved_s = float("-inf")
        """When it last had to wait for others on this host's own line."""


class Question(NamedTuple):
    peer: Peer
    forms: frozenset[Digest]
    asked_s: float
    deadline_s: float


class InFlight:
    """Mutable; belongs to one `Fetch`."""

    def __init__(self) -> None:
        self.gets: dict[int, PendingGet] = {}
        self.questions: dict[int, Question] = {}
        self.bytes = 0
        """That may still come."""
        self.far_gets = 0
        """Gets from other regions."""
        self._last_id = 0

    def add_get(self, peer: Peer, pieces: dict[Digest, int], piece_bytes: Mapping[Digest, int], now_s: float) -> int:
        self._last_id += 1
        get = self.gets[self._last_id] = PendingGet(self._last_id, peer, pieces, piece_bytes, now_s)
        self.bytes += get.bytes
        peer.gets += 1
        self.far_gets += not peer.near
        return get.id

    def came(self, get: PendingGet, form: Digest, pieces: int) -> bool:
        """Whether that was the last. A form of which all came is left no more: its blob may end before the others."""
        get.left[form] &= ~pieces
        if not get.left[form]:
            del get.left[form]
        size = pieces.bit_count() * get.piece_bytes[form]
        get.bytes -= size
        self.bytes -= size
        return not get.left

    def remove_get(self, get: PendingGet) -> None:
        del self.gets[get.id]
        get.peer.gets -= 1
        self.far_gets -= not get.peer.near
        self.bytes -= get.bytes

    def add_question(self, peer: Peer, forms: Iterable[Digest], now_s: float, deadline_s: float) -> int:
        self._last_id += 1
        peer.asked = self._last_id
        self.questions[self._last_id] = Question(peer, frozenset(forms), now_s, deadline_s)
        return self._last_id

    def remove_question(self, number: int) -> Question | None:
        question = self.questions.pop(number, None)
        if question is not None:
            question.peer.asked = 0
        return question

    def gets_of(self, forms: Iterable[Digest]) -> list[PendingGet]:
        """Those in which something of these forms was asked for."""
        wanted = set(forms)
        return [get for get in self.gets.values() if not wanted.isdisjoint(get.left)]

    def gets_from(self, peer: Peer) -> list[PendingGet]:
        return [get for get in self.gets.values() if get.peer is peer]

    def questions_to(self, peer: Peer) -> list[int]:
        return [number for number, question in self.questions.items() if question.peer is peer]
