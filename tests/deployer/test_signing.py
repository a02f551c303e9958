"""Signed plans: only the signature of an operator of this cloud counts, and only for the plan that was signed."""

from __future__ import annotations

import base64
import datetime
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.digest import Digest, digest_of
from cas.store import Store
from deployer.cloud import trust
from deployer.cloud.engines import needs_of
from deployer.errors import RecordInvalid, SignatureInvalid
from deployer.history.records import seal, unseal
from deployer.history.release import Link, Release, publish
from deployer.history.roots import roots
from deployer.history.verify import verify as audit
from deployer.language.schema import Definition
from deployer.planning.plan import Plan, encode, plan_digest
from deployer.planning.signing import KIND, MAX_SIGNED_BYTES, SignedPlan, is_plan, read_plan, require, sign, verify
from deployer.resolving import canonical
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


@settings(max_examples=60)
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


# --- in the history -------------------------------------------------------------------------------------------------


def test_an_audit_proves_who_signed_each_plan_by_a_certificate_that_was_valid_then(cloud: Path, tmp_path: Path) -> None:
    definition = Definition(name="shop")
    with Store.open(tmp_path / "store") as store:
        plan = Plan(planner="minimal", definition=store.put(canonical.encode(definition)).digest, expect={})
        other = msgspec.structs.replace(plan, notes=("another",))
        now_ns = time.time_ns()

        def findings(of: Plan, at_unix_ns: int = now_ns, **fields: Any) -> list[str]:
            release = Release(
                definition=plan.definition,
                plan=store.put(encode(of)).digest,
                parent=None,
                at_unix_ns=at_unix_ns,
                by="operator:carol",
                **fields,
            )
            ref = f"r{len(store.refs())}"
            publish(store, ref, release)
            try:
                return [found.what for found in audit(store, {}, cloud / "ca" / "ca.pem").findings]
            finally:
                store.move_ref(ref, store.read_ref(ref), None)

        signed = store.put(sign(plan, cloud / "operator")).digest
        assert findings(plan, signed=signed, signed_by="operator:ada") == []
        (wrong_name,) = findings(plan, signed=signed, signed_by="operator:bob")
        assert wrong_name == "operator:ada signed its plan, not operator:bob"
        (wrong_plan,) = findings(other, signed=signed, signed_by="operator:ada")
        assert wrong_plan == "its signature is of another plan"
        (unproved,) = findings(plan, signed_by="operator:ada")
        assert "names no signature" in unproved
        (before,) = findings(plan, at_unix_ns=1, signed=signed, signed_by="operator:ada")
        assert "not valid" in before
        (lost,) = findings(plan, signed=digest_of(b"lost"), signed_by="operator:ada")
        assert "does not count" in lost
        link = head_of(store, plan, signed)
        assert signed in needs_of(store, link.release)
        assert signed in roots(store)


def head_of(store: Store, plan: Plan, signed: Digest) -> Link:
    release = Release(
        definition=plan.definition, plan=plan_digest(plan), parent=None, at_unix_ns=1, by="operator:ada", signed=signed
    )
    return publish(store, "prod", release)
