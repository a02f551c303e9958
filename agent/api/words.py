"""Word of a release, for hosts that were away when it was applied: operators sign it, hosts hand it on."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from agent.api.base import Struct
from agent.api.fetching import MAX_PARTIES, Party
from agent.api.neighbours import MAX_NEIGHBOURS, HostName
from cas.digest import Digest
from cas.signed import Signature

MAX_WORDS: Final = 16
MAX_WORD_BYTES: Final = 2048
MAX_LISTING_BYTES: Final = 256 << 20
"""What a blob that a word names may have."""
WORD_CONTEXT: Final = b"lowcloud word signature 1\n"
"""Goes before what is signed, so that no signature can be taken for one of something else."""


class Wishes(Struct, frozen=True):
    """Who needs what of a release, as a blob: `lowcloud wishes 1`, newline, msgpack."""

    parties: Annotated[tuple[Party, ...], Meta(max_length=MAX_PARTIES)]
    """Every blob of the inventory, each once, with the hosts of the definition that need it."""
    programs: Annotated[tuple[Digest, ...], Meta(max_length=100_000)] = ()
    """Those that are programs, which a host compiles before it is asked to run them."""
    behind: Annotated[tuple[HostName, ...], Meta(max_length=MAX_NEIGHBOURS)] = ()
    """Hosts that did not run their part of the release when its apply had ended."""


class Word(Struct, frozen=True):
    """That there is a release, for hosts that were away: an operator signs it, hosts keep the newest of each ref and
    hand it on. It lets a host fetch and verify what it may be asked to run, and nothing else."""

    ref: Annotated[str, Meta(min_length=1, max_length=256)]
    release: Digest
    at_unix_ns: Annotated[int, Meta(ge=0)]
    """The release's. The greatest counts."""
    inventory: Digest
    inventory_bytes: Annotated[int, Meta(ge=0, le=MAX_LISTING_BYTES)]
    wishes: Digest
    wishes_bytes: Annotated[int, Meta(ge=0, le=MAX_LISTING_BYTES)]
    neighbours: Digest
    neighbours_bytes: Annotated[int, Meta(ge=0, le=MAX_LISTING_BYTES)]

    def listing(self) -> dict[Digest, int]:
        """The blobs that it names, and how many bytes they have."""
        return {
            self.neighbours: self.neighbours_bytes,
            self.wishes: self.wishes_bytes,
            self.inventory: self.inventory_bytes,
        }


class SignedWord(Struct, frozen=True):
    """A word and an operator's signature of it: what hosts keep and hand on."""

    word: Annotated[bytes, Meta(max_length=MAX_WORD_BYTES)]
    """`lowcloud word 1`, newline, the msgpack of a `Word`."""
    signature: Signature
    """Over `WORD_CONTEXT` and these bytes."""


class WordsQuery(Struct, frozen=True):
    """Which words does the host have that are newer than these, and of other refs?"""

    newest: Annotated[dict[str, int], Meta(max_length=MAX_WORDS)] = {}
    """By ref, `at_unix_ns`."""
    words: Annotated[tuple[SignedWord, ...], Meta(max_length=MAX_WORDS)] = ()
    """What the asker has just heard itself, for the host to take."""


class WordsAnswer(Struct, frozen=True):
    words: Annotated[tuple[SignedWord, ...], Meta(max_length=MAX_WORDS)]
