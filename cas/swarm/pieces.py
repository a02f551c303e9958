"""Which pieces are taken from whom.

Whoever is the source of a blob for a group (the bringer for its region, the first holder for the bringers) is asked by
each of the group for another share of its runs, so it sends each piece once, and the group hands the pieces on. Who has
had nothing for a while may take anything from anyone.
"""

from __future__ import annotations

from blake3 import blake3

from cas.digest import PREFIX, Digest
from cas.manifest import PIECE_BYTES, pieces_in
from cas.swarm.blob import Blob
from cas.swarm.limits import Limits
from cas.swarm.messages import MAX_GET_PARTS, everything
from cas.swarm.peer import Peer

MIN_RUNS = 8
"""A form is cut into at least so many runs, where it has as many pieces."""


class Picker:
    """The choice of one host. Hosts begin at different places, so that what they have soon differs."""

    def __init__(self, me: str, limits: Limits) -> None:
        self._me = me
        self._limits = limits
        self._turn = int.from_bytes(blake3(me.encode()).digest(length=4), "little")

    def pick(self, peer: Peer, by_form: dict[Digest, Blob], room_bytes: int) -> dict[Digest, int]:
        """Pieces to get from a peer: one run of a large form, or many small forms."""
        picked: dict[Digest, int] = {}
        room = min(self._limits.run_pieces * PIECE_BYTES, room_bytes)
        for form in self._offers(peer):
            blob = by_form[form]
            if blob.form != form or blob.keeping:
                continue
            open_pieces = self.allowed(blob, peer, form) & ~blob.pending & blob.lacking(form)
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

    def allowed(self, blob: Blob, peer: Peer, form: Digest) -> int:
        """The pieces of a form that may be taken from a peer, of those it has."""
        known = peer.known.get(form, 0)
        if not known or blob.blob in peer.banned:
            return 0
        if peer.near:
            if peer.name == blob.root and not blob.relieved:
                known &= self.share_inside(blob, form)
        elif not blob.outside:
            return 0
        elif not blob.relieved:
            known &= ~blob.near.get(form, 0)
            if blob.swarm.region_of[peer.name] in blob.sources:
                known &= self._share_outside(blob, form)
        return known

    # --- shares ---

    def share_inside(self, blob: Blob, form: Digest) -> int:
        """What this host takes from the bringer of its region."""
        root = blob.root or self._me
        hosts = blob.swarm.ranking(blob.swarm.region_of[self._me], blob.blob)
        key = (root, form, 0)
        if key not in blob.shares:
            at, before = blob.swarm.place(self._me, blob.blob), blob.swarm.place(root, blob.blob)
            blob.shares[key] = self._share(form, blob.forms[form].size, at - (before < at), len(hosts) - 1)
        return blob.shares[key]

    def _share_outside(self, blob: Blob, form: Digest) -> int:
        """What this host takes from those that had the blob first."""
        key = ("", form, len(blob.sources))
        if key not in blob.shares:
            mine = blob.swarm.region_of[self._me]
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

    # --- runs ---

    def _run(self, pieces: int) -> int:
        return max(1, min(self._limits.run_pieces, pieces // MIN_RUNS))

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
