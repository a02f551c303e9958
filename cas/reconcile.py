"""Which blobs has the other store that this one lacks, and the reverse, without sending a list of everything.

Digests are uniformly distributed, so a set is a tree of prefixes, and two sets that differ little have the same content
under nearly every prefix. One side asks for the *fingerprints* of prefixes, compares them with its own, and asks on
below those that differ; where a prefix has only a handful of digests left, it asks for the digests themselves. With 7,
then 12, then 17 bits, sets of a million that differ in a hundred take four round trips and 53 KB (the whole list:
32 MB); fingerprints never cost more than a fiftieth of the list that they may save.

The side that answers keeps no state between questions and the side that asks decides everything, so both are plain
functions of bytes: how they travel is the caller's business. Formats in docs/formats.md.

A fingerprint is a sum, not a signature: who chooses a store's blobs could make two different sets look alike, and wins
that they are not offered to each other here. A blob that somebody wants is asked for by its digest.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator
from typing import Final, NamedTuple

from cas.digest import RAW_BYTES, Digest, from_raw, to_raw
from cas.errors import ExchangeError

FIRST_BITS: Final = 7
STEP_BITS: Final = 5
LEAF_DIGESTS: Final = 8
"""Prefixes with about this many digests are listed instead of divided."""
FINGERPRINT_BYTES: Final = 5
MAX_BITS: Final = 40
MAX_PREFIXES: Final = 4096
"""In one question; its answer has at most 640 KiB."""
MAX_LISTED: Final = 32768
"""Digests in one answer: 1 MiB. What is left is asked for again."""
MAX_QUESTION_BYTES: Final = 1 << 16

_HEAD = struct.Struct("<4sBBBI")
_MAGIC = b"lcrq"
_VERSION = 1
_FINGERPRINTS, _LIST = 0, 1
_PREFIX_BYTES = 5
_ANSWER = struct.Struct("<4sBBQI")
_ANSWER_MAGIC = b"lcra"
_HEAD_BITS = 64
_FINGERPRINT_MASK = (1 << 8 * FINGERPRINT_BYTES) - 1


class Difference(NamedTuple):
    """What only one of the two has, in order of the digests."""

    theirs: list[Digest]
    ours: list[Digest]


class Summary:
    """A set of digests, sorted: 40 bytes for each."""

    def __init__(self, digests: Iterable[Digest]) -> None:
        raw = sorted(to_raw(digest) for digest in digests)
        self._raw = [one for one, _ in itertools.groupby(raw)]
        self._heads = array("Q", (int.from_bytes(one[:8], "big") for one in self._raw))

    def __len__(self) -> int:
        return len(self._raw)

    def under(self, prefix: int, bits: int) -> list[bytes]:
        """The raw digests that begin with these bits."""
        first, last = self._range(prefix, bits)
        return self._raw[first:last]

    def count(self, prefix: int, bits: int) -> int:
        first, last = self._range(prefix, bits)
        return last - first

    def fingerprint(self, prefix: int, bits: int) -> int:
        """The sum of the digests' bytes 3 to 7, as big-endian numbers, and of their count; modulo 2 to the 40."""
        first, last = self._range(prefix, bits)
        return (sum(self._heads[first:last]) + last - first) & _FINGERPRINT_MASK

    def _range(self, prefix: int, bits: int) -> tuple[int, int]:
        shift = _HEAD_BITS - bits
        first = bisect_left(self._heads, prefix << shift)
        end = (prefix + 1) << shift
        return first, len(self._heads) if end >> _HEAD_BITS else bisect_left(self._heads, end, first)


# --- the side that answers ------------------------------------------------------------------------------------------


def answer(summary: Summary, question: bytes) -> bytes:
    """The answer to one question of at most MAX_QUESTION_BYTES. Raises ExchangeError for what nobody would ask."""
    kind, bits, step, prefixes, after = _parse_question(question)
    if kind == _FINGERPRINTS:
        below = (
            summary.fingerprint(child, bits + step).to_bytes(FINGERPRINT_BYTES, "little")
            for prefix in prefixes
            for child in _children(prefix, step)
        )
        return _ANSWER.pack(_ANSWER_MAGIC, _VERSION, 0, len(summary), len(prefixes)) + b"".join(below)
    listed: list[bytes] = []
    for prefix in prefixes:
        found = summary.under(prefix, bits)
        listed += found[bisect_left(found, after + b"\0") :] if after else found
        if len(listed) > MAX_LISTED:
            break
    more = len(listed) > MAX_LISTED
    listed = listed[:MAX_LISTED]
    return _ANSWER.pack(_ANSWER_MAGIC, _VERSION, more, len(summary), len(listed)) + b"".join(listed)


def is_first(question: bytes) -> bool:
    """Does a conversation begin with this question? Raises ExchangeError as `answer` does."""
    kind, bits, *_ = _parse_question(question)
    return kind == _FINGERPRINTS and bits == 0


# --- the side that asks ---------------------------------------------------------------------------------------------


def reconcile(ours: Summary, *, max_listed: int = 1 << 24) -> Generator[list[bytes], list[bytes], Difference]:
    """The conversation: yields the questions of one round trip, is sent their answers in the same order, and returns
    what differs. Raises ExchangeError for an answer that no honest side would give, and where the other side has,
    or lists, more than `max_listed` digests."""
    bits, step, suspects = 0, FIRST_BITS, [0]
    while True:
        replies = yield [_ask_fingerprints(bits, step, part) for part in _parts(suspects)]
        suspects, total = _differing(ours, bits, step, list(_parts(suspects)), replies, max_listed)
        bits += step
        if not suspects:
            return Difference([], [])
        step = min(STEP_BITS, MAX_BITS - bits)
        if step == 0 or max(total, len(ours)) >> bits <= LEAF_DIGESTS:
            break
    return (yield from _list(ours, bits, suspects, max_listed))


def _differing(
    ours: Summary, bits: int, step: int, asked: list[list[int]], replies: list[bytes], max_listed: int
) -> tuple[list[int], int]:
    """The children whose fingerprints are not ours, and how many digests the other side has in all. That number decides
    how deep the questions go and how many prefixes may differ, so a side that lies about it is cut off here."""
    found: list[int] = []
    total = 0
    for prefixes, reply in zip(asked, replies, strict=True):
        _, total, count, body = _parse_answer(reply)
        if total > max_listed:
            raise ExchangeError(f"the other side says that it has {total} digests; at most {max_listed} are compared")
        if count != len(prefixes) or len(body) != (count << step) * FINGERPRINT_BYTES:
            raise ExchangeError("an answer with another number of fingerprints than were asked for")
        at = 0
        for child in (child for prefix in prefixes for child in _children(prefix, step)):
            theirs = int.from_bytes(body[at : at + FINGERPRINT_BYTES], "little")
            at += FINGERPRINT_BYTES
            if theirs != ours.fingerprint(child, bits + step):
                found.append(child)
        if len(found) > total + len(ours):
            raise ExchangeError("an answer in which more prefixes differ than there are digests")
    return found, total


def _list(
    ours: Summary, bits: int, suspects: list[int], max_listed: int
) -> Generator[list[bytes], list[bytes], Difference]:
    """Have the other side list what it has under these prefixes, in as many round trips as the lists are long."""
    theirs: list[bytes] = []
    open_lists = [(part, b"") for part in _parts(suspects)]
    while open_lists:
        replies = yield [_ask_list(bits, part, after) for part, after in open_lists]
        left: list[tuple[list[int], bytes]] = []
        for (part, after), reply in zip(open_lists, replies, strict=True):
            more, _, count, body = _parse_answer(reply)
            listed = _checked_list(body, count, part, bits, after)
            theirs += listed
            if len(theirs) > max_listed:
                raise ExchangeError(f"the other side lists more than {max_listed} digests")
            if more:
                if not listed:
                    raise ExchangeError("an answer that promises more and lists nothing")
                reached = _prefix_of(listed[-1], bits)
                left.append(([prefix for prefix in part if prefix >= reached], listed[-1]))
        open_lists = left
    mine = set().union(*(ours.under(prefix, bits) for prefix in suspects))
    others = set(theirs)
    return Difference(
        [from_raw(raw) for raw in sorted(others - mine)], [from_raw(raw) for raw in sorted(mine - others)]
    )


def _checked_list(body: bytes, count: int, prefixes: list[int], bits: int, after: bytes) -> list[bytes]:
    if len(body) != count * RAW_BYTES or count > MAX_LISTED:
        raise ExchangeError("an answer with another number of digests than it says")
    listed = [body[at : at + RAW_BYTES] for at in range(0, len(body), RAW_BYTES)]
    asked = set(prefixes)
    for before, raw in itertools.pairwise([after, *listed]):
        if raw <= before or _prefix_of(raw, bits) not in asked:
            raise ExchangeError("an answer that lists digests out of order, or that were not asked for")
    return listed


# --- questions and answers as bytes ---------------------------------------------------------------------------------


def _ask_fingerprints(bits: int, step: int, prefixes: list[int]) -> bytes:
    return _HEAD.pack(_MAGIC, _VERSION << 4 | _FINGERPRINTS, bits, step, len(prefixes)) + _packed(prefixes)


def _ask_list(bits: int, prefixes: list[int], after: bytes) -> bytes:
    head = _HEAD.pack(_MAGIC, _VERSION << 4 | _LIST, bits, bool(after), len(prefixes))
    return head + _packed(prefixes) + after


def _parse_question(question: bytes) -> tuple[int, int, int, list[int], bytes]:
    if not _HEAD.size <= len(question) <= MAX_QUESTION_BYTES:
        raise ExchangeError(f"a question of {len(question)} bytes")
    magic, mark, bits, step, count = _HEAD.unpack_from(question)
    if magic != _MAGIC or mark >> 4 != _VERSION:
        raise ExchangeError(
            "this is no question of a kind that is known here", hint="use the same version of lowcloud on both sides"
        )
    kind = mark & 15
    after_bytes = RAW_BYTES if kind == _LIST and step else 0
    if (
        kind not in (_FINGERPRINTS, _LIST)
        or (kind == _FINGERPRINTS and not 1 <= step <= FIRST_BITS)
        or (kind == _LIST and step > 1)
        or bits + (step if kind == _FINGERPRINTS else 0) > MAX_BITS
        or not 1 <= count <= MAX_PREFIXES
        or len(question) != _HEAD.size + count * _PREFIX_BYTES + after_bytes
    ):
        raise ExchangeError("a question that no sound program would ask")
    end = len(question) - after_bytes
    prefixes = [
        int.from_bytes(question[at : at + _PREFIX_BYTES], "little") for at in range(_HEAD.size, end, _PREFIX_BYTES)
    ]
    if any(later <= earlier for earlier, later in itertools.pairwise(prefixes)) or prefixes[-1] >> bits:
        raise ExchangeError("a question with prefixes out of order")
    return kind, bits, step, prefixes, question[end:]


def _parse_answer(reply: bytes) -> tuple[bool, int, int, bytes]:
    if len(reply) < _ANSWER.size:
        raise ExchangeError("an answer that was cut off")
    magic, version, more, total, count = _ANSWER.unpack_from(reply)
    if magic != _ANSWER_MAGIC or version != _VERSION or more > 1:
        raise ExchangeError("this is no answer of a kind that is known here")
    return bool(more), total, count, reply[_ANSWER.size :]


def _packed(prefixes: list[int]) -> bytes:
    return b"".join(prefix.to_bytes(_PREFIX_BYTES, "little") for prefix in prefixes)


def _parts(prefixes: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(prefixes), MAX_PREFIXES):
        yield prefixes[start : start + MAX_PREFIXES]


def _children(prefix: int, step: int) -> range:
    return range(prefix << step, (prefix + 1) << step)


def _prefix_of(raw: bytes, bits: int) -> int:
    return int.from_bytes(raw[:8], "big") >> (_HEAD_BITS - bits)
