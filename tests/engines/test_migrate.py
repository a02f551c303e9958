"""Moving a cloud between engines and back: nothing lost, nothing doubled, resumable, nobody left behind unknowing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cas.digest import Digest, digest_of, to_raw
from cas.engines.errors import EngineUnreachable, HistoryMoved
from cas.engines.shared import SharedStore
from cas.errors import RefMoved
from cas.tree import File
from deployer.cloud.cloud import CONFIG_NAME, Cloud, CloudConfig
from deployer.cloud.engines import open_refs
from deployer.cloud.migrate import MigrationRefused, migrate, with_setting
from deployer.errors import ApplyRaced
from deployer.history import release as releases
from deployer.history.roots import roots
from deployer.history.snapshots import Snapshots, needs_of
from deployer.planning import plan as plans
from tests.cas.damage import flip, overwrite, values
from tests.conformance.test_blobs import noise
from tests.deployer.test_snapshots import keep
from tests.engines.releases import make_release
from tests.engines.servers import EtcdCluster, Weed

REF = "prod"
SECRET = "secret/db/h1"
"""A ref that points at something else than a release."""
SEALED = digest_of(b"sealed bytes")


def snapshot_in(cloud: Cloud) -> Digest:
    """Of a volume, kept with all that it takes."""
    store = cloud.store.local if isinstance(cloud.store, SharedStore) else cloud.store
    piece = store.put(b"in a volume").digest
    return keep(store, [File(b"file", 0o600, 0, len(b"in a volume"), (to_raw(piece),))])


def history(cloud: Cloud, ref: str = REF) -> list[Digest]:
    """Every release of a ref, each read with all that it names."""
    found = []
    for link in releases.chain(cloud.store, cloud.store.read_ref(ref)):
        for process in releases.read_definition(cloud.store, link.release.definition).process.values():
            cloud.store.read(process.binary)
        plans.decode(cloud.store.read(link.release.plan))
        found.append(link.digest)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with Cloud.create(tmp_path / "cloud", operator="ada") as cloud:
        for number in range(4):
            make_release(cloud, b"binary %d " % number + noise(20_000, number // 2))
        make_release(cloud, b"staging", ref="staging")
        cloud.store.put(b"pushed and not deployed" * 100, name="build/later.wasm")
        cloud.store.move_ref(SECRET, None, cloud.store.put(b"sealed bytes").digest)
        Snapshots(cloud.store, REF).name(snapshot_in(cloud))
    return tmp_path / "cloud"


@pytest.fixture
def there(etcd: EtcdCluster, weed: Weed, engine_name: str) -> CloudConfig:
    """Engines that are free."""
    return CloudConfig(refs=etcd.address(engine_name), blobs=weed.url(engine_name))


def moved(root: Path, to: CloudConfig) -> Cloud:
    with Cloud.open(root) as cloud:
        migrate(cloud, refs=to.refs, blobs=to.blobs)
    return Cloud.open(root)


def without_local_store(root: Path) -> None:
    """As on a machine that has just joined."""
    import shutil

    from cas.store import Store

    shutil.rmtree(root / ".lowcloud" / "store")
    Store.open(root / ".lowcloud" / "store").close()


def test_a_cloud_moves_to_shared_engines_and_back_with_its_whole_history(root: Path, there: CloudConfig) -> None:
    with Cloud.open(root) as cloud:
        before, staging = history(cloud), history(cloud, "staging")
        everything = set(cloud.store.digests())
    with moved(root, there) as cloud:
        assert (cloud.config.refs, cloud.config.blobs) == (there.refs, there.blobs)
        assert isinstance(cloud.store, SharedStore)
        assert cloud.store.local.refs() == {}
    without_local_store(root)
    with Cloud.open(root) as cloud:
        assert (history(cloud), history(cloud, "staging")) == (before, staging)
        assert set(cloud.store.digests()) == everything
        [kept] = Snapshots(cloud.store, REF).every("data")
        assert all(cloud.store.read(digest) for digest in needs_of(cloud.store, kept.digest))
        newest = make_release(cloud, b"made over there")
    with moved(root, CloudConfig()) as cloud:
        assert not isinstance(cloud.store, SharedStore)
        assert (history(cloud), history(cloud, "staging")) == ([newest, *before], staging)
        assert cloud.store.check().damaged == ()
        assert everything <= set(cloud.store.digests())
    refs = open_refs(there.refs)
    assert refs is not None
    with pytest.raises(HistoryMoved, match="lmdb"):
        refs.read_ref(REF)
    with moved(root, there) as cloud:
        assert history(cloud) == [newest, *before]


@pytest.mark.parametrize("part", ["refs", "blobs"])
def test_refs_and_blobs_move_one_without_the_other(root: Path, there: CloudConfig, part: str) -> None:
    with Cloud.open(root) as cloud:
        before = history(cloud)
    target = CloudConfig(refs=there.refs) if part == "refs" else CloudConfig(blobs=there.blobs)
    with moved(root, target) as cloud:
        assert history(cloud) == before
        newest = make_release(cloud, b"made afterwards")
    with moved(root, CloudConfig()) as cloud:
        assert history(cloud) == [newest, *before]


class Killed(BaseException):
    """What nothing in the product catches."""


@pytest.mark.parametrize("step", range(8))
def test_a_migration_that_is_killed_goes_on_where_it_was(
    root: Path, there: CloudConfig, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its steps in turn: between blobs, between refs, around the change of the settings."""
    from deployer.cloud import migrate as module

    with Cloud.open(root) as cloud:
        before, staging = history(cloud), history(cloud, "staging")
    for target in (there, CloudConfig()):
        with monkeypatch.context() as patched:
            steps = iter(range(100))

            def counted(act: Callable[..., object], steps: object = steps) -> Callable[..., object]:
                def run(*args: object, **named: object) -> object:
                    if next(steps) == step:  # type: ignore[call-overload]
                        raise Killed
                    return act(*args, **named)

                return run

            for name in ("_bring_blobs", "_verify", "_bring_ref", "_leave", "_switch"):
                patched.setattr(module._Migration, name, counted(getattr(module._Migration, name)))
            with Cloud.open(root) as cloud, pytest.raises(Killed):
                migrate(cloud, refs=target.refs, blobs=target.blobs)
        with Cloud.open(root) as cloud:
            if cloud.config.refs != target.refs:
                migrate(cloud, refs=target.refs, blobs=target.blobs)
        with Cloud.open(root) as cloud:
            assert (cloud.config.refs, cloud.config.blobs) == (target.refs, target.blobs)
            assert (history(cloud), history(cloud, "staging")) == (before, staging)


def test_a_cloud_moves_from_shared_engines_to_others(
    root: Path, there: CloudConfig, etcd: EtcdCluster, weed: Weed, engine_name: str
) -> None:
    with Cloud.open(root) as cloud:
        before = history(cloud)
    moved(root, there).close()
    without_local_store(root)
    elsewhere = CloudConfig(refs=etcd.address(f"{engine_name}-b"), blobs=weed.url(f"{engine_name}-b"))
    moved(root, elsewhere).close()
    without_local_store(root)
    with Cloud.open(root) as cloud:
        assert history(cloud) == before
        assert cloud.store.read_ref(SECRET) == SEALED
        assert cloud.store.read(SEALED) == b"sealed bytes"
    (root / CONFIG_NAME).write_text(f'refs = "{there.refs}"\nblobs = "{there.blobs}"\n')
    with Cloud.open(root) as cloud, pytest.raises(HistoryMoved, match="-b"):
        history(cloud)


def test_a_release_that_is_made_while_the_history_moves_comes_along(root: Path, there: CloudConfig) -> None:
    made: list[Digest] = []
    with Cloud.open(root) as cloud, Cloud.open(root) as other:
        before = history(cloud)

        def another_operator(what: str, *_: int) -> None:
            if what == "verify" and not made:
                made.append(make_release(other, b"made meanwhile"))

        migrate(cloud, refs=there.refs, blobs=there.blobs, tell=another_operator)
        with pytest.raises(ApplyRaced):  # An apply that began with the old settings finds that its ref has moved.
            make_release(other, b"too late", parent=made[0])
    without_local_store(root)
    with Cloud.open(root) as cloud:
        assert history(cloud) == [*made, *before]


def test_a_target_with_another_history_is_refused_and_nothing_changes(
    root: Path, there: CloudConfig, tmp_path: Path
) -> None:
    with Cloud.create(tmp_path / "other") as other:
        make_release(other, b"another history")
    moved(tmp_path / "other", there).close()
    with Cloud.open(root) as cloud:
        before = history(cloud)
        with pytest.raises(MigrationRefused, match="another history under 'prod'"):
            migrate(cloud, refs=there.refs, blobs=there.blobs)
    with Cloud.open(root) as cloud:
        assert cloud.config.refs == "lmdb"
        assert history(cloud) == before


def test_engines_that_do_not_answer_change_nothing(root: Path) -> None:
    with Cloud.open(root) as cloud:
        before = history(cloud)
        with pytest.raises(EngineUnreachable):
            migrate(cloud, refs="etcd://127.0.0.1:1/shop", blobs="lmdb")
        with pytest.raises(MigrationRefused, match="already"):
            migrate(cloud, refs="lmdb", blobs="lmdb")
    with Cloud.open(root) as cloud:
        assert history(cloud) == before


def test_a_damaged_blob_that_no_history_needs_is_left_behind_and_named(root: Path, there: CloudConfig) -> None:
    with Cloud.open(root) as cloud:
        digest = cloud.store.put(noise(50_000, 9)).digest
        damaged = 0
        for key, value in values(cloud.store, "records"):  # type: ignore[arg-type]
            if len(value) > 40_000:
                overwrite(cloud.store, "records", key, flip(value, 1000))  # type: ignore[arg-type]
                damaged += 1
        assert damaged == 1
        done = migrate(cloud, refs=there.refs, blobs=there.blobs)
    assert list(done.skipped) == [digest]


def test_a_collection_by_one_machine_leaves_what_every_release_needs(root: Path, there: CloudConfig) -> None:
    with moved(root, there) as cloud:
        store = cloud.store
        assert isinstance(store, SharedStore)
        assert store.origin is not None
        before = history(cloud)
        store.origin.hold_s = 0.0
        orphan = store.put(noise(4000, 77)).digest
        assert store.collect_origin(roots(store)).blobs == 1
        assert not store.origin.contains(orphan)
    without_local_store(root)
    with Cloud.open(root) as cloud:
        assert history(cloud) == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'refs = "etcd://h:1/s"\n'),
        ("# refs = 1\n", '# refs = 1\nrefs = "etcd://h:1/s"\n'),
        ('ref = "prod"', 'ref = "prod"\nrefs = "etcd://h:1/s"\n'),
        ('refs = "lmdb"   # here\nref = "prod"\n', 'refs = "etcd://h:1/s"\nref = "prod"\n'),
        ('ref = "prod"\n"refs"="etcd://x:1/s"', 'ref = "prod"\nrefs = "etcd://h:1/s"\n'),
    ],
)
def test_one_line_of_the_settings_changes_and_the_others_stay(before: str, after: str) -> None:
    assert with_setting(before, "refs", "etcd://h:1/s") == after
    assert "refs =" not in with_setting(after, "refs", "lmdb").replace("# refs", "")


def test_settings_that_are_written_in_a_way_that_is_not_understood_are_left_alone(
    root: Path, there: CloudConfig
) -> None:
    odd = 'refs = """lmdb\\\n"""\n'
    (root / CONFIG_NAME).write_text(odd)
    with Cloud.open(root) as cloud:
        before = history(cloud)
        with pytest.raises(MigrationRefused, match="not understood"):
            migrate(cloud, refs=there.refs, blobs=there.blobs)
    assert (root / CONFIG_NAME).read_text() == odd
    with Cloud.open(root) as cloud:
        assert history(cloud) == before


def test_ref_moved_is_what_a_stale_operator_is_told(root: Path, there: CloudConfig) -> None:
    with Cloud.open(root) as stale:
        head = stale.store.read_ref(REF)
        moved(root, there).close()
        with pytest.raises(RefMoved):
            stale.store.move_ref(REF, head, head)
