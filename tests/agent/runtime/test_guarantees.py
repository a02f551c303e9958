"""The table of guarantees: every row that is given is one that the hostile guests of `test_sandbox` could not break."""

from __future__ import annotations

from agent.daemon.guarantees import guarantees, kernel_version

BROKEN_BY = {
    "memory": "test_sandbox: the whole process has a ceiling; test_guests: the program's memory has a limit",
    "cores": "test_sandbox: `affinity`; test_guests: a guest runs on the cpus it was given",
    "files": "test_sandbox: no file outside its directories",
    "tcp listeners": "test_sandbox: only declared listeners",
    "tcp connections": "test_sandbox: only declared connections",
    "udp": "test_sandbox: `udp-socket`; a declared UDP connection reaches its peer and nobody else",
    "names": "test_sandbox: `unix-socket`, `udp-socket`; below: probe's resolve",
    "no new privileges": "test_guests: a guest runs without capabilities; test_sandbox: `become-root`",
    "system calls": "test_sandbox: no system call outside the list",
    "signals": "test_sandbox: `signal-any`, `ptrace`, `process-memory`",
}


def test_every_row_that_is_given_is_one_that_the_tests_try_to_break() -> None:
    assert {row.name for row in guarantees() if row.given} <= set(BROKEN_BY)


def test_every_row_says_how_or_what_is_missing() -> None:
    rows = guarantees()
    assert len({row.name for row in rows}) == len(rows)
    assert all(len(row.how) > 10 for row in rows)


def test_what_this_version_does_not_enforce_is_not_promised() -> None:
    given = {row.name: row.given for row in guarantees()}
    assert not given["cpu share"]
    assert not given["disk"]
    assert not given["udp egress"]
    assert not given["own user"]


def test_kernel_versions_compare_by_number() -> None:
    assert kernel_version("6.18.44-fc-v669") == (6, 18)
    assert kernel_version("5.4.0") < (5, 19) <= kernel_version("5.19-rc1")
