"""A large blob that arrives as a peer has it stored, plain or as one zstd frame, and is kept exactly so.

It is decompressed only to be verified, piece by piece; memory stays bounded however large it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from blake3 import blake3

from cas.access import Access
from cas.digest import from_raw, to_raw
from cas.entries import ENCODING_NAMES, PLAIN, ZSTD
from cas.errors import CasError, DigestMismatch, ExchangeError
from cas.incoming import IncomingBody
from cas.interface import Begun, Stored
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
        if self._body is None:
            raise ExchangeError("this blob has come to its end already")
        self._see(chunk)
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

    def suspend(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            try:
                body.suspend(self._raw, self._kind)
            except CasError:  # What could not be written is not there to go on with.
                with suppress(CasError):
                    body.abandon()

    def go_on(self, begun_bytes: int, check: bytes) -> None:
        """From what was begun. Raises ExchangeError."""
        if self._body is None:
            raise ExchangeError("this blob has come to its end already")
        prefix = blake3()
        for record in self._body.resume(self._raw, self._kind, begun_bytes):
            prefix.update(record)
            self._see(record)
        if prefix.digest() != check:
            raise ExchangeError(f"what was begun of {from_raw(self._raw)} is not what the sender has")

    def _see(self, chunk: bytes | memoryview) -> None:
        """Hash what these bytes decode to."""
        from cas.compression import BadFrame

        try:
            self._inflate(chunk)
        except BadFrame as error:
            raise ExchangeError(f"the bytes of {from_raw(self._raw)} cannot be decompressed: {error}") from error

    def _inflater(self) -> Callable[[bytes | memoryview], None]:
        from cas.compression import Inflater

        return Inflater(self._take).feed

    def _take(self, piece: bytes | memoryview) -> None:
        self._seen += len(piece)
        if self._seen > self._size:
            raise ExchangeError(f"more bytes than the {self._size} announced for {from_raw(self._raw)}")
        self._hasher.update(piece)


def resume(access: Access, begun: Begun, size: int, check: bytes) -> ReceivedBlob:
    """Go on with a blob of which the first bytes are here. Raises ExchangeError, StoreBusy."""
    incoming = ReceivedBlob(access, to_raw(begun.digest), ENCODING_NAMES.index(begun.encoding), size)
    try:
        incoming.go_on(begun.bytes, check)
    except BaseException:
        incoming.abort()
        raise
    return incoming
