"""How a question to a host can end badly.

`HostUnreachable`: no answer; the call may or may not have been carried out, and asking again is safe (calls are
idempotent). `CallRefused`: the host said no and changed nothing; decide by `refusal.reason`. `BadAnswer`: what came
back is not this API.
"""

from __future__ import annotations

from agent.api.answers import Reason, Refusal


class AgentError(Exception):
    """Base of what a client raises."""

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class HostUnreachable(AgentError):
    hint = "is its agent running? `lowcloud host show` asks every host; a call may safely be repeated"


class HostSilent(HostUnreachable):
    """It took the question, and has shown no sign of life since, or does nothing about it."""


class BadAnswer(AgentError):
    hint = "the agent on that host may be of another version"


class CallRefused(AgentError):
    """The host refused and changed nothing."""

    def __init__(self, refusal: Refusal, host: str = "") -> None:
        super().__init__(f"{host}: {refusal.message}" if host else refusal.message, hint=refusal.hint)
        self.refusal = refusal
        self.host = host


def refused_because(error: BaseException, *reasons: Reason) -> bool:
    """Is this a refusal for one of these reasons?"""
    return isinstance(error, CallRefused) and error.refusal.reason in reasons
