"""`check` of the shared origin: every object is read and what it holds compared with its name; a damaged one is
replaced where the local store has the blob whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cas import compression
from cas.compression import BadFrame
from cas.digest import Digest, digest_of, digest_of_chunks
from cas.engines.object_format import BadObject, Header
from cas.engines.objects import side_by_side
from cas.engines.origin import Origin
from cas.errors import BlobDamaged, BlobMissing, CasError
from cas.interface import Checked, Damage, ExchangeStore

AT_ONCE = 8
PIECE_BYTES = 1 << 20


def check(
    origin: Origin,
    local: ExchangeStore,
    read: Callable[[Digest], bytes],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """`read` gives a verified blob, to decode deltas with; `local` has the copies for repairs. What is counted are the
    blobs that only the origin has. Raises EngineUnreachable, EngineRefused."""
    digests = list(origin.digests())
    only_there = set(local.missing(digests))
    done = total_bytes = 0
    damaged: list[Damage] = []
    for start in range(0, len(digests), AT_ONCE):
        group = digests[start : start + AT_ONCE]
        for digest, found in zip(group, side_by_side(lambda one: verify(origin, one, read), group), strict=True):
            if isinstance(found, int):
                total_bytes += found if digest in only_there else 0
            elif found is not None:
                damaged.append(Damage(digest, f"at {origin.objects.name}: {found}", _repair(origin, digest, local)))
        done += len(group)
        if progress is not None:
            progress(done, len(digests))
    return Checked(len(only_there), total_bytes, tuple(damaged))


def verify(origin: Origin, digest: Digest, read: Callable[[Digest], bytes]) -> int | str | None:
    """The blob's size, or what is wrong with its object, or None where it is gone."""
    import delta

    try:
        header, pieces = origin.open(digest)
        if header.encoding == "delta" and header.base is not None:
            found = digest_of(delta.decode(read(header.base), b"".join(pieces), max_size=header.size))
        else:
            found = digest_of_chunks(_raw(header, pieces))
    except BlobMissing as error:
        return None if error.digest == digest else f"its base {error.digest} is missing"
    except (BadObject, BlobDamaged, BadFrame, delta.DeltaError) as error:
        return str(error)
    return header.size if found == digest else f"its bytes are {found}"


def _raw(header: Header, pieces: Iterator[bytes]) -> Iterator[bytes]:
    if header.encoding == "plain":
        return pieces
    return _bounded(compression.decompressed(pieces, PIECE_BYTES), header.size)


def _bounded(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    left = size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise BadFrame(f"more bytes than the {size} in its header")
        yield piece


def _repair(origin: Origin, digest: Digest, local: ExchangeStore) -> bool:
    try:
        for _ in local.stream(digest):
            pass
        origin.replace(local, digest)
    except CasError:
        return False
    return True
