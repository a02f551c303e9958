"""Signed plans: who has looked at a plan and vouches for it, provable by anyone who has the cloud's authority.

    lowcloud signed-plan 1\\n<msgpack map of plan, certificate, signature>

The plan travels inside, byte for byte, with the signer's certificate (DER) and an ECDSA P-256 signature (DER, SHA-256)
over `CONTEXT` and the plan's bytes. A signature counts if the cloud's authority has issued the certificate, to an
operator, and it is valid today. What the plan's own digest is does not change: the signature is around it, not in it.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from deployer.cloud.files import read_file
from deployer.cloud.trust import MAX_PEM_BYTES
from deployer.errors import SignatureInvalid, TrustError
from deployer.history.records import seal, unseal
from deployer.planning import plan as plans
from deployer.planning.plan import MAX_PLAN_BYTES, Plan

if TYPE_CHECKING:
    from cryptography import x509

KIND: Final = "signed-plan"
CONTEXT: Final = b"lowcloud plan signature 1\n"
"""Goes before what is signed, so that no signature can be taken for one of something else."""
MAX_SIGNED_BYTES: Final = MAX_PLAN_BYTES + (1 << 16)
OPERATOR: Final = "operator:"


class SignedPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A plan and what was said of it."""

    plan: bytes
    """Its record, as `deployer.planning.plan.encode` writes it."""
    certificate: bytes
    signature: bytes


class Signed(NamedTuple):
    """A signed plan whose signature counts: its bytes, and who vouches for it."""

    data: bytes
    who: str


def sign(plan: Plan, credentials: Path) -> bytes:
    """A signed plan, as the bytes of a file. `credentials`: the operator's directory. Raises TrustError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    try:
        key = load_pem_private_key(read_file(credentials / "key.pem", max_bytes=MAX_PEM_BYTES), password=None)
        certificate = x509.load_pem_x509_certificate(read_file(credentials / "cert.pem", max_bytes=MAX_PEM_BYTES))
    except (ValueError, TypeError) as error:
        raise TrustError(f"{credentials} holds no key to sign with: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise TrustError(f"the key in {credentials} is not that of its certificate")
    data = plans.encode(plan)
    signature = key.sign(CONTEXT + data, ec.ECDSA(hashes.SHA256()))
    return seal(KIND, SignedPlan(plan=data, certificate=certificate.public_bytes(Encoding.DER), signature=signature))


def is_signed(data: bytes) -> bool:
    """Does this begin as a signed plan does?"""
    return data.startswith(f"lowcloud {KIND} ".encode())


def verify(data: bytes, authority: Path, *, now: datetime.datetime | None = None) -> tuple[Plan, str]:
    """The plan in a signed plan, and who signed it (`operator:ada`). `authority`: the cloud's `ca.pem`. Raises
    RecordInvalid for what is no such record, SignatureInvalid where the signature does not count."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    signed = unseal(KIND, data, SignedPlan, max_bytes=MAX_SIGNED_BYTES)
    try:
        certificate = x509.load_der_x509_certificate(signed.certificate)
        trusted = x509.load_pem_x509_certificate(read_file(authority, max_bytes=MAX_PEM_BYTES))
    except ValueError as error:
        raise SignatureInvalid(f"the plan is signed with what is no certificate: {error}") from error
    try:
        certificate.verify_directly_issued_by(trusted)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise SignatureInvalid("the plan is signed with a key of a kind that no operator of this cloud has")
    except (InvalidSignature, ValueError, TypeError) as error:
        raise SignatureInvalid("the plan is signed by someone whom this cloud does not know") from error
    who = _operator(certificate, now or datetime.datetime.now(datetime.UTC))
    try:
        key.verify(signed.signature, CONTEXT + signed.plan, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise SignatureInvalid(f"this is not the plan that {who} signed: it was changed since") from error
    return plans.decode(signed.plan), who


def _operator(certificate: x509.Certificate, now: datetime.datetime) -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    who = str(names[0].value) if names else "nobody"
    if not who.startswith(OPERATOR):
        raise SignatureInvalid(f"the plan is signed by {who}, who is no operator")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise SignatureInvalid(f"the plan is signed with a certificate of {who} that is not valid today")
    return who


def read_plan(data: bytes, authority: Path) -> tuple[Plan, str | None]:
    """The plan in a file's bytes, and who signed it; None where nobody did. Raises RecordInvalid, SignatureInvalid."""
    if is_signed(data):
        return verify(data, authority)
    return plans.decode(data), None


def is_plan(beginning: bytes) -> bool:
    """Is this the beginning of a plan, signed or not?"""
    return is_signed(beginning) or beginning.startswith(b"lowcloud plan ")


def require(who: str | None, *, required: bool) -> None:
    """Raises SignatureInvalid where a signature is required and there is none."""
    if required and who is None:
        raise SignatureInvalid("this cloud carries out signed plans only (`require_signed_plans` in lowcloud.toml)")
