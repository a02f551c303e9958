"""Blob names: `b3:` and the 64 hex digits of the BLAKE3-256 of the raw bytes.

A digest travels and prints as this text, so that a person, a log line, a lock file and a wire message all show the
same name; only the store's keys use the 32 raw bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

import msgspec
from blake3 import blake3

PREFIX = "b3:"
RAW_BYTES = 32
MIN_PREFIX_HEX = 8
"""A command accepts an abbreviated digest of at least this many hex digits."""

Digest = Annotated[
    str, msgspec.Meta(pattern=r"^b3:[0-9a-f]{64}\Z", description="BLAKE3-256 of the raw bytes: b3:<64 hex>")
]

_WHOLE = re.compile(r"b3:[0-9a-f]{64}")
_ABBREVIATED = re.compile(rf"(?:b3:)?([0-9a-f]{{{MIN_PREFIX_HEX},64}})")


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """The name of these bytes."""
    return PREFIX + blake3(data).hexdigest()


def digest_of_chunks(chunks: Iterable[bytes]) -> Digest:
    """The name of a blob that arrives in pieces."""
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return PREFIX + hasher.hexdigest()


def is_digest(text: str) -> bool:
    return _WHOLE.fullmatch(text) is not None


def to_raw(digest: Digest) -> bytes:
    """The 32 bytes behind a digest. Raises ValueError for anything that is not a whole digest."""
    if not is_digest(digest):
        raise ValueError(f"not a digest: {digest!r} (a digest is b3: and 64 hex digits)")
    return bytes.fromhex(digest[len(PREFIX) :])


def from_raw(raw: bytes) -> Digest:
    if len(raw) != RAW_BYTES:
        raise ValueError(f"a raw digest has {RAW_BYTES} bytes, not {len(raw)}")
    return PREFIX + raw.hex()


def abbreviation(text: str) -> str | None:
    """The hex digits of a whole or abbreviated digest, or None where the text is neither."""
    match = _ABBREVIATED.fullmatch(text)
    return match.group(1) if match else None


def short(digest: Digest) -> str:
    """How a table shows a digest: enough digits to be unique in practice and accepted by every command."""
    return digest[: len(PREFIX) + 12]
