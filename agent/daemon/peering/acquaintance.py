"""Whom this host knows: the hosts of the newest definition that an operator has told it, kept over restarts.

What a neighbour did is counted for the people who look (`lowcloud peers`); nothing is decided by it here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from agent.api.answers import Reason
from agent.api.neighbours import MAX_NEIGHBOURS, Meet, Neighbour, Neighbours
from agent.api.records import encode_record
from agent.daemon.durable import FileDamaged, seal, unseal, write_file
from agent.daemon.refusal import Refused
from cas.digest import Digest, digest_of

_MAGIC: Final = b"lcnb"
_VERSION: Final = 1

_log = logging.getLogger(__name__)


class Acquaintance:
    """The neighbours of one host, in a sealed file."""

    def __init__(self, host: str, path: Path) -> None:
        self._host = host
        self._path = path
        self._meet = Meet((), 0)
        try:
            self._meet = msgspec.msgpack.decode(unseal(path, _MAGIC, _VERSION), type=Meet)
        except FileNotFoundError:
            pass
        except (FileDamaged, msgspec.MsgspecError, OSError) as error:
            _log.error("the neighbours are not known until an operator tells them again: %s", error)
        self._by_name, self._listed = self._named()

    def meet(self, meet: Meet) -> bool:
        """Remember a list that is newer; whether it was. Blocks. Raises Refused(BAD_REQUEST), OSError."""
        named = {neighbour.host: neighbour for neighbour in meet.neighbours}
        if len(named) < len(meet.neighbours) or self._host not in named:
            raise Refused(
                Reason.BAD_REQUEST,
                f"the hosts of a definition are each named once, and {self._host} is among them",
                hint="upgrade one side",
            )
        if meet.at_unix_ns <= self._meet.at_unix_ns:
            return False
        write_file(self._path, seal(_MAGIC, _VERSION, msgspec.msgpack.encode(meet)))
        self._meet = meet
        self._by_name, self._listed = self._named()
        return True

    @property
    def listed(self) -> Digest:
        """The name of the list as a blob."""
        return self._listed

    @property
    def region(self) -> str:
        """This host's own; "" before it is told."""
        own = self._by_name.get(self._host)
        return own.region if own else ""

    @property
    def others(self) -> tuple[Neighbour, ...]:
        return tuple(neighbour for neighbour in self._meet.neighbours if neighbour.host != self._host)

    @property
    def names(self) -> Iterable[str]:
        """Of all hosts, this one too."""
        return self._by_name.keys()

    def find(self, host: str) -> Neighbour | None:
        """A host of the list, this one too."""
        return self._by_name.get(host)

    def _named(self) -> tuple[dict[str, Neighbour], Digest]:
        neighbours = self._meet.neighbours[:MAX_NEIGHBOURS]
        return {one.host: one for one in neighbours}, digest_of(encode_record(Neighbours(neighbours)))
