"""The words that this host has heard: that there is a release, by an operator's signature. Kept over restarts.

Of each ref the newest counts. A word may come from anybody, so nothing in it is believed before its signature is: it
must be of an operator whom this cloud's authority has certified, for a time that includes now. An older word than the
one that is here changes nothing, so repeating it gains nothing; one of a time to come would shut out the true ones that
follow, and is refused.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent.api.answers import Reason
from agent.api.records import decode_record
from agent.api.words import MAX_WORDS, WORD_CONTEXT, SignedWord, Word, WordsAnswer, WordsQuery
from agent.daemon.durable import FileDamaged, seal, unseal, write_file
from agent.daemon.refusal import Refused
from agent.tls import OPERATOR
from cas import signed
from cas.errors import NotVouchedFor

AHEAD_S: Final = 3600.0
"""Clocks may differ by so much."""

_MAGIC: Final = b"lcwd"
_VERSION: Final = 1

_log = logging.getLogger(__name__)


class Heard(NamedTuple):
    """A word that counts."""

    word: Word
    signed: SignedWord
    by: str
    """Who has signed it, such as `operator:ada`."""


class Words:
    """The words of one host, in a sealed file. Calls block; one at a time may make them. `authority`: the file with the
    cloud's own certificate."""

    def __init__(self, path: Path, authority: Path, unix_s: Callable[[], float]) -> None:
        self._path = path
        self._authority = authority
        self._unix_s = unix_s
        self.newest: dict[str, Heard] = {}
        """By ref. Replaced, never changed."""
        try:
            kept = msgspec.msgpack.decode(unseal(path, _MAGIC, _VERSION), type=tuple[SignedWord, ...])
        except FileNotFoundError:
            return
        except (FileDamaged, msgspec.MsgspecError, OSError) as error:
            _log.error("what this host had heard of releases is lost: %s", error)
            return
        for word in kept:
            try:
                heard = self._heard(word)
            except Refused as error:
                _log.warning("a word that this host had heard does not count any more: %s", error)
            else:
                self.newest[heard.word.ref] = heard

    def take(self, word: SignedWord) -> Heard | None:
        """Keep a word that is newer than what is here, durably; None where it is not. Raises Refused for one that does
        not count."""
        heard = self._heard(word)
        before = self.newest.get(heard.word.ref)
        if before is not None and heard.word.at_unix_ns <= before.word.at_unix_ns:
            return None
        newest = {**self.newest, heard.word.ref: heard}
        while len(newest) > MAX_WORDS:
            del newest[min(newest, key=lambda ref: newest[ref].word.at_unix_ns)]
        words = tuple(one.signed for one in newest.values())
        write_file(self._path, seal(_MAGIC, _VERSION, msgspec.msgpack.encode(words)))
        self.newest = newest
        return heard if heard.word.ref in newest else None

    def times(self) -> WordsQuery:
        """What there is already, as a question for what is newer."""
        return WordsQuery({ref: heard.word.at_unix_ns for ref, heard in self.newest.items()})

    def newer(self, query: WordsQuery) -> WordsAnswer:
        """What others have not heard."""
        return WordsAnswer(
            tuple(
                heard.signed for ref, heard in self.newest.items() if heard.word.at_unix_ns > query.newest.get(ref, -1)
            )
        )

    def _heard(self, signed_word: SignedWord) -> Heard:
        now_s = self._unix_s()
        try:
            by = signed.vouches(
                signed_word.signature,
                signed_word.word,
                WORD_CONTEXT,
                authority_pem=self._authority.read_bytes(),
                role=OPERATOR,
                now=datetime.datetime.fromtimestamp(now_s, datetime.UTC),
            )
            word = decode_record(signed_word.word, Word)
        except NotVouchedFor as error:
            raise Refused(Reason.FORBIDDEN, f"the word of a release does not count: {error}") from error
        except ValueError as error:
            raise Refused(Reason.BAD_REQUEST, str(error), hint="upgrade one side") from error
        if word.at_unix_ns > (now_s + AHEAD_S) * 1e9:
            raise Refused(
                Reason.BAD_REQUEST, "the word of a release is of a time to come", hint="set the clocks of both sides"
            )
        return Heard(word, signed_word, by)
