"""The one error class of `delta`: whoever decodes a hostile patch has exactly one thing to catch."""

from __future__ import annotations


class DeltaError(Exception):
    """A patch could not be made or applied. The message says what was found, where, and against which bound."""

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint
