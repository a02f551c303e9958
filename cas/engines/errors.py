"""What can go wrong with an engine that is elsewhere. Each class says what happened, to what, and what to do next."""

from __future__ import annotations

from cas.digest import Digest
from cas.errors import CasError


class EngineAddressInvalid(CasError):
    """The line in `lowcloud.toml` names no engine."""

    hint = 'refs = "etcd://HOST:2379,HOST:2379/NAME", blobs = "s3://BUCKET/PREFIX", or "lmdb" for both'
    exit_code = 2


class EngineUnreachable(CasError):
    """Nobody answered in time. A read may be answered from the local copy; a write has not happened."""

    hint = "check the network and the engine; reading goes on from the local copy, writing again is safe"


class EngineRefused(CasError):
    """The engine answered, and said no: credentials, permissions, a bucket that is not there."""


class RefUncertain(EngineUnreachable):
    """The answer to a move was lost and could not be found out afterwards: it may have happened, or not."""

    hint = "look at `lowcloud history` once the engine answers again: it shows whether the move has happened"

    def __init__(self, name: str, to: Digest | None, why: str) -> None:
        super().__init__(f"whether ref {name!r} was moved to {to or 'nothing'} is not known: {why}")
        self.name = name
        self.to = to


class HistoryMoved(CasError):
    """`lowcloud migrate` has taken this history to another engine."""

    exit_code = 2

    def __init__(self, name: str, to: str) -> None:
        here = "ask who moved it: it is in that operator's directory now, and `lowcloud migrate` there shares it again"
        elsewhere = f'set refs = "{to}" in lowcloud.toml, and blobs as the operator who moved it has them'
        super().__init__(f"the history of {name!r} was moved to {to}", hint=here if to == "lmdb" else elsewhere)
        self.to = to
