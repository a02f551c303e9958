"""Drift: every field in which a host differs is a row, and where nothing differs there is none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.facts import ProcessState
from agent.api.processes import ProcessSpec, Ready
from cas.digest import digest_of
from deployer.applying.drift import drift
from deployer.applying.observe import HostState, Observed, Running, assume, running
from deployer.language.schema import Definition
from deployer.planning.planners import make_plan, version
from deployer.resolving.specs import specs_of
from tests.deployer.worlds import BASE, MiB, definitions, observed_of


def observed(**changes: object) -> Observed:
    """The base, with fields of `web` on h1 changed on the host."""
    specs = specs_of(BASE)["h1"]
    web = msgspec.structs.replace(specs["web"], **changes)
    return Observed(
        {"h1": HostState({"web": running(web), "kv": running(specs["kv"])}, {"kv-data": MiB}), "h2": HostState()}
    )


def rows(seen: Observed, definition: Definition | None = BASE) -> list[tuple[str, ...]]:
    return [(row.host, row.process, row.field, row.runs, row.should) for row in drift(definition, seen)]


@settings(max_examples=60)
@given(definition=definitions())
def test_what_runs_as_defined_has_not_drifted(definition: Definition) -> None:
    assert drift(definition, assume(definition)) == []


@settings(max_examples=60)
@given(data=st.data())
def test_there_is_drift_exactly_where_a_plan_would_call(data: st.DataObject) -> None:
    wanted, real = (data.draw(definitions(loopback=False)) for _ in range(2))
    seen = observed_of(real, {*wanted.host, *real.host})
    plan = make_plan("minimal", version(wanted), version(wanted), seen)
    assert {row.host for row in drift(wanted, seen)} == set(plan.hosts())


def test_fields_are_told_in_the_words_of_the_definition() -> None:
    seen = observed(memory_bytes=128 << 20, cores_milli=500, args=(), env={"LOG": "debug", "X": "1"})
    assert rows(seen) == [
        ("h1", "web", "args", "[]", '["--port"]'),
        ("h1", "web", "cores", "0.5", "1"),
        ("h1", "web", "env.LOG", "debug", "info"),
        ("h1", "web", "env.X", "1", ""),
        ("h1", "web", "memory", "128MiB", "64MiB"),
    ]


def test_a_configuration_file_and_readiness_are_fields_of_their_own() -> None:
    other = digest_of(b"other")
    seen = observed(config={"/etc/web": other}, ready=Ready(tcp="http", path="/other", within_s=2.5))
    assert rows(seen) == [
        ("h1", "web", "config./etc/web", other, BASE.process["web"].config["/etc/web"]),
        ("h1", "web", "ready.path", "/other", "/"),
        ("h1", "web", "ready.within", "2.5s", "10s"),
    ]


def test_a_process_that_is_missing_or_a_stranger_is_a_row() -> None:
    stranger = running(ProcessSpec(name="stranger", binary=digest_of(b"x")))
    found = rows(Observed({"h1": HostState({"stranger": stranger}, {"kv-data": MiB}), "h2": HostState()}))
    assert [(host, process, field) for host, process, field, *_ in found] == [
        ("h1", "kv", "process"),
        ("h1", "stranger", "process"),
        ("h1", "web", "process"),
    ]
    assert found[1][3:] == (stranger.digest, "")


def test_a_process_that_does_not_run_is_a_row_although_its_specification_is_right() -> None:
    specs = specs_of(BASE)["h1"]
    failing = Running(specs["web"], running(specs["web"]).digest, ProcessState.BACKOFF, reason="exit code 1")
    seen = Observed(
        {"h1": HostState({"web": failing, "kv": running(specs["kv"])}, {"kv-data": MiB}), "h2": HostState()}
    )
    assert rows(seen) == [("h1", "web", "state", "backoff: exit code 1", "running")]


@pytest.mark.parametrize(
    ("state", "starts", "told"),
    [
        (ProcessState.RUNNING, 2, None),
        (ProcessState.RUNNING, 3, "crash loop: why"),
        (ProcessState.BACKOFF, 3, "crash loop: why"),
        (ProcessState.FAILED, 3, "failed: why"),
    ],
)
def test_a_crash_loop_is_a_row_also_while_its_next_guest_runs(state: ProcessState, starts: int, told: str) -> None:
    specs = specs_of(BASE)["h1"]
    looping = Running(specs["web"], running(specs["web"]).digest, state, reason="why", starts=starts)
    seen = Observed(
        {"h1": HostState({"web": looping, "kv": running(specs["kv"])}, {"kv-data": MiB}), "h2": HostState()}
    )
    assert rows(seen) == ([("h1", "web", "state", told, "running")] if told else [])


def test_a_volume_that_is_missing_or_too_small_is_a_row_and_a_larger_one_is_not() -> None:
    specs = {name: running(spec) for name, spec in specs_of(BASE)["h1"].items()}
    for size, expected in ((None, ""), (MiB // 2, "512KiB"), (2 * MiB, None)):
        volumes = {} if size is None else {"kv-data": size}
        found = rows(Observed({"h1": HostState(specs, volumes), "h2": HostState()}))
        assert found == ([] if expected is None else [("h1", "", "volume.kv-data", expected, "1MiB")])


def test_a_host_that_does_not_answer_is_a_row() -> None:
    assert rows(Observed({}, {"h1": "no route"}), None) == [("h1", "", "host", "unknown: no route", "reachable")]


def test_before_the_first_release_everything_that_runs_is_a_stranger() -> None:
    assert [row[1] for row in rows(observed(), None)] == ["kv", "web"]
