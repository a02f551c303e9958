"""What can go wrong with a store. Each class says what happened, to what, and what to do next."""

from __future__ import annotations

from cas.digest import Digest


class CasError(Exception):
    """Base of every error that `cas` raises on purpose."""

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class BlobMissing(CasError):
    hint = "push it, or pull it from a host that has it"

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"no blob {digest} in this store")
        self.digest = digest


class BlobDamaged(CasError):
    hint = "push the same file again to repair it; a release, plan or definition: restore the store from your backup"

    def __init__(self, digest: Digest, reason: str) -> None:
        super().__init__(f"blob {digest} is damaged: {reason}")
        self.digest = digest
        self.reason = reason


class DigestMismatch(CasError):
    def __init__(self, expected: Digest, actual: Digest) -> None:
        super().__init__(f"these bytes are {actual}, not {expected}")
        self.expected = expected
        self.actual = actual


class AmbiguousDigest(CasError):
    hint = "give more digits"

    def __init__(self, text: str, matches: int) -> None:
        super().__init__(f"{text!r} names {matches} blobs or more")


class NotADigest(CasError):
    hint = "a digest is b3: and at least 8 hex digits"

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} is not a digest")


class BlobTooLarge(CasError):
    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} has {size} bytes; at most {limit} are accepted")
        self.size = size
        self.limit = limit


class StoreBusy(CasError):
    hint = "another process is writing to this store; wait for it, or find it with `fuser`"


class StoreFull(CasError):
    hint = "free disk space, run `lowcloud gc` (`--host NAME` for a host's store), or raise the store's quota"


class StoreUnreadable(CasError):
    """The directory holds no store, one of another format version, or one that this user may not open."""


class RefMoved(CasError):
    hint = "someone else moved it first: look at `lowcloud history`, then try again"

    def __init__(self, name: str, expected: Digest | None, actual: Digest | None) -> None:
        super().__init__(f"ref {name!r} is at {actual or 'nothing'}, not at {expected or 'nothing'}")
        self.name = name
        self.expected = expected
        self.actual = actual


class ExchangeError(CasError):
    """A peer sent something that is not the exchange format, or not what it said it would be."""


class NotVouchedFor(CasError):
    """A signature that does not count: of a stranger, of somebody in another role, too old, or of something else."""
