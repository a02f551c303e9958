"""How long to wait before a guest that ended is started again: doubling, bounded, and forgiving after a good run."""

from __future__ import annotations

from typing import Final, Literal

FIRST_S: Final = 0.1
MOST_S: Final = 30.0
DOUBLINGS: Final = 9
"""From the first wait to the longest."""
GOOD_RUN_S: Final = 60.0
"""A guest that ran so long before it ended is started again as if it were its first end."""


class Backoff:
    """The waits of one process, in order. `failed`: how many starts in a row came to nothing already."""

    def __init__(self, failed: int = 0) -> None:
        self._next_s = min(FIRST_S * (1 << min(failed, DOUBLINGS)), MOST_S)

    def wait_s(self, ran_s: float) -> float:
        """The wait after a guest that ran for `ran_s`."""
        if ran_s >= GOOD_RUN_S:
            self._next_s = FIRST_S
        wait_s = self._next_s
        self._next_s = min(self._next_s * 2, MOST_S)
        return wait_s

    def reset(self) -> None:
        self._next_s = FIRST_S


def starts_again(rule: Literal["always", "on-failure", "never"], exit_code: int) -> bool:
    """Does this restart rule start a guest again that ended by itself with this code?"""
    return rule == "always" or (rule == "on-failure" and exit_code != 0)
