"""Releases and plans as blobs: golden bytes, and refusal of everything that is not exactly such a blob."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.calls import MAX_CALL_BYTES, Envelope
from agent.api.processes import ProcessSpec, spec_digest
from cas.digest import digest_of
from deployer.errors import RecordInvalid
from deployer.history import release as releases
from deployer.history.records import seal, unseal
from deployer.history.release import Release
from deployer.language.schema import Change
from deployer.planning import plan as plans
from deployer.planning.plan import Cause, Changed, Kind, Plan, Step, advance, blobs_by_host, staging

A, B, C = (digest_of(text) for text in (b"a", b"b", b"c"))

RELEASE = Release(definition=A, plan=B, parent=C, at_unix_ns=1_800_000_000_000_000_000, by="operator:ada", message="go")
SPEC = ProcessSpec(name="web", binary=A, config={"/etc/b": B, "/etc/a": A})
STEPS = (
    Step(
        host="fra1",
        subject="kv-data",
        kind=Kind.CREATE_VOLUME,
        change=Change.HOT,
        causes=(Cause(("volume", "kv-data")),),
        size_bytes=1 << 20,
    ),
    Step(
        host="fra1",
        subject="web",
        kind=Kind.REPLACE,
        change=Change.REPLACE,
        causes=(Cause(("process", "web", "binary")), Cause(("process", "web", "args"), drift=True)),
        spec=SPEC,
        expect=C,
    ),
)
PLAN = Plan(
    planner="minimal",
    definition=A,
    expect={"fra1": {"web": C}},
    stages=tuple((step,) for step in STEPS),
    changes=(Changed(("process", "web", "binary"), Change.REPLACE),),
    notes=("a note",),
)


def test_the_bytes_of_a_release_do_not_change() -> None:
    data = releases.encode(RELEASE)
    assert data.startswith(
        b"lowcloud release 1\n\x86\xaadefinition\xd9\x43" + A.encode() + b"\xa4plan\xd9\x43" + B.encode()
    )
    assert digest_of(data) == "b3:52d7aba542bd0ffbc02484b5a9b0d62f4c23ad00aca9c1ddda64b277308c36a7"
    assert releases.decode(data) == RELEASE


def test_the_bytes_of_a_release_that_left_hosts_behind_and_was_signed_do_not_change() -> None:
    signed = msgspec.structs.replace(
        RELEASE, behind=("ams1", "fra2"), leaving={"ams1": "10.0.0.9:7400"}, signed=A, signed_by="operator:bob"
    )
    data = releases.encode(signed)
    assert data.endswith(
        b"\xa6behind\x92\xa4ams1\xa4fra2\xa7leaving\x81\xa4ams1\xad10.0.0.9:7400\xa6signed\xd9\x43"
        + A.encode()
        + b"\xa9signed_by\xacoperator:bob"
    )
    assert releases.decode(data) == signed


def test_the_bytes_of_a_plan_do_not_change() -> None:
    data = plans.encode(PLAN)
    assert data.startswith(b"lowcloud plan 1\n")
    assert digest_of(data) == "b3:9daa25ffe408cd53eb05d74a5ac8ffac3737349d0cdf95bf4b29d0d8a72e30a2"
    assert plans.decode(data) == PLAN


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no release"),
        (b"lowcloud release 1", "no release"),
        (b"lowcloud release 1\n", "no release"),
        (b"lowcloud plan 1\n" + releases.encode(RELEASE)[19:], "no release"),
        (b"lowcloud release 2\n" + releases.encode(RELEASE)[19:], "has version 2"),
        (releases.encode(RELEASE)[:-1], "no release"),
        (releases.encode(RELEASE) + b"\x00", "no release"),
        (seal("release", msgspec.structs.replace(RELEASE, at_unix_ns=-1)), "no release"),
        (b"lowcloud release 1\n" + msgspec.msgpack.encode({"more": 1}), "no release"),
        (b"lowcloud release 1\n" + b"\x91" * 100_000, "no release"),
        (b"lowcloud release 1\n" + bytes(releases.MAX_RELEASE_BYTES), "larger"),
    ],
)
def test_what_is_no_release_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RecordInvalid, match=message):
        releases.decode(data)


def test_a_record_of_an_older_program_stays_readable() -> None:
    """Only what has no default is there."""
    content = {"definition": A, "plan": B, "parent": None, "at_unix_ns": 1, "by": "operator:ada"}
    release = releases.decode(b"lowcloud release 1\n" + msgspec.msgpack.encode(content))
    assert (release.message, release.kind, release.restores) == ("", "apply", None)


@settings(max_examples=200)
@given(position=st.integers(0, len(plans.encode(PLAN)) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_another_plan_or_a_refusal_but_never_another_exception(position: int, bit: int) -> None:
    data = bytearray(plans.encode(PLAN))
    data[position] ^= 1 << bit
    try:
        decoded = plans.decode(bytes(data))
    except RecordInvalid:
        return
    assert isinstance(decoded, Plan)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_behind_the_line_are_refused_cleanly(body: bytes) -> None:
    with pytest.raises(RecordInvalid):
        unseal("plan", b"lowcloud plan 1\n" + body, Plan, max_bytes=1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": Kind.START},
        {"kind": Kind.STOP},
        {"kind": Kind.CREATE_VOLUME},
        {"expect": None},
        {"spec": None},
        {"subject": "other"},
        {"size_bytes": 1},
    ],
)
def test_a_step_whose_parts_do_not_fit_its_kind_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a step"):
        msgspec.structs.replace(STEPS[1], **changes)


def test_a_step_that_was_tampered_with_is_refused_when_it_is_read() -> None:
    content = msgspec.msgpack.decode(plans.encode(PLAN).partition(b"\n")[2])
    content["stages"][1][0]["kind"] = "start"
    with pytest.raises(RecordInvalid, match="wrong parts"):
        plans.decode(b"lowcloud plan 1\n" + msgspec.msgpack.encode(content, order="deterministic"))


# --- what follows from a plan ---------------------------------------------------------------------------------------


def test_steps_advance_the_state_they_expect_and_no_other() -> None:
    assert advance(PLAN.expect, STEPS) == {"fra1": {"web": spec_digest(SPEC)}}
    with pytest.raises(ValueError, match="another state"):
        advance({"fra1": {"web": A}}, STEPS)


def test_a_host_needs_the_blobs_of_what_will_run_each_once() -> None:
    assert blobs_by_host(PLAN) == {"fra1": (A, B)}


def test_staging_is_cut_into_calls_that_an_agent_accepts() -> None:
    specs = [ProcessSpec(name=f"p{n}", binary=A, env={"TEXT": "x" * 60_000}) for n in range(200)]
    steps = tuple(
        Step(host="fra1", subject=spec.name, kind=Kind.START, change=Change.MOVE, causes=(), spec=spec)
        for spec in specs
    )
    calls = staging(msgspec.structs.replace(PLAN, stages=(steps,)))["fra1"]
    assert [spec for call in calls for spec in call.specs] == specs
    assert all(len(msgspec.msgpack.encode(Envelope(call, plan=A))) < MAX_CALL_BYTES for call in calls)
