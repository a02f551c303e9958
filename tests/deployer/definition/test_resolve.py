"""Files become digests: what is stored, under which name, what is refused and what is warned about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from cas.digest import digest_of
from cas.interface import Stored
from cas.store import Store
from deployer.language.definition import load
from deployer.language.problems import DefinitionInvalid, Problem
from deployer.resolving import canonical
from deployer.resolving.grants import ungranted
from deployer.resolving.lock import Lock
from deployer.resolving.resolve import LEASE_OWNER, Resolved, resolve
from deployer.resolving.wasm_imports import Facts
from tests.deployer.definition.test_checks import HOSTS
from tests.deployer.definition.test_wasm_imports import COMPONENT

QUIET = bytes(wasmtime.wat2wasm('(module (func (export "_start")))'))
"""A program that imports nothing."""
LOUDER = bytes(wasmtime.wat2wasm('(module (func (export "_start") nop nop) (data "louder"))'))

WEB = """
[process.web]
binary = "build/web.wasm"
hosts = ["fra1"]
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


class Site:
    """A directory with a definition and its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.put("build/web.wasm", QUIET)

    def put(self, name: str, data: bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def resolve(self, text: str, store: Store, *, locked: Lock | None = None) -> Resolved:
        self.put("cloud.toml", (HOSTS + text).encode())
        return resolve(load(self.path / "cloud.toml"), store, locked=locked)

    def problems(self, text: str, store: Store, *, locked: Lock | None = None) -> list[Problem]:
        with pytest.raises(DefinitionInvalid) as caught:
            self.resolve(text, store, locked=locked)
        return list(caught.value.problems)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_every_file_is_stored_and_only_digests_are_left(site: Site, store: Store) -> None:
    site.put("conf/web.toml", b"port = 80\n")
    resolved = site.resolve(WEB + 'config."/etc/web.toml" = "conf/web.toml"\n', store)
    web = resolved.definition.process["web"]
    assert web.binary == digest_of(QUIET)
    assert web.config == {"/etc/web.toml": digest_of(b"port = 80\n")}
    assert store.read(web.binary) == QUIET
    assert canonical.decode(canonical.encode(resolved.definition)) == resolved.definition
    assert {name: (one.size, one.kind) for name, one in resolved.lock.blob.items()} == {
        "build/web.wasm": (len(QUIET), "core"),
        "conf/web.toml": (10, "file"),
    }
    assert all(isinstance(one, Stored) and one.new for one in resolved.stored.values())


def test_resolving_again_changes_nothing(site: Site, store: Store) -> None:
    first = site.resolve(WEB, store)
    again = site.resolve(WEB, store)
    assert canonical.version_of(first.definition) == canonical.version_of(again.definition)
    assert first.lock == again.lock
    assert not again.stored["build/web.wasm"].new


def test_a_build_output_with_a_new_name_continues_the_history_of_its_use(site: Site, store: Store) -> None:
    site.resolve(WEB, store)
    site.put("build/web-2.wasm", LOUDER)
    site.resolve(WEB.replace("web.wasm", "web-2.wasm"), store)
    assert store.history("process.web.binary") == [digest_of(LOUDER), digest_of(QUIET)]


def test_what_was_stored_is_leased_until_it_is_used(site: Site, store: Store) -> None:
    digest = site.resolve(WEB, store).definition.process["web"].binary
    store.collect([])
    assert store.read(digest) == QUIET
    store.release(LEASE_OWNER)
    store.collect([])
    assert not store.contains(digest)


def test_a_digest_is_taken_as_it_is_where_the_store_has_it(site: Site, store: Store) -> None:
    digest = store.put(COMPONENT).digest
    text = WEB.replace("build/web.wasm", digest) + 'listen.http = "0.0.0.0:80/tcp"\n'
    resolved = site.resolve(text, store)
    assert resolved.definition.process["web"].binary == digest
    assert resolved.lock.blob[digest].kind == "component"
    assert "wasi:sockets/tcp@0.2.0" in resolved.lock.blob[digest].imports
    assert resolved.stored == {}


def test_everything_that_is_missing_is_told_at_once_with_its_place(site: Site, store: Store) -> None:
    missing = "b3:" + "ab" * 32
    site.put("conf/web.toml", b"")
    text = (
        '[process.web]\nbinary = "build/wbe.wasm"\nhosts = ["fra1"]\n'
        f'config = {{ "/a" = "{missing}", "/b" = "conf", "/c" = "nowhere/x", "/d" = "pipe" }}\n'
    )
    os.mkfifo(site.path / "pipe")
    told = site.problems(text, store)
    first = HOSTS.count("\n") + 1
    assert [(p.line - first, p.message.partition(": ")[2]) for p in told] == [
        (1, 'there is no file "build/wbe.wasm"'),
        (3, f"the store has no blob {missing}"),
        (3, '"conf" is a directory'),
        (3, 'there is no file "nowhere/x"'),
        (3, '"pipe" is not a regular file'),
    ]
    assert told[0].hint == "did you mean web.wasm?"
    assert "there is no directory" in told[3].hint
    assert [p.column for p in told] == [10, 19, 97, 112, 132]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x7fELF" + bytes(100), "it is a native program"),
        (b"(module)", "text format"),
        (QUIET[:-1], "ends in the middle"),
    ],
)
def test_a_binary_that_is_none_is_refused_and_not_stored(site: Site, store: Store, data: bytes, message: str) -> None:
    site.put("build/web.wasm", data)
    (problem,) = site.problems(WEB, store)
    assert '"build/web.wasm" cannot run' in problem.message
    assert message in problem.message
    assert not store.contains(digest_of(data))


def test_a_blob_that_is_no_binary_cannot_be_one(site: Site, store: Store) -> None:
    digest = store.put(b"text").digest
    (problem,) = site.problems(WEB.replace("build/web.wasm", digest), store)
    assert "does not begin as a WASM binary does" in problem.message


def test_a_file_used_twice_is_stored_once_and_refused_everywhere(site: Site, store: Store) -> None:
    two = WEB + '[process.api]\nbinary = "build/web.wasm"\nhosts = ["fra1"]\n'
    resolved = site.resolve(two, store)
    assert len(resolved.stored) == len(resolved.lock.blob) == 1
    assert store.history("process.api.binary") == [digest_of(QUIET)]
    (site.path / "build/web.wasm").unlink()
    assert [p.message.partition(":")[0] for p in site.problems(two, store)] == [
        "process.web.binary",
        "process.api.binary",
    ]


# --- the lock -------------------------------------------------------------------------------------------------------


def test_a_locked_definition_is_made_without_reading_files(site: Site, store: Store) -> None:
    first = site.resolve(WEB, store)
    site.put("build/web.wasm", b"something else")
    locked = site.resolve(WEB, store, locked=first.lock)
    assert (locked.definition, locked.lock, locked.stored) == (first.definition, first.lock, {})


def test_a_name_that_is_not_locked_or_not_stored_is_told(site: Site, store: Store) -> None:
    (problem,) = site.problems(WEB, store, locked=Lock({}))
    assert "is not in the lock file" in problem.message
    lock = site.resolve(WEB, store).lock
    with Store.open(site.path / "other") as other:
        (problem,) = site.problems(WEB, other, locked=lock)
    assert "the store has no blob" in problem.message


# --- grants ---------------------------------------------------------------------------------------------------------

NEEDY = bytes(wasmtime.wat2wasm('(module (import "env" "f" (func)) (func (export "main")))'))


@pytest.mark.parametrize(
    ("binary", "lines", "messages"),
    [
        (QUIET, "", []),
        (COMPONENT, "", ["imports wasi:sockets, but its process may use no network", "do not offer: print, thing"]),
        (COMPONENT, 'listen.a = "0.0.0.0:80/tcp"\n', ["do not offer: print, thing"]),
        (QUIET, 'listen.a = "0.0.0.0:80/tcp"\n', ["does not import wasi:sockets"]),
        (QUIET, 'config."/a" = "cloud.toml"\n', ["imports no file system"]),
        (NEEDY, "", ["do not offer: env", "exports no _start"]),
    ],
)
def test_what_a_program_imports_is_compared_with_what_it_is_given(
    site: Site, store: Store, binary: bytes, lines: str, messages: list[str]
) -> None:
    site.put("build/web.wasm", binary)
    warnings = site.resolve(WEB + lines, store).warnings
    assert len(warnings) == len(messages)
    for warning, message in zip(warnings, messages, strict=True):
        assert message in warning.message
        assert warning.message.startswith("process.web.binary: ")
        assert (warning.line, warning.column) == (HOSTS.count("\n") + 3, 10)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("", ["imports wasi:http/outgoing-handler, but its process may connect nowhere", "imports no file system"]),
        ('connect.api = "10.0.0.9:443/tcp"\n', ["imports no file system"]),
    ],
)
def test_a_program_that_asks_over_http_needs_a_connection(site: Site, lines: str, told: list[str]) -> None:
    site.put("cloud.toml", (HOSTS + WEB + lines + 'secret."/run/secrets/db" = "db"\n').encode())
    facts = Facts("component", ("wasi:http/outgoing-handler@0.2.0",), ("wasi:cli/run@0.2.0",))
    findings = ungranted(load(site.path / "cloud.toml").definition, {"build/web.wasm": facts})
    assert len(findings) == len(told)
    for finding, message in zip(findings, told, strict=True):
        assert message in finding.message
