"""Sealed blobs: bytes that only the holder of one private key can read, as a blob like any other.

A host makes a key and shows its public half; who wants to tell the host a secret seals it to that half. What comes out
can be stored, copied and named by its hash anywhere, because without the private half it says nothing: not even
exactly how long the secret is.

    magic "lcseal" | version 1 | recipient's public key | when | length of the name | name | HPKE output

The encryption is HPKE (RFC 9180) in base mode with X25519, HKDF-SHA256 and ChaCha20-Poly1305, as `cryptography` has it;
its `info` is everything before it, so that no part of the head can be changed. Sealing the same secret twice gives
different bytes. docs/formats.md has the layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.hpke import Suite

MAGIC: Final = b"lcseal"
VERSION: Final = 1
KEY_BYTES: Final = 32
MAX_NAME_BYTES: Final = 63
MAX_SECRET_BYTES: Final = 64 << 10
PAD_BYTES: Final = 256
"""The length that shows is rounded up to a multiple of this."""
MAX_SEALED_BYTES: Final = MAX_SECRET_BYTES + 1024
_LENGTH_BYTES: Final = 4
_TIME_BYTES: Final = 8
_FIXED_BYTES: Final = len(MAGIC) + 1 + KEY_BYTES + _TIME_BYTES + 1


class SealedInvalid(ValueError):
    """Bytes that are no sealed blob, or that this key does not open. The message never shows what is in them."""

    def __init__(self, message: str, *, hint: str = "set the secret again with `lowcloud secret set`") -> None:
        super().__init__(message)
        self.hint = hint


class Head(NamedTuple):
    """What anyone can read of a sealed blob."""

    name: str
    """Of the secret."""
    recipient: bytes
    """The public key it was sealed to."""
    at_unix_s: int
    """When it was sealed."""
    info: bytes
    """The head's bytes."""


def seal(value: bytes, *, name: str, recipient: bytes, at_unix_s: int) -> bytes:
    """A sealed blob that the owner of `recipient`, an X25519 public key of 32 bytes, can open. Raises ValueError for a
    value, a name or a key that cannot be sealed."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    if len(value) > MAX_SECRET_BYTES:
        raise ValueError(f"a secret of {len(value)} bytes is longer than the {MAX_SECRET_BYTES} allowed")
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME_BYTES:
        raise ValueError(f"a secret's name has 1 to {MAX_NAME_BYTES} bytes")
    head = MAGIC + bytes([VERSION]) + recipient + at_unix_s.to_bytes(_TIME_BYTES, "little")
    head += bytes([len(encoded)]) + encoded
    padded = len(value).to_bytes(_LENGTH_BYTES, "little") + value
    padded += bytes(-len(padded) % PAD_BYTES)
    return head + _suite().encrypt(padded, X25519PublicKey.from_public_bytes(recipient), head)


def head_of(data: bytes) -> Head:
    """Raises SealedInvalid."""
    if not data.startswith(MAGIC) or len(data) < _FIXED_BYTES:
        raise SealedInvalid("this is not a sealed secret")
    if data[len(MAGIC)] != VERSION:
        raise SealedInvalid(
            f"this sealed secret has format version {data[len(MAGIC)]}; this program knows version {VERSION}",
            hint="a newer format needs a newer lowcloud",
        )
    if len(data) > MAX_SEALED_BYTES:
        raise SealedInvalid(f"a sealed secret of {len(data)} bytes is larger than one may be")
    key_at = len(MAGIC) + 1
    time_at = key_at + KEY_BYTES
    end = _FIXED_BYTES + data[_FIXED_BYTES - 1]
    try:
        name = data[_FIXED_BYTES:end].decode()
    except UnicodeDecodeError:
        raise SealedInvalid("this sealed secret has no readable name") from None
    at_unix_s = int.from_bytes(data[time_at : time_at + _TIME_BYTES], "little")
    return Head(name, data[key_at:time_at], at_unix_s, data[:end])


def unseal(data: bytes, key: X25519PrivateKey) -> bytes:
    """The secret in a sealed blob. Raises SealedInvalid."""
    from cryptography.exceptions import InvalidTag

    head = head_of(data)
    if head.recipient != public_bytes(key):
        raise SealedInvalid(f"the secret {head.name!r} was sealed to another key than this host's")
    try:
        padded = _suite().decrypt(data[len(head.info) :], key, head.info)
    except (InvalidTag, ValueError):
        raise SealedInvalid(f"the secret {head.name!r} does not open: its bytes are not what was sealed") from None
    length = int.from_bytes(padded[:_LENGTH_BYTES], "little")
    if length > len(padded) - _LENGTH_BYTES:
        raise SealedInvalid(f"the secret {head.name!r} says that it is longer than it is")
    return padded[_LENGTH_BYTES : _LENGTH_BYTES + length]


def public_bytes(key: X25519PrivateKey) -> bytes:
    """The public half of a key, as `seal` takes it."""
    return key.public_key().public_bytes_raw()


def _suite() -> Suite:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
