"""A blob of the origin, decoded and verified without touching the local store: to repair that store with."""

from __future__ import annotations

from cas.digest import Digest, digest_of
from cas.engines.object_format import BadObject, Header
from cas.engines.origin import Origin
from cas.errors import BlobDamaged, BlobTooLarge

MAX_CHAIN = 64


class OriginSource:
    """Implements `BlobSource`."""

    MAX_BYTES = 256 << 20

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def contains(self, digest: Digest) -> bool:
        return self._origin.contains(digest)

    def read(self, digest: Digest) -> bytes:
        return read_whole(self._origin, digest, self.MAX_BYTES)


def read_whole(origin: Origin, digest: Digest, max_bytes: int) -> bytes:
    """Raises BlobMissing, BlobDamaged, BlobTooLarge."""
    chain = [digest]
    while (base := _header(origin, chain[-1]).base) is not None:
        chain.append(base)
        if len(chain) > MAX_CHAIN:
            raise BlobDamaged(digest, f"at {origin.objects.name} it is a chain of more than {MAX_CHAIN} deltas")
    data = b""
    for one in reversed(chain):
        data = _decoded(origin, one, data, max_bytes)
    return data


def _header(origin: Origin, digest: Digest) -> Header:
    try:
        return origin.header(digest)
    except BadObject as error:
        raise BlobDamaged(digest, str(error)) from error


def _decoded(origin: Origin, digest: Digest, base: bytes, max_bytes: int) -> bytes:
    import delta
    from cas import compression

    try:
        header, pieces = origin.open(digest)
        if header.size > max_bytes:
            raise BlobTooLarge(f"the blob {digest}", header.size, max_bytes)
        payload = b"".join(pieces)
        if header.encoding == "delta":
            data = delta.decode(base, payload, max_size=header.size)
        else:
            data = compression.decompress_any(payload, header.size) if header.encoding == "zstd" else payload
    except (BadObject, compression.BadFrame, delta.DeltaError) as error:
        raise BlobDamaged(digest, f"at {origin.objects.name}: {error}") from error
    if digest_of(data) != digest:
        raise BlobDamaged(digest, f"at {origin.objects.name} its bytes are {digest_of(data)}")
    return data
