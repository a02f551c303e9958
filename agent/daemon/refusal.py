"""How the inside of the agent says no: an exception that carries the answer's `Refusal`.

Raise it only where nothing has been changed, or where everything has been put back.
"""

from __future__ import annotations

from typing import Final

from agent.api.answers import Reason, Refusal
from cas.digest import Digest

MISSING_TOLD: Final = 256
"""A refusal is short, however much is missing."""


class Refused(Exception):
    """A call that changes nothing, and why."""

    def __init__(
        self, reason: Reason, message: str, *, hint: str = "", missing: tuple[Digest, ...] = (), output_tail: str = ""
    ) -> None:
        super().__init__(message)
        self.refusal = Refusal(reason, message, hint, missing[:MISSING_TOLD], output_tail)

    @property
    def reason(self) -> Reason:
        return self.refusal.reason
