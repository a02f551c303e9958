"""Which pieces are taken from whom.

Whoever is the source of a blob for a group (the bringer for its region, the first holder for the bringers) is asked by
each of the group for another share of its runs, so it sends each piece once, and the group hands the pieces on. Who has
had nothing for a while takes more of the source than its share, in steps: were all to ask for everything at once, a
source with hundreds behind it would serve none of them.
"""

from __future__ import annotations

from blake3 import blake3

from cas.digest import PREFIX, Digest
from cas.manifest import PIECE_BYTES, pieces_in
from cas.swarm.blob import Blob, Group
from cas.swarm.limits import Limits
from cas.swarm.messages import MAX_GET_PARTS, everything
from cas.swarm.peer import Peer

LEAST_PIECES = 2
"""A peer is asked for so many at once, however slow it is."""
RELIEF = 4
"""So many times more hosts may take a run from its source, each time that nothing came for a while."""
WATCHERS = 4
"""So many hosts, one of them the owner, watch whether a run is taken from its source."""
MOST_RELIEF = 8
"""Steps after which every host of any region may."""
NEAR_STEPS = 3
"""Who brings a blob waits so many of these steps for what its neighbours have, before that crosses the border too."""
MIN_RUNS = 8
"""A form is cut into at least so many runs, where it has as many pieces."""


class Picker:
    """The choice of one host. Hosts begin at different places, so that what they have soon differs."""

    def __init__(self, me: str, limits: Limits) -> None:
        self._me = me
        self._limits = limits
        self._turn = int.from_bytes(blake3(me.encode()).digest(length=4), "little")

    def pick(
        self, peer: Peer, by_form: dict[Digest, Blob], room_bytes: int, small_bytes: int
    ) -> dict[Digest, int] | None:
        """Pieces to get from a peer: one run of a large form, or as much of small forms. `small_bytes`: the room there
        is for blobs of which a run is one piece; None where only room for these is lacking."""
        picked: dict[Digest, int] = {}
        held_back = False
        for form in self._offers(peer):
            blob = by_form[form]
            if blob.form != form or not blob.open:
                continue
            open_pieces = self.allowed(blob, peer, form) & blob.open
            if not open_pieces:
                continue
            is_small = self._run(blob.pieces) == 1
            if is_small and small_bytes <= 0:
                held_back = True
                continue
            if blob.pieces > 1:
                if not picked:
                    most = self._at_once(blob, peer)
                    if is_small:
                        most = min(most, max(1, small_bytes // PIECE_BYTES))
                    picked[form] = self._one_run(open_pieces, blob.pieces, most)
                    return picked
                continue
            if not picked:
                at_once = min(self._limits.run_pieces, self._at_once(blob, peer))
                room_bytes = min(room_bytes, small_bytes, at_once * PIECE_BYTES)
            room_bytes -= blob.forms[form].size
            if picked and (room_bytes < 0 or len(picked) >= MAX_GET_PARTS):
                break
            picked[form] = 1
        return None if held_back and not picked else picked

    def allowed(self, blob: Blob, peer: Peer, form: Digest) -> int:
        """The pieces of a form that may be taken from a peer, of those it has."""
        known = peer.known.get(form, 0)
        if not known or blob.blob in peer.banned:
            return 0
        if peer.near:
            if peer.name == blob.root:
                known &= self.share_inside(blob, form)
        elif not blob.outside or self._at_once(blob, peer) < 1:
            return 0
        else:
            if blob.relief < NEAR_STEPS:
                known &= ~self._believed_near(blob, form)
            if blob.swarm.region_of[peer.name] in blob.sources:
                known &= self._share_outside(blob, form)
        return known

    def _believed_near(self, blob: Blob, form: Digest) -> int:
        """What need not cross the border. Who goes outside in place of a bringer does not count on what only that one
        is known to have."""
        near = blob.near.get(form, 0)
        return near & ~blob.late_inside[0] if blob.out_of_turn and blob.late_inside else near

    # --- shares ---

    def share_inside(self, blob: Blob, form: Digest) -> int:
        """What this host takes from the bringer of its region. The next in the ranking have a share of the smallest
        form too, so they notice when the bringer keeps what it has."""
        return self._share(blob, form, *self._inside(blob), blob.late_inside)

    def watched_inside(self, blob: Blob, form: Digest) -> int:
        """Of what this host asks the bringer of its region: its share, and what it would take in place of others."""
        return self._owned(blob, form, *self._inside(blob), max(WATCHERS, _owners(blob)))

    def _inside(self, blob: Blob) -> tuple[int, int]:
        """Where among how many this host stands, those that the bringer serves."""
        if blob.absent and blob.root != self._me:
            # Where each knows of all others, what would be dealt to the dead is not lost.
            gone = {*blob.absent, blob.root} - {self._me}
            served = [host for host in blob.ranking if host not in gone]
            return served.index(self._me), len(served)
        at, before = blob.place, blob.swarm.place(blob.root or self._me, blob.blob)
        return at - (before < at), len(blob.ranking) - 1

    def _share_outside(self, blob: Blob, form: Digest) -> int:
        """What this host takes from those that had the blob first."""
        mine = blob.swarm.region_of[self._me]
        if blob.group is None or blob.group.sources != len(blob.sources):
            served = [region for region in blob.swarm.regions if region == mine or region not in blob.sources]
            blob.group = Group(len(blob.sources), served.index(mine), len(served))
        turn = int(form[len(PREFIX) : len(PREFIX) + 8], 16)
        among = blob.group.size
        return self._share(blob, form, (blob.group.place - turn) % among, among, blob.late_outside)

    def _share(self, blob: Blob, form: Digest, place: int, among: int, late: list[int]) -> int:
        """What a member of a group takes from the group's source: its runs, those of others that are late, and more
        where nothing comes at all."""
        share = self._owned(blob, form, place, among, _owners(blob))
        if form == blob.form and not blob.pending & ~blob.doubtful:
            for looks, pieces in enumerate(late[1:], start=1):
                share |= pieces & self._owned(blob, form, place, among, 1 << looks)
        return share

    def _owned(self, blob: Blob, form: Digest, place: int, among: int, owners: int) -> int:
        key = form, place, among, owners
        if key not in blob.owned:
            blob.owned[key] = self._runs(blob.forms[form].size, place, among, owners)
        return blob.owned[key]

    def _runs(self, size: int, place: int, among: int, owners: int) -> int:
        """The runs of which this place is one of the owners: each run has so many, one after the other."""
        pieces = pieces_in(size)
        run = self._run(pieces)
        if among <= owners:
            return everything(pieces)
        found = 0
        for number in range(-(-pieces // run)):
            if (place - number) % among < owners:
                found |= everything(run) << number * run
        return found & everything(pieces)

    # --- runs ---

    def _run(self, pieces: int) -> int:
        return max(1, min(self._limits.run_pieces, pieces // MIN_RUNS))

    def _offers(self, peer: Peer) -> list[Digest]:
        """What it has something of, each time beginning elsewhere."""
        self._turn += 1
        forms = list(peer.known)
        at = self._turn % len(forms) if forms else 0
        return forms[at:] + forms[:at]

    def _at_once(self, blob: Blob, peer: Peer) -> int:
        """How many pieces a peer is asked for: no more than it sends in a while, so that a slow one holds up few. Who
        goes outside out of turn begins with few, and has no more in flight than a multiple of what it is ahead of the
        others: it may be the border that is slow, or was cut and has healed."""
        if blob.out_of_turn and not peer.near:
            return LEAST_PIECES * max(1, blob.lead) - blob.crossing.bit_count()
        if peer.suspect:
            return 1
        if peer.rate is None:
            return self._limits.first_pieces
        get_s = self._limits.near_get_s if peer.near else self._limits.far_get_s
        return max(LEAST_PIECES, int(peer.rate * get_s / PIECE_BYTES))

    def _one_run(self, open_pieces: int, pieces: int, most: int) -> int:
        """Some consecutive ones of these, within one run."""
        run = self._run(pieces)
        runs = -(-pieces // run)
        start = (self._turn * 0x9E3779B1 >> 7) % runs * run
        behind = open_pieces >> start << start or open_pieces
        first = (behind & -behind).bit_length() - 1
        end = (first // run + 1) * run
        span = behind >> first & everything(end - first)
        count = min((~span & span + 1).bit_length() - 1, most)
        return everything(count) << first


def _owners(blob: Blob) -> int:
    """How many may take a run of this blob from its source at once."""
    return int(RELIEF ** min(blob.relief, MOST_RELIEF))
