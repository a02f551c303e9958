"""Who vouches for some bytes: a certificate of the cloud's authority, and a signature with its key.

The signature is ECDSA P-256 with SHA-256 (DER) over a context and the bytes. The context says what kind of thing is
signed, so that no signature can be taken for one of something else. It counts if the authority has issued the
certificate, to somebody of the role that is asked for, and it is valid at that time; a certificate's common name is
`role:name`.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from cas.errors import NotVouchedFor

if TYPE_CHECKING:
    from cryptography import x509

MAX_CERTIFICATE_BYTES: Final = 1 << 14
MAX_SIGNATURE_BYTES: Final = 256


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who, and the proof."""

    certificate: Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]
    """X.509 in DER."""
    signature: Annotated[bytes, Meta(max_length=MAX_SIGNATURE_BYTES)]


def sign(data: bytes, context: bytes, *, key_pem: bytes, certificate_pem: bytes) -> Signature:
    """Raises ValueError for a key that cannot sign, or is not that of the certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    try:
        key = load_pem_private_key(key_pem, password=None)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except (ValueError, TypeError) as error:
        raise ValueError(f"this is no key to sign with: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("the key is not that of the certificate")
    return Signature(
        certificate=certificate.public_bytes(Encoding.DER),
        signature=key.sign(context + data, ec.ECDSA(hashes.SHA256())),
    )


def vouches(
    signature: Signature, data: bytes, context: bytes, *, authority_pem: bytes, role: str, now: datetime.datetime
) -> str:
    """Who has signed this, such as `operator:ada`. Raises NotVouchedFor where that does not count."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        certificate = x509.load_der_x509_certificate(signature.certificate)
        trusted = x509.load_pem_x509_certificate(authority_pem)
    except ValueError as error:
        raise NotVouchedFor(f"it is signed with what is no certificate: {error}") from error
    try:
        certificate.verify_directly_issued_by(trusted)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise NotVouchedFor("it is signed with a key of a kind that nobody of this cloud has")
    except (InvalidSignature, ValueError, TypeError) as error:
        raise NotVouchedFor("it is signed by someone whom this cloud does not know") from error
    who = _name_of(certificate)
    if not who.startswith(f"{role}:"):
        raise NotVouchedFor(f"it is signed by {who}, who is no {role}")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise NotVouchedFor(f"it is signed with a certificate of {who} that is not valid today")
    try:
        key.verify(signature.signature, context + data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise NotVouchedFor(f"it is not what {who} signed: it was changed since") from error
    return who


def _name_of(certificate: x509.Certificate) -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "nobody"
