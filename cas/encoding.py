"""How a new blob is encoded: whole, or as a delta of one that is here.

The measured size decides. Bases are tried in the order given (`cas.bases`: the most promising first), a bounded number
of them, and only where the chain of deltas stays short in steps and in bytes to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from blake3 import blake3

from cas.bodies import SMALL_BYTES
from cas.entries import CHECK_BYTES, DELTA, PLAIN
from cas.reading import MAX_DEPTH

MAX_DELTA_BYTES = 256 << 20
"""Base and target of a delta that another store has made are at most this large."""
MAX_ENCODED_BYTES = 64 << 20
"""And of one that is made here: the encoder takes up to 20 times as much memory."""
TINY_BYTES = 512
"""Up to this size (releases, small configurations) a blob is kept plain: what an encoding saves is less than the index
entry beside it, and a command that reads some would spend most of its time importing decoders."""
PLAIN_BYTES = 1 << 10
"""Blobs up to this size stay plain: releases, for one, are then written and read without loading zstd."""
MAX_BASES_TRIED = 2
CLEARLY_GOOD = 1 / 8
"""A delta below this part of a quick compression of the blob is taken at once: nothing else is tried."""
ALSO_PROMISING = 0.8
"""A second base is tried only if it promises at least this part of what the first one did."""
WORTHWHILE = 0.8
"""A delta is kept only below this part of the whole encoding; every one costs each later read."""
CHAIN_BYTES_FACTOR = 2
_SAMPLE_BYTES = 128
_NOISE_VALUES = 88
CHAIN_BYTES_FLOOR = 1 << 20
"""What must be read for a delta may be so many times what would be read for the whole, and at least this."""


class Candidate(msgspec.Struct, frozen=True):
    """A blob that could serve as a base."""

    raw: bytes
    size: int
    depth: int
    chain_bytes: int
    promise: float = 1.0
    """How alike it is expected to be."""


class Encoded(msgspec.Struct, frozen=True):
    """A blob as it will be stored."""

    encoding: int
    stored: bytes
    check: bytes
    base: bytes | None = None
    depth: int = 0
    chain_bytes: int = 0


def suitable(candidate: Candidate, size: int) -> bool:
    """Whether a delta from this base may be tried for a blob of this size at all."""
    return candidate.depth < MAX_DEPTH and TINY_BYTES < size <= MAX_DELTA_BYTES and candidate.size <= MAX_DELTA_BYTES


def may_encode(candidate: Candidate, size: int) -> bool:
    """Whether a delta from this base may be made here."""
    return suitable(candidate, size) and max(candidate.size, size) <= MAX_ENCODED_BYTES


def chain_allows(candidate: Candidate, patch_bytes: int, whole_bytes: int) -> bool:
    limit = max(CHAIN_BYTES_FLOOR, CHAIN_BYTES_FACTOR * whole_bytes)
    return candidate.depth < MAX_DEPTH and candidate.chain_bytes + patch_bytes <= limit


def stays_plain(data: bytes) -> bool:
    """Whether a blob is not worth an attempt at compressing it: a few hundred bytes, or a small one that looks like
    noise. A sample of noise has about 101 distinct bytes, one of text or code less than 80."""
    if len(data) <= PLAIN_BYTES:
        return True
    middle = len(data) // 2
    return len(data) <= SMALL_BYTES and len(set(data[middle : middle + _SAMPLE_BYTES])) > _NOISE_VALUES


def whole(raw: bytes, data: bytes) -> Encoded:
    """Plain or zstd, whichever is smaller."""
    if len(data) <= TINY_BYTES:
        return Encoded(PLAIN, data, check_of(raw, PLAIN, data), chain_bytes=len(data))
    from cas import compression

    encoding, stored = compression.smallest(data)
    return Encoded(encoding, stored, check_of(raw, encoding, stored), chain_bytes=len(stored))


def choose(
    raw: bytes,
    data: bytes,
    candidates: Iterable[Candidate],
    *,
    read_base: Callable[[bytes], bytes | None],
    encode_delta: Callable[[bytes, bytes], bytes | None],
) -> Encoded:
    """The encoding to keep. `read_base` gives a base's bytes or None where it cannot be read; `encode_delta` a patch
    or None where there can be none."""
    best: tuple[Candidate, bytes] | None = None
    tried = 0
    least_promise = 0.0
    quick_bytes = 0
    for candidate in candidates:
        if tried == MAX_BASES_TRIED:
            break
        if candidate.raw == raw or candidate.promise < least_promise or not may_encode(candidate, len(data)):
            continue
        base = read_base(candidate.raw)
        patch = None if base is None else encode_delta(base, data)
        base = None  # Not to be held while other things are tried.
        if patch is None:
            continue
        tried += 1
        least_promise = max(least_promise, ALSO_PROMISING * candidate.promise)
        if best is None or len(patch) < len(best[1]):
            best = candidate, patch
        quick_bytes = quick_bytes or _quick_bytes(data)
        if len(patch) < CLEARLY_GOOD * quick_bytes and chain_allows(candidate, len(patch), quick_bytes):
            return as_delta(candidate, patch)
    as_whole = whole(raw, data)
    if best is None:
        return as_whole
    candidate, patch = best
    small_enough = len(patch) < WORTHWHILE * len(as_whole.stored)
    if small_enough and chain_allows(candidate, len(patch), len(as_whole.stored)):
        return as_delta(candidate, patch)
    return as_whole


def _quick_bytes(data: bytes) -> int:
    from cas import compression

    return len(compression.smallest(data, level=compression.QUICK_LEVEL)[1])


def check_of(raw: bytes, encoding: int, stored: bytes) -> bytes:
    return raw[:CHECK_BYTES] if encoding == PLAIN else blake3(stored).digest(length=CHECK_BYTES)


def as_delta(candidate: Candidate, patch: bytes) -> Encoded:
    """A patch against this base, as it is stored."""
    check = blake3(patch).digest(length=CHECK_BYTES)
    return Encoded(DELTA, patch, check, candidate.raw, candidate.depth + 1, candidate.chain_bytes + len(patch))
