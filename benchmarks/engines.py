"""What shared engines cost: a real 3-node etcd and a real S3 store on this machine, beside the local store.

    python -m benchmarks.engines [--runs 200]

Prints medians: reading and moving a ref, storing a blob, the CPU time of `lowcloud history`, and how long the first
move takes after etcd's leader was killed. All servers and the client share the machine: trust the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import measured
from cas.digest import Digest, digest_of
from cas.engines.shared import SharedStore
from cas.store import Store
from deployer.cloud.cloud import Cloud
from deployer.cloud.engines import open_refs, open_shared
from deployer.cloud.migrate import migrate
from tests.engines.releases import make_release
from tests.engines.servers import EtcdCluster, Weed, with_credentials

RELEASES = 20
KILLS = 3
STARTS = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, with_credentials():
        root = Path(directory)
        (root / "etcd").mkdir()
        etcd, weed = EtcdCluster(root / "etcd"), Weed(root / "weed")
        try:
            etcd.start()
            weed.start()
            _refs(etcd, args.runs)
            _blobs(root, weed, args.runs)
            _history(root, etcd, weed)
            _failover(etcd)
        finally:
            etcd.stop()
            weed.kill()
    return 0


def _refs(etcd: EtcdCluster, runs: int) -> None:
    refs = open_refs(etcd.address("refs"))
    assert refs is not None
    at: list[Digest | None] = [None]

    def move() -> None:
        following = digest_of(str(at).encode())
        refs.move_ref("prod", at[0], following)
        at[0] = following

    _say("move a ref in etcd", _median_ms(move, runs), "ms")
    _say("read a ref in etcd", _median_ms(lambda: refs.read_ref("prod"), runs), "ms")


def _blobs(root: Path, weed: Weed, runs: int) -> None:
    with Store.open(root / "store") as local:
        store = open_shared(local, refs="lmdb", blobs=weed.url("blobs"), state=root, tell=lambda *_: None)
        _say("store 3 KB, LMDB", _median_ms(lambda: _put(local), runs), "ms")
        _say("store 3 KB, LMDB and S3", _median_ms(lambda: _put(store), runs), "ms")


def _put(store: Store | SharedStore) -> None:
    store.put(time.perf_counter_ns().to_bytes(8) * 375)


def _history(root: Path, etcd: EtcdCluster, weed: Weed) -> None:
    directory = root / "cloud"
    with Cloud.create(directory) as cloud:
        for number in range(RELEASES):
            make_release(cloud, b"%d" % number)
    _say("bare interpreter, CPU", _cpu_ms([sys.executable, "-c", "pass"], directory), "ms")
    _say("history, LMDB, CPU", _cpu_ms([sys.executable, "-P", "-m", "tools.main", "history"], directory), "ms")
    with Cloud.open(directory) as cloud:
        migrate(cloud, refs=etcd.address("cloud"), blobs=weed.url("cloud"))
    _say("history, etcd and S3, CPU", _cpu_ms([sys.executable, "-P", "-m", "tools.main", "history"], directory), "ms")


def _failover(etcd: EtcdCluster) -> None:
    refs = open_refs(etcd.address("failover"))
    assert refs is not None
    at: Digest | None = None
    gaps_s = []
    for number in range(KILLS):
        killed = etcd.kill_leader()
        began = time.monotonic()
        following = digest_of(b"%d" % number)
        refs.move_ref("prod", at, following)
        gaps_s.append(time.monotonic() - began)
        at = following
        etcd.restart(killed)
    _say("first move after the leader was killed", statistics.median(gaps_s), "s")


def _median_ms(act: Callable[[], object], runs: int) -> float:
    samples = []
    for _ in range(runs):
        began = time.perf_counter()
        act()
        samples.append((time.perf_counter() - began) * 1000)
    return statistics.median(samples)


def _cpu_ms(command: list[str], cwd: Path) -> float:
    here = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    return statistics.median(measured(command, cwd=cwd, env=here).cpu_s * 1000 for _ in range(STARTS))


def _say(what: str, value: float, unit: str) -> None:
    print(f"{what:<40} {value:8.2f} {unit}")


if __name__ == "__main__":
    sys.exit(main())
