"""What is asked for now: pieces, of the least busy and fastest peers first, as long as there is room.

Room is what may be in flight altogether, what a host's own line bears (`Getting.starve`), and, of small blobs from
other regions, what their border lets through (`inflow`). Which pieces a peer is asked for, `pieces` decides.
"""

from __future__ import annotations

from collections.abc import Iterable

from cas.digest import Digest
from cas.manifest import PIECE_BYTES
from cas.swarm.doubt import Doubt
from cas.swarm.in_flight import InFlight
from cas.swarm.inflow import Inflow
from cas.swarm.limits import Limits
from cas.swarm.messages import Get, Part
from cas.swarm.patience import Pace
from cas.swarm.peer import Peer
from cas.swarm.pieces import Picker
from cas.swarm.wanted import Wanted


class Getting:
    """Mutable; belongs to one `Fetch`, of which it changes what is in flight and what is still open of each blob."""

    def __init__(
        self, limits: Limits, wanted: Wanted, flight: InFlight, picker: Picker, far_pace: Pace, doubt: Doubt
    ) -> None:
        self.offering: dict[str, Peer] = {}
        """Those that may have something to offer and may be asked for it."""
        self._limits = limits
        self._wanted = wanted
        self._flight = flight
        self._picker = picker
        self._doubt = doubt
        self._inflow = Inflow(limits, far_pace)
        self._most_gets = limits.gets
        """So many at a time: fewer where they starve each other on this host's line, until pieces follow each other."""
        self._arrived_s = float("-inf")
        """When a piece came last."""

    @property
    def has_room(self) -> bool:
        return len(self._flight.gets) - self._doubt.starved < self._most_gets

    def look(self, now_s: float) -> None:
        """Something happens."""
        self._inflow.look(now_s, awaits=self._flight.far_gets > 0)

    def came(self, peer: Peer, wire_bytes: int, now_s: float) -> None:
        """Pieces, from a peer."""
        if now_s - self._arrived_s < self._limits.stall_s:
            self._most_gets = min(2 * self._most_gets, self._limits.gets)
        self._arrived_s = now_s
        if not peer.near:
            self._inflow.came(wire_bytes, now_s)

    def starve(self) -> None:
        """They starve each other."""
        self._most_gets = max(1, min(self._most_gets, len(self._flight.gets)) // 2)

    def offer(self, peer: Peer) -> None:
        """It may have something, and may be asked for it as soon as it has a place free."""
        if peer.known and peer.gets < self._limits.gets_per_peer:
            self.offering[peer.name] = peer

    def offer_anew(self, peers: Iterable[Peer]) -> None:
        """Something is free to be asked for that was not."""
        self.offering.clear()
        for peer in peers:
            self.offer(peer)

    def withdraw(self, peer: Peer) -> None:
        self.offering.pop(peer.name, None)

    def fill(self, now_s: float) -> tuple[list[Get], list[Peer]]:
        """What is asked for now, and the peers that turned out to have nothing to offer."""
        limits, flight = self._limits, self._flight
        gets: list[Get] = []
        none_from: list[Peer] = []
        held_back: set[str] = set()
        while self.offering and self.has_room and flight.bytes < limits.in_flight_bytes:
            offers = (peer for peer in self.offering.values() if peer.name not in held_back)
            well = [peer for peer in offers if now_s >= max(peer.again_s, peer.busy_s)]
            peer = min(well, key=_preference, default=None)
            if peer is None:
                break
            room = limits.in_flight_bytes - flight.bytes
            small_room = room if peer.near else min(room, self._inflow.room_bytes(flight.gets.values(), now_s))
            picked = self._picker.pick(peer, self._wanted.by_form, room, small_room)
            if picked is None:
                held_back.add(peer.name)
                continue
            if picked:
                gets.append(self._get(peer, picked, now_s))
            else:
                none_from.append(peer)
            if not picked or peer.gets >= limits.gets_per_peer:
                del self.offering[peer.name]
        return gets, none_from

    def _get(self, peer: Peer, picked: dict[Digest, int], now_s: float) -> Get:
        parts = []
        for form, pieces in picked.items():
            parts.append(Part(form, (pieces & -pieces).bit_length() - 1, pieces.bit_count()))
            blob = self._wanted.by_form[form]
            blob.asked_for(pieces, None if peer.suspect else now_s, near=peer.near)
        piece_bytes = {form: min(PIECE_BYTES, self._wanted.by_form[form].forms[form].size) for form in picked}
        return Get(self._flight.add_get(peer, picked, piece_bytes, now_s), peer.name, tuple(parts))


def _preference(peer: Peer) -> tuple[bool, int, bool, float]:
    return peer.suspect, peer.gets, not peer.near, -(peer.rate or 1e12)
