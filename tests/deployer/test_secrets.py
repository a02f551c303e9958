"""Secrets of a cloud: what `resolve` makes of them, what the lock says, what a plan needs, what a collection keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.api.facts import Guarantee, HostFacts
from cas.sealed import public_bytes, unseal
from cas.store import Store
from deployer.applying.observe import assume
from deployer.history.roots import roots
from deployer.history.verify import verify
from deployer.language.definition import load
from deployer.language.problems import DefinitionInvalid
from deployer.planning.plan import Kind, blobs_by_host
from deployer.planning.planners import Version, make_plan
from deployer.resolving import lock as locks
from deployer.resolving.canonical import version_of
from deployer.resolving.gpu import GpuNotOffered, require_gpus
from deployer.resolving.lock import Lock
from deployer.resolving.resolve import Resolved, resolve
from deployer.resolving.secrets import SecretInvalid, Secrets, users
from deployer.resolving.specs import specs_of
from tests.deployer.definition.test_resolve import QUIET

KEYS = {host: X25519PrivateKey.generate() for host in ("fra1", "fra2")}
PUBLIC = {host: public_bytes(key).hex() for host, key in KEYS.items()}

TEXT = """\
name = "shop"
[region.fra]
[host.fra1]
region = "fra"
address = "10.0.0.1:7400"
cores = 8
memory = "1GiB"
disk = "1GiB"
[host.fra2]
region = "fra"
address = "10.0.0.2:7400"
cores = 8
memory = "1GiB"
disk = "1GiB"
[process.web]
binary = "web.wasm"
hosts = ["fra1", "fra2"]
[process.web.secret]
"/run/secrets/db" = "db-password"
"""


class Site:
    def __init__(self, directory: Path, store: Store) -> None:
        self.directory = directory
        self.store = store
        self.secrets = Secrets(store, "prod")
        (directory / "web.wasm").write_bytes(QUIET)
        self.write(TEXT)

    def write(self, text: str) -> None:
        (self.directory / "shop.toml").write_text(text)

    def set(self, value: bytes, *hosts: str) -> None:
        self.secrets.put("db-password", value, {host: PUBLIC[host] for host in hosts or KEYS}, at_unix_s=1)

    def resolve(self, *, locked: Lock | None = None, before: Lock | None = None) -> Resolved:
        parsed = load(self.directory / "shop.toml")
        return resolve(parsed, self.store, locked=locked, before=before, sealed=self.secrets.newest)

    def problems(self, *, locked: Lock | None = None) -> list[str]:
        with pytest.raises(DefinitionInvalid) as caught:
            self.resolve(locked=locked)
        return [f"{one.line}:{one.column}: {one.message}; {one.hint}" for one in caught.value.problems]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Store.open(tmp_path / "store") as store:
        yield Site(tmp_path, store)


def test_a_secret_is_one_blob_for_each_host_that_only_this_host_opens(site: Site) -> None:
    site.set(b"hunter2")
    resolved = site.resolve()
    sealed = resolved.definition.secret["db-password"].sealed
    assert sealed == resolved.lock.secret["db-password"]
    assert {host: unseal(site.store.read(digest), KEYS[host]) for host, digest in sealed.items()} == {
        "fra1": b"hunter2",
        "fra2": b"hunter2",
    }
    for host, specs in specs_of(resolved.definition).items():
        assert specs["web"].secrets == {"/run/secrets/db": sealed[host]}


def test_a_secret_that_is_not_set_is_told_for_each_host_where_it_is_used(site: Site) -> None:
    site.set(b"hunter2", "fra1")
    assert site.problems() == [
        '19:21: process.web.secret."/run/secrets/db": the secret "db-password" is not set for host fra2; '
        "lowcloud secret set db-password --for web < FILE"
    ]


def test_setting_it_again_restarts_it_where_it_was_set_and_nowhere_else(site: Site) -> None:
    site.set(b"old")
    before = site.resolve().definition
    site.set(b"new", "fra2")
    after = site.resolve().definition
    versions = [Version(version_of(one), one) for one in (before, after)]
    plan = make_plan("minimal", versions[0], versions[1], assume(before))
    (step,) = plan.steps()
    assert (step.kind, step.host, step.change) == (Kind.REPLACE, "fra2", "restart")
    assert [cause.path for cause in step.causes] == [("secret", "db-password", "sealed", "fra2")]
    assert after.secret["db-password"].sealed["fra2"] in blobs_by_host(plan)["fra2"]
    assert make_plan("minimal", versions[1], versions[1], assume(after)).is_empty


def test_the_lock_brings_back_what_was_sealed_when_it_was_written(site: Site) -> None:
    site.set(b"old")
    first = site.resolve()
    text = locks.encode(first.lock)
    assert f'[secret.db-password]\nfra1 = "{first.lock.secret["db-password"]["fra1"]}"\n' in text
    assert locks.decode(text, Path("shop.lock")) == first.lock
    site.set(b"new")
    assert site.resolve(locked=first.lock).definition == first.definition
    assert site.resolve().definition != first.definition
    assert site.problems(locked=Lock(first.lock.blob))[0].endswith("write it anew with `lowcloud resolve`")


def test_the_lock_says_what_a_name_stood_for_before(site: Site) -> None:
    site.set(b"x")
    first = site.resolve().lock
    assert first.blob["web.wasm"].base is None
    assert site.resolve(before=first).lock == first, "resolving twice changes nothing"
    (site.directory / "web.wasm").write_bytes(QUIET + b"\x00\x04\x01x..")
    second = site.resolve(before=first).lock
    assert second.blob["web.wasm"].base == first.blob["web.wasm"].digest
    assert site.resolve(before=second).lock == second
    assert locks.decode(locks.encode(second), Path("shop.lock")) == second
    changed = set(locks.encode(second).splitlines()) - set(locks.encode(first).splitlines())
    assert len(changed) == 3


def test_what_the_definition_fixes_comes_before_what_is_newest(site: Site) -> None:
    site.set(b"old")
    fixed = site.resolve().definition.secret["db-password"].sealed["fra1"]
    site.set(b"new")
    site.write(f'{TEXT}[secret.db-password]\nsealed = {{ fra1 = "{fixed}" }}\n')
    sealed = site.resolve().definition.secret["db-password"].sealed
    assert sealed["fra1"] == fixed
    assert unseal(site.store.read(sealed["fra2"]), KEYS["fra2"]) == b"new"
    absent = "b3:" + "ab" * 32
    site.write(f'{TEXT}[secret.db-password]\nsealed = {{ fra1 = "{absent}" }}\n')
    assert f"the store has no blob {absent}" in site.problems()[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[secret.db-password]\nsealed = { fra1 = "password.txt" }\n', '"password.txt" is no whole digest'),
        (f'[secret.db-password]\nsealed = {{ fra9 = "b3:{"ab" * 32}" }}\n', 'there is no host "fra9"'),
        ('[process.web.config]\n"/run/secrets/x" = "web.wasm"\n', "lies in a directory that holds a secret"),
        ('[process.web.config]\n"/run/secrets/db/x" = "web.wasm"\n', "the file /run/secrets/db/x lies in the secret"),
        ('[secret.unused]\n"sealed" = 1\n', "must be a table of names"),
    ],
)
def test_mistakes_are_found_before_anything_is_asked(site: Site, text: str, told: str) -> None:
    site.write(TEXT + text)
    assert told in "\n".join(site.problems())


def test_each_history_has_its_own_and_a_collection_keeps_them(site: Site) -> None:
    site.set(b"hunter2")
    staging = Secrets(site.store, "staging")
    assert staging.every() == []
    (one,) = staging.put("db-password", b"other", {"fra1": PUBLIC["fra1"]}, at_unix_s=2)
    assert [(s.name, s.host) for s in site.secrets.every()] == [("db-password", "fra1"), ("db-password", "fra2")]
    assert roots(site.store) >= {one.digest, *(s.digest for s in site.secrets.every())}
    assert verify(site.store, {}).findings == ()
    assert staging.remove("db-password", ["fra1", "fra2"]) == [one]
    assert staging.every() == []
    assert site.secrets.newest("db-password", "fra1") is not None


@pytest.mark.parametrize("value", [b"", b"x" * (64 << 10) + b"y"])
def test_a_value_that_cannot_be_sealed_is_refused_for_all_hosts_and_never_shown(site: Site, value: bytes) -> None:
    with pytest.raises(SecretInvalid) as caught:
        site.secrets.put("db-password", value, PUBLIC, at_unix_s=1)
    assert "xxx" not in str(caught.value)
    assert site.secrets.every() == []


def test_who_uses_a_secret_is_known(site: Site) -> None:
    definition = load(site.directory / "shop.toml").definition
    assert users(definition, "db-password") == {"web": ["fra1", "fra2"]}
    assert users(definition, "other") == {}


# --- gpu ------------------------------------------------------------------------------------------------------------


def facts(*, gpu: bool) -> HostFacts:
    given = (Guarantee("gpu", True, "wgpu"),) if gpu else ()
    return HostFacts("h", 1, 1, 1, 1, (), "", "", given)


def test_a_gpu_is_refused_where_no_host_offers_one(site: Site) -> None:
    site.set(b"x")
    plain = site.resolve().definition
    process = {"web": msgspec.structs.replace(plain.process["web"], gpu="webgpu")}
    asking = msgspec.structs.replace(plain, process=process)
    require_gpus(plain, {"fra1": facts(gpu=False)})
    require_gpus(asking, {host: facts(gpu=True) for host in KEYS})
    with pytest.raises(
        GpuNotOffered, match=r"process.web.gpu: webgpu is asked for, but host fra2 offers no GPU"
    ) as told:
        require_gpus(asking, {"fra1": facts(gpu=True), "fra2": facts(gpu=False)})
    assert "fra1" not in str(told.value)
