"""The bounds of a fetch: how much at once, how often, how long."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    neighbours: int = 12
    outside: int = 24
    gets: int = 12
    gets_per_peer: int = 1
    asks: int = 64
    run_pieces: int = 16
    """Pieces of a large form that are asked for at once, at most."""
    first_pieces: int = 8
    """The same, of a peer whose rate is not known yet."""
    near_get_s: float = 0.4
    """A get from the own region should last about so long, at the rate that its peer had lately."""
    far_get_s: float = 2.0
    """The same from another region."""
    in_flight_bytes: int = 64 << 20
    open_blobs: int = 1024
    tick_s: float = 0.5
    wait_s: float = 10.0
    answer_s: float = 5.0
    """A question is answered so long after its `wait_s` at the latest."""
    least_patience_s: float = 1.5
    """Nobody is left for a shorter silence, however fast all others are."""
    stall_s: float = 15.0
    """For a silence of this length everybody is left."""
    starved_s: float = 60.0
    """Whose answer others have starved has so long once they are over: the sender's system tries seldom by then."""
    ask_gap_s: float = 0.1
    settle_s: float = 0.3
    relief_s: float = 1.0
    least_takeover_s: float = 2.0
    takeover_s: float = 12.0
    """A bringer has at most so long without news."""
    patience_s: float = 120.0
