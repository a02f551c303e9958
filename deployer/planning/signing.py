"""Signed plans: who has looked at a plan and vouches for it, provable by anyone who has the cloud's authority.

    lowcloud signed-plan 1\\n<msgpack map of plan, certificate, signature>

The plan travels inside, byte for byte, with the signer's certificate and signature (`cas.signed`) over `CONTEXT` and
the plan's bytes. A signature counts if the cloud's authority has issued the certificate, to an operator, and it is
valid today. What the plan's own digest is does not change: the signature is around it, not in it.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from cas import signed as signed_bytes
from cas.errors import NotVouchedFor
from cas.signed import Signature
from deployer.cloud.files import read_file
from deployer.cloud.trust import MAX_PEM_BYTES
from deployer.errors import SignatureInvalid, TrustError
from deployer.history.records import seal, unseal
from deployer.planning import plan as plans
from deployer.planning.plan import MAX_PLAN_BYTES, Plan

KIND: Final = "signed-plan"
CONTEXT: Final = b"lowcloud plan signature 1\n"
"""Goes before what is signed, so that no signature can be taken for one of something else."""
MAX_SIGNED_BYTES: Final = MAX_PLAN_BYTES + (1 << 16)
OPERATOR: Final = "operator"


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
    data = plans.encode(plan)
    made = sign_with(credentials, data, CONTEXT)
    return seal(KIND, SignedPlan(plan=data, certificate=made.certificate, signature=made.signature))


def sign_with(credentials: Path, data: bytes, context: bytes) -> Signature:
    """An operator's signature. Raises TrustError."""
    try:
        return signed_bytes.sign(
            data,
            context,
            key_pem=read_file(credentials / "key.pem", max_bytes=MAX_PEM_BYTES),
            certificate_pem=read_file(credentials / "cert.pem", max_bytes=MAX_PEM_BYTES),
        )
    except ValueError as error:
        raise TrustError(f"nothing can be signed with what is in {credentials}: {error}") from error


def is_signed(data: bytes) -> bool:
    """Does this begin as a signed plan does?"""
    return data.startswith(f"lowcloud {KIND} ".encode())


def verify(data: bytes, authority: Path, *, now: datetime.datetime | None = None) -> tuple[Plan, str]:
    """The plan in a signed plan, and who signed it (`operator:ada`). `authority`: the cloud's `ca.pem`. Raises
    RecordInvalid for what is no such record, SignatureInvalid where the signature does not count."""
    signed = unseal(KIND, data, SignedPlan, max_bytes=MAX_SIGNED_BYTES)
    try:
        who = signed_bytes.vouches(
            Signature(certificate=signed.certificate, signature=signed.signature),
            signed.plan,
            CONTEXT,
            authority_pem=read_file(authority, max_bytes=MAX_PEM_BYTES),
            role=OPERATOR,
            now=now or datetime.datetime.now(datetime.UTC),
        )
    except NotVouchedFor as error:
        raise SignatureInvalid(f"the signature of the plan does not count: {error}") from error
    return plans.decode(signed.plan), who


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
