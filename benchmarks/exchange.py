"""A new version to a place that has the one before: bytes on the wire and time, beside what others use for it.

    python -m benchmarks.exchange CORPUS [--series NAME ...] [--all] [--rounds N]

Ours goes from a store into an agent as its users run it, over TLS 1.3, and counts until it is verified and durable
there. The peers are given the best that they have, prepared beforehand and not counted: `rsync -z` between two folders,
`ostree pull` with a static delta and `casync extract` with the old version as seed, each over HTTP without TLS, and a
`zstd -19` of the new version over HTTP, unpacked. Bytes are what the sender sent, for HTTP with heads of answers; of
ostree they are those of the delta alone, because the version that was tried also fetches the file itself beside it.
CPU time is that of the receiving command and what it started; of ours both ends together. `--all`: every pair of a
series, otherwise the newest.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.server
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from agent.api.blobs import BlobQuery
from benchmarks.corpus import Pair, pairs_of
from benchmarks.exchange_link import Cloud, running, timed
from benchmarks.measure import Cost, measured
from cas.exchange import bases_of, frames
from cas.store import Store

SERIES = ["oxc", "rolldown", "ruby"]


class Moved(NamedTuple):
    sent_bytes: int
    wall_s: float
    cpu_s: float


# --- ours -----------------------------------------------------------------------------------------------------------


async def ours(pair: Pair, scratch: Path) -> Moved:
    async with running(scratch) as cloud:
        with Store.open(scratch / "store") as store:
            old, new = (store.put(path.read_bytes(), name=pair.series).digest for path in (pair.old, pair.new))
            await _bring(cloud, store, old)
            sent: list[int] = []

            async def bring() -> None:
                sent.append(await _bring(cloud, store, new))

            took = await timed(cloud, bring)
            return Moved(sent[0], took.wall_s, took.cpu_s)


async def _bring(cloud: Cloud, store: Store, digest: str) -> int:
    answer = await cloud.client.query(BlobQuery(want=(digest,), bases=bases_of(store, [digest])))
    receipt = await cloud.client.send_blobs(frames(store, answer.missing, answer.bases))
    return receipt.wire_bytes


# --- peers ----------------------------------------------------------------------------------------------------------


class Counting(http.server.SimpleHTTPRequestHandler):
    """Serves files and counts what it sends."""

    protocol_version = "HTTP/1.1"
    sent = 0

    def log_request(self, *arguments: Any) -> None:
        """Nobody reads it."""

    def log_error(self, *arguments: Any) -> None:
        """Nobody reads it."""

    def setup(self) -> None:
        super().setup()
        write = self.wfile.write

        def counted(data: Any) -> int:
            Counting.sent += len(data)
            return write(data)

        self.wfile.write = counted  # type: ignore[method-assign]


@contextmanager
def served(directory: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Counting, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Counting.sent = 0
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def rsync(pair: Pair, scratch: Path) -> Moved:
    there = scratch / "there"
    there.mkdir()
    shutil.copy(pair.old, there / "file")
    shutil.copy(pair.new, scratch / "file")
    said = scratch / "rsync.out"
    cost = measured(["rsync", "-z", "--no-whole-file", "--stats", scratch / "file", there / "file"], out=said)
    _same(pair.new, there / "file")
    numbers = re.findall(r"Total bytes (?:sent|received): ([\d,]+)", said.read_text())
    return _moved(sum(int(number.replace(",", "")) for number in numbers), cost)


def ostree(pair: Pair, scratch: Path) -> Moved:
    def run(repo: str, *words: str | Path) -> str:
        command = ["ostree", f"--repo={scratch / repo}", *map(str, words)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    run("here", "init", "--mode=archive")
    run("there", "init", "--mode=bare-user-only")
    tree = scratch / "tree"
    tree.mkdir()
    commits = []
    for path in (pair.old, pair.new):
        shutil.copyfile(path, tree / "file")
        commits.append(run("here", "commit", "--branch=main", "--canonical-permissions", tree))
    run("here", "static-delta", "generate", f"--from={commits[0]}", f"--to={commits[1]}")
    delta_bytes = sum(path.stat().st_size for path in (scratch / "here" / "deltas").rglob("*") if path.is_file())
    run("here", "summary", "-u")
    with served(scratch / "here") as url:
        run("there", "remote", "add", "--no-gpg-verify", "origin", url)
        run("there", "pull", "origin", f"main@{commits[0]}")
        command = ["ostree", f"--repo={scratch / 'there'}", "pull", "--require-static-deltas", "origin", "main"]
        cost = measured(command)
    run("there", "checkout", "-U", commits[1], scratch / "out")
    _same(pair.new, scratch / "out" / "file")
    return _moved(delta_bytes, cost)


def casync(pair: Pair, scratch: Path) -> Moved:
    store = scratch / "here" / "default.castr"
    store.parent.mkdir()
    index = scratch / "here" / "new.caibx"
    measured(["casync", "make", f"--store={store}", index, pair.new])
    shutil.copy(pair.old, scratch / "seed")
    with served(scratch / "here") as url:
        command = ["casync", "extract", f"--store={url}/default.castr", f"--seed={scratch / 'seed'}"]
        cost = measured([*command, f"{url}/new.caibx", scratch / "out"])
        sent = Counting.sent
    _same(pair.new, scratch / "out")
    return _moved(sent, cost)


def plain(pair: Pair, scratch: Path) -> Moved:
    here = scratch / "here"
    here.mkdir()
    measured(["zstd", "-q", "-19", pair.new.resolve(), "-o", here / "new.zst"])
    with served(here) as url:
        cost = measured(["sh", "-c", f"curl -sf {url}/new.zst | zstd -q -d -o {scratch / 'out'}"])
        sent = Counting.sent
    _same(pair.new, scratch / "out")
    return _moved(sent, cost)


def _same(one: Path, other: Path) -> None:
    if one.read_bytes() != other.read_bytes():
        raise RuntimeError(f"{other} is not what was sent")


def _moved(sent: int, cost: Cost) -> Moved:
    return Moved(sent, cost.wall_s, cost.cpu_s)


WAYS: dict[str, Callable[[Pair, Path], Moved]] = {
    "lowcloud": lambda pair, scratch: asyncio.run(ours(pair, scratch)),
    "rsync -z": rsync,
    "ostree, static delta": ostree,
    "casync": casync,
    "zstd -19, HTTP": plain,
}


# --- the table ------------------------------------------------------------------------------------------------------


def once(way: str, pair: Pair) -> Moved:
    with tempfile.TemporaryDirectory() as scratch:
        return WAYS[way](pair, Path(scratch))


def main() -> None:
    parser = argparse.ArgumentParser(description="a new version to a place that has the one before")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--series", nargs="+", default=SERIES)
    parser.add_argument("--match", default="*.wasm")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pairs = list(pairs_of(arguments.corpus, arguments.series, arguments.match))
    if not arguments.all:
        pairs = list({(pair.series, pair.new.name): pair for pair in pairs}.values())
    for pair in pairs:
        print(f"\n{pair.series} {pair.versions}, {pair.new.name}, {pair.new.stat().st_size / 1e6:.1f} MB\n")
        print("| | KB sent | of ours | s | CPU s |\n|---|---|---|---|---|")
        first = 0
        for way in WAYS:
            rounds = [once(way, pair) for _ in range(arguments.rounds)]
            sent, wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
            first = first or int(sent)
            print(f"| {way} | {sent / 1000:.0f} | {sent / first:.2f} | {wall:.2f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
