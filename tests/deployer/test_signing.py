"""Signed plans: only the signature of an operator of this cloud counts, and only for the plan that was signed."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer import trust
from deployer.errors import RecordInvalid, SignatureInvalid
from deployer.plan import encode, plan_digest
from deployer.records import seal, unseal
from deployer.signing import KIND, MAX_SIGNED_BYTES, SignedPlan, is_plan, read_plan, require, sign, verify
from tests.deployer.test_records import PLAN

GOLDEN = Path(__file__).parent / "golden"
WHEN = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and an operator and a host of it."""
    root = tmp_path_factory.mktemp("cloud")
    trust.create_authority(root / "ca")
    trust.issue_operator(root / "ca", "ada", root / "operator")
    trust.issue_host(root / "ca", "fra1", [], root / "host")
    return root


def test_a_signed_plan_is_the_same_plan_and_names_who_signed_it(cloud: Path) -> None:
    data = sign(PLAN, cloud / "operator")
    assert is_plan(data[:64])
    plan, who = read_plan(data, cloud / "ca" / "ca.pem")
    assert (plan, who) == (PLAN, "operator:ada")
    assert plan_digest(plan) == plan_digest(PLAN)
    assert read_plan(encode(PLAN), cloud / "ca" / "ca.pem") == (PLAN, None)


def test_a_stranger_a_host_and_an_expired_operator_do_not_count(cloud: Path, tmp_path: Path) -> None:
    trust.create_authority(tmp_path / "ca")
    trust.issue_operator(tmp_path / "ca", "ada", tmp_path / "operator")
    authority = cloud / "ca" / "ca.pem"
    with pytest.raises(SignatureInvalid, match="does not know"):
        verify(sign(PLAN, tmp_path / "operator"), authority)
    with pytest.raises(SignatureInvalid, match="no operator"):
        verify(sign(PLAN, cloud / "host"), authority)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=4000)
    with pytest.raises(SignatureInvalid, match="not valid today"):
        verify(sign(PLAN, cloud / "operator"), authority, now=later)


def test_a_plan_that_was_changed_after_it_was_signed_does_not_count(cloud: Path) -> None:
    signed = unseal(KIND, sign(PLAN, cloud / "operator"), SignedPlan, max_bytes=MAX_SIGNED_BYTES)
    other = encode(msgspec.structs.replace(PLAN, notes=("another note",)))
    with pytest.raises(SignatureInvalid, match="changed since"):
        verify(seal(KIND, msgspec.structs.replace(signed, plan=other)), cloud / "ca" / "ca.pem")


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_gives_another_plan(position: int, bit: int) -> None:
    data = bytearray(golden())
    data[position % len(data)] ^= 1 << bit
    with pytest.raises((RecordInvalid, SignatureInvalid)):
        verify(bytes(data), GOLDEN / "ca.pem", now=WHEN)


def test_a_signed_plan_of_version_1_stays_readable() -> None:
    plan, who = verify(golden(), GOLDEN / "ca.pem", now=WHEN)
    assert who == "operator:ada"
    assert plan.planner == "minimal"
    assert plan_digest(plan) == plan_digest(PLAN)


def test_a_cloud_may_ask_for_signatures() -> None:
    require(None, required=False)
    require("operator:ada", required=True)
    with pytest.raises(SignatureInvalid, match="require_signed_plans"):
        require(None, required=True)


def golden() -> bytes:
    return base64.b64decode((GOLDEN / "signed-plan.base64").read_bytes())
