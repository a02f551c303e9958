"""Secrets on a host: sealed to a key that stays there, opened into memory for one guest, gone with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.answers import Reason
from agent.api.calls import Replace, Stage, Start, Stop
from agent.api.journal import Event
from agent.api.processes import ProcessSpec, spec_digest
from agent.client.errors import CallRefused
from agent.daemon import sealing
from agent.daemon.durable import FileDamaged
from agent.daemon.guest_files import plan_files
from agent.daemon.refusal import Refused
from agent.daemon.sealing import KEY_NAME, OpenedSecrets, SealingKey
from cas.digest import Digest, digest_of
from cas.sealed import seal
from tests.agent.service.support import Cloud, host, put, run, until, wasm, web

BLOB = digest_of(b"sealed")
VALUE = b"correct horse battery staple"


def sealed(state: Path, value: bytes = VALUE, key: SealingKey | None = None) -> bytes:
    """A value for the host of this state directory, or for the holder of another key."""
    recipient = bytes.fromhex((key or SealingKey(state / KEY_NAME)).public())
    return seal(value, name="db", recipient=recipient, at_unix_s=0)


def with_secret(binary: Digest, secret: Digest) -> ProcessSpec:
    return web(binary, secret={"/run/secrets/db": secret})


async def secret_file(cloud: Cloud) -> Path:
    """The opened secret of the guest that serves."""
    (guest,) = cloud.runtime.serving("web")
    (preopen,) = cloud.runtime.orders[guest.guest].preopens
    assert (preopen.guest_path, preopen.writable) == ("/run/secrets", False)
    return Path(preopen.host_path, "db")


def memory_of(file: Path) -> Path:
    """`/dev/shm/lowcloud-…`, which an opened secret lies in."""
    return Path(*file.parts[:4])


# --- the key --------------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    public = SealingKey(path).public()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SealingKey(path).public() == public
    assert bytes.fromhex(public) not in path.read_bytes()


def test_a_damaged_key_is_told_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    SealingKey(path).public()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(FileDamaged):
        SealingKey(path).public()


def test_a_host_shows_the_key_that_its_secrets_are_sealed_to() -> None:
    async def work(tmp: Path) -> None:
        async with host(tmp / "state") as cloud:
            facts = await cloud.client.host()
            assert facts.sealing_key == SealingKey(tmp / "state" / KEY_NAME).public()
        (tmp / "state" / KEY_NAME).write_bytes(b"nothing")
        async with host(tmp / "state") as cloud:
            assert not isinstance((await cloud.client.host()).sealing_key, str)

    run(work)


# --- a guest's secret -----------------------------------------------------------------------------------------------


def test_a_guest_finds_its_secret_in_memory_and_nothing_else_has_it() -> None:
    async def work(tmp: Path) -> None:
        (tmp / "state").mkdir()
        binary, secret = put(tmp / "state", wasm(), sealed(tmp / "state"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(with_secret(binary, secret)))
            file = await secret_file(cloud)
            assert file.read_bytes() == VALUE
            assert stat.S_IMODE(file.stat().st_mode) == 0o400
            assert file.is_relative_to("/dev/shm")
            assert stat.S_IMODE(memory_of(file).stat().st_mode) == 0o700
            assert memory_of(file).stat().st_uid == os.geteuid()
            (serving,) = await cloud.events(Event.SERVING)
            assert serving.secrets == {"/run/secrets/db": secret}
            await cloud.ask(Stop("web", expect=spec_digest(with_secret(binary, secret))))
            await until(lambda: not memory_of(file).exists())
        on_disk = [path for path in (tmp / "state").rglob("*") if path.is_file() and VALUE in path.read_bytes()]
        assert on_disk == []

    run(work)


def test_a_new_secret_goes_to_a_new_guest() -> None:
    async def work(tmp: Path) -> None:
        (tmp / "state").mkdir()
        blobs = wasm(), sealed(tmp / "state", b"old"), sealed(tmp / "state", b"new")
        binary, one, two = put(tmp / "state", *blobs)
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(with_secret(binary, one)))
            before = await secret_file(cloud)
            await cloud.ask(Replace(with_secret(binary, two), expect=spec_digest(with_secret(binary, one))))
            after = await secret_file(cloud)
            assert after.read_bytes() == b"new"
            await until(lambda: not before.exists())
            await cloud.ask(Stop("web", expect=spec_digest(with_secret(binary, two))))

    run(work)


def test_a_secret_that_does_not_open_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    async def work(tmp: Path) -> None:
        (tmp / "state").mkdir()
        stranger = sealed(tmp / "state", key=SealingKey(tmp_path / "other.key"))
        binary, good, foreign, junk = put(tmp / "state", wasm(), sealed(tmp / "state"), stranger, b"no seal")
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(with_secret(binary, good)))
            for secret, told in ((foreign, "another key"), (junk, "not a sealed secret")):
                with pytest.raises(CallRefused, match=told) as caught:
                    await cloud.ask(Stage((with_secret(binary, secret),)))
                assert caught.value.refusal.reason is Reason.BAD_BLOB
                assert "secret set" in caught.value.refusal.hint
            with pytest.raises(CallRefused) as caught:
                await cloud.ask(Stage((with_secret(binary, BLOB),)))
            assert caught.value.refusal.missing == (BLOB,)
            assert (await secret_file(cloud)).read_bytes() == VALUE
            await cloud.ask(Stop("web", expect=spec_digest(with_secret(binary, good))))

    run(work)


def test_secrets_stay_while_the_agent_is_away_and_what_nobody_knows_goes() -> None:
    async def work(tmp: Path) -> None:
        (tmp / "state").mkdir()
        binary, secret = put(tmp / "state", wasm(), sealed(tmp / "state"))
        async with host(tmp / "state") as cloud:
            await cloud.ask(Start(with_secret(binary, secret)))
            file = await secret_file(cloud)
            runtime = cloud.runtime
        left = memory_of(file) / "web-left"
        left.mkdir()
        (left / "db").write_bytes(VALUE)
        async with host(tmp / "state", runtime) as cloud:
            assert file.read_bytes() == VALUE
            assert not left.exists()
            await cloud.ask(Stop("web", expect=spec_digest(with_secret(binary, secret))))

    run(work)


def test_without_memory_of_its_own_secrets_lie_with_the_guests_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "guests" / "web-1").mkdir(parents=True)
    secrets = OpenedSecrets(tmp_path, tmp_path / "guests")
    in_memory = secrets.make("web-1", ["secret/0/db"])
    assert in_memory.is_relative_to(sealing.SHARED_MEMORY)
    in_memory.parent.chmod(0o755)  # as if another had made it
    assert secrets.make("web-1", ["secret/0/db"]) == tmp_path / "guests" / "web-1"
    assert "on disk" in caplog.text
    in_memory.parent.chmod(0o700)
    secrets.clear("web-1")
    assert not in_memory.parent.exists()
    monkeypatch.setattr(sealing, "SHARED_MEMORY", tmp_path)
    assert OpenedSecrets(tmp_path, tmp_path / "guests").make("web-1", []) == tmp_path / "guests" / "web-1"


# --- where they lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"config": {"/run/secrets/web.toml": BLOB}},
        {"config": {"/run/secrets/a/b": BLOB}},
        {"config": {"/run/secrets/db": BLOB}},
        {"config": {"/run/secrets/db/x": BLOB}},
        {"volume": {"/run/secrets": "v"}},
        {"volume": {"/run": "v"}},
        {"volume": {"/run/secrets/data": "v"}},
        {"volume": {"/run/secrets/db/data": "v"}},
        {"secret": {"/run/secrets/db": BLOB, "/run/secrets/db/x": BLOB}},
        {"secret": {"/tmp/db": BLOB}, "disk_bytes": 1},
        {"secret": {"/db": BLOB}, "disk_bytes": 1},
    ],
)
def test_a_directory_that_holds_a_secret_holds_nothing_else(fields: dict[str, Any]) -> None:
    spec = web(BLOB, **{"secret": {"/run/secrets/db": BLOB}, **fields})
    with pytest.raises(Refused) as caught:
        plan_files(spec)
    assert caught.value.refusal.reason is Reason.BAD_REQUEST


PATHS = st.lists(st.sampled_from(["a", "b", "tmp"]), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


@settings(max_examples=100)
@given(st.sets(PATHS, max_size=3), st.sets(PATHS, max_size=3), st.sets(PATHS, max_size=2), st.booleans())
def test_every_secret_and_file_is_found_where_it_lies(
    secrets: set[str], config: set[str], volumes: set[str], scratch: bool
) -> None:
    """A guest's libraries look in the longest directory that contains a path."""
    spec = web(
        BLOB,
        secret=dict.fromkeys(secrets, BLOB),
        config=dict.fromkeys(config, BLOB),
        volume={path: f"v{number}" for number, path in enumerate(sorted(volumes))},
        disk_bytes=int(scratch),
    )
    try:
        plan = plan_files(spec)
    except Refused:
        return
    preopens = plan.preopens(Path("/own"), {f"v{n}": Path("/volumes", f"v{n}") for n in range(2)}, Path("/memory"))
    assert len({p.guest_path for p in preopens}) == len(preopens)
    for paths, files, above in ((secrets, plan.secrets, "/memory"), (config, plan.files, "/own")):
        for path in paths:
            around = [p for p in preopens if p.guest_path == "/" or path.startswith(p.guest_path + "/")]
            best = max(around, key=lambda p: len(p.guest_path))
            found = f"{best.host_path}/{path[len(best.guest_path) :].lstrip('/')}"
            assert not best.writable
            assert found.removeprefix(f"{above}/") in files
