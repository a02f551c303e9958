"""A large blob that arrives as a peer has it stored, plain or as one zstd frame, and is kept exactly so.

It is decompressed only to be verified, piece by piece; memory stays bounded however large it is.
"""

from __future__ import annotations

from collections.abc import Callable

from blake3 import blake3

from cas.access import Access
from cas.digest import from_raw
from cas.entries import PLAIN, ZSTD
from cas.errors import DigestMismatch, ExchangeError
from cas.incoming import IncomingBody
from cas.interface import Stored
from cas.putting import index_body


class ReceivedBlob:
    """Implements `IncomingBlob` over a store's records."""

    def __init__(self, access: Access, raw: bytes, kind: int, size: int) -> None:
        """Raises StoreFull where there is no room for it, ValueError for a kind that cannot be streamed."""
        if kind not in (PLAIN, ZSTD):
            raise ValueError("only plain and zstd blobs are taken in as streams")
        self._access = access
        self._raw = raw
        self._kind = kind
        self._size = size
        self._hasher = blake3()
        self._seen = 0
        self._body: IncomingBody | None = IncomingBody(access, checked=kind != PLAIN)
        self._inflate = self._take if kind == PLAIN else self._inflater()

    def write(self, chunk: bytes | memoryview) -> None:
        from cas.compression import BadFrame

        if self._body is None:
            raise ExchangeError("this blob has come to its end already")
        try:
            self._inflate(chunk)
        except BadFrame as error:
            raise ExchangeError(f"the bytes of {from_raw(self._raw)} cannot be decompressed: {error}") from error
        self._body.write(chunk)

    def commit(self) -> Stored:
        body, self._body = self._body, None
        if body is None:
            raise ExchangeError("this blob has come to its end already")
        actual = self._hasher.digest()
        if actual != self._raw or self._seen != self._size:
            body.abandon()
            raise DigestMismatch(from_raw(self._raw), from_raw(actual))
        return index_body(self._access, body, self._raw, self._kind, self._size)

    def abort(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.abandon()

    def _inflater(self) -> Callable[[bytes | memoryview], None]:
        from cas.compression import Inflater

        return Inflater(self._take).feed

    def _take(self, piece: bytes | memoryview) -> None:
        self._seen += len(piece)
        if self._seen > self._size:
            raise ExchangeError(f"more bytes than the {self._size} announced for {from_raw(self._raw)}")
        self._hasher.update(piece)
