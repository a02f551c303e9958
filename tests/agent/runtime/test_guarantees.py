"""The table of guarantees: every row that is given is one that the hostile guests of `test_sandbox` could not break."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable

import msgspec

from agent.api.facts import Guarantee, Promise
from agent.daemon import networking
from agent.daemon.guarantees import guarantees, kernel_version
from agent.daemon.users import FIRST, LAST
from agent.sandbox import privileges
from tests.agent.runtime.support import OTHER_UID, needs_root

BROKEN_BY = {
    "memory": "test_sandbox: the whole process has a ceiling; test_guests: the program's memory has a limit",
    "cores": "test_sandbox: `affinity`; test_guests: a guest runs on the cpus it was given",
    "cpu-share": "test_privileged: two guests on one core get what their shares say",
    "threads": "test_sandbox: a guest with a uid of its own has only so many threads",
    "disk": "test_privileged: a volume and scratch space end where the definition says",
    "own-user": "test_privileged: each process has a user of its own; tests/hostile",
    "files": "test_sandbox: no file outside its directories",
    "tcp-listeners": "test_sandbox: only declared listeners",
    "tcp-connections": "test_sandbox: only declared connections",
    "udp": "test_sandbox: `udp-socket`; a declared UDP connection reaches its peer and nobody else",
    "udp-egress": "test_sandbox: from its namespace a UDP listener sends to declared peers only; test_network_reach",
    "names": "test_sandbox: `unix-socket`, `udp-socket`; below: probe's resolve",
    "no-new-privileges": "test_guests: a guest runs without capabilities; test_sandbox: `become-root`",
    "system-calls": "test_sandbox: no system call outside the list",
    "signals": "test_sandbox: `signal-any`, `ptrace`, `process-memory`",
}


GROUPS = {"memory": 1, "cpu": 1, "pids": 2}
WITH_CPUSET = {"memory": 2, "cpu": 2, "pids": 2, "cpuset": 2}


def test_every_row_that_is_given_is_one_that_the_tests_try_to_break() -> None:
    assert {row.name for row in guarantees(GROUPS) if row.given} <= set(BROKEN_BY)


def test_every_promise_has_one_row_that_says_how_or_what_is_missing() -> None:
    for rows in (guarantees(GROUPS), guarantees(WITH_CPUSET), guarantees(), guarantees(pinned_to=())):
        assert sorted(row.name for row in rows) == sorted(typing.get_args(Promise))
        assert all(len(row.how) > 10 for row in rows)


def test_what_is_not_enforced_is_not_given() -> None:
    rows = {row.name: row.strength for row in guarantees(pinned_to=())}
    assert (rows["cpu-share"], rows["cores"]) == ("soft", "soft")
    given = {row.name: row.given for row in guarantees(GROUPS)}
    assert given["cpu-share"]
    assert given["disk"] == (not privileges.no_images())
    assert given["own-user"] == (not privileges.no_users(FIRST, LAST))
    assert given["udp-egress"] == (not networking.why_not())
    assert {row.name: row.given for row in guarantees(network="listeners")}["udp-egress"] is False


def test_whose_a_core_is_says_no_more_than_the_host_can_keep() -> None:
    said = [
        {row.name: row.how for row in guarantees(groups, pinned_to=(2, 3))}["cores"] for groups in (GROUPS, WITH_CPUSET)
    ]
    assert "Other programs may run there" in said[0]
    assert said[1].startswith("no other program")
    assert "CPU 2 stays open" in said[1]


@needs_root
def test_a_user_without_privileges_is_told_what_is_soft_and_why() -> None:
    rows = as_other_user(lambda: msgspec.msgpack.encode(guarantees()))
    table = {row.name: row for row in msgspec.msgpack.decode(rows, type=tuple[Guarantee, ...])}
    strengths = {name: row.strength for name, row in table.items()}
    assert strengths["disk"] == strengths["cpu-share"] == "soft"
    assert strengths["own-user"] == "no"
    assert strengths["memory"] == strengths["files"] == strengths["system-calls"] == "hard"
    assert f"the agent runs as user {OTHER_UID}" in table["disk"].how


def as_other_user(work: Callable[[], bytes]) -> bytes:
    """What a function says in a process without privileges."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(OTHER_UID, OTHER_UID, OTHER_UID)
        os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)
        os.write(writing, work())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def test_kernel_versions_compare_by_number() -> None:
    assert kernel_version("6.18.44-fc-v669") == (6, 18)
    assert kernel_version("5.4.0") < (5, 19) <= kernel_version("5.19-rc1")
