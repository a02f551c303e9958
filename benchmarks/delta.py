"""Our deltas beside their peers: sizes, CPU times and peak memory, pair by pair, on the same machine.

    python -m benchmarks.delta CORPUS [--resume FILE [--again TOOL ...]] [--plot FILE.svg] [--series NAME ...]
                                      [--tools TOOL ...] [--jobs N]

CORPUS: see corpus.py. Every tool encodes and decodes every pair in child processes of its own and the result is
compared with the target (delta_tools.py). `--resume` keeps results in FILE and measures only what it does not hold: for
ours, whatever was measured with other sources than these. `--again lowcloud` measures that tool again all the same.
Peers: the Debian packages zstd, xdelta3 and ostree, and bsdiff4 and hdiffpatch of PyPI; what is missing is left out and
named. Prints Markdown; `--plot` draws sizes and times (delta_plot.py).
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from blake3 import blake3

from benchmarks import delta_plot, delta_report, delta_tools
from benchmarks.corpus import Pair, pairs_of
from benchmarks.delta_tools import Tool
from benchmarks.results import Result, Results


@cache
def digest(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest()


def measure(tool: Tool, pair: Pair, run: str) -> Result:
    """Raises SystemExit where a tool does not give the target back."""
    with tempfile.TemporaryDirectory() as directory:
        scratch, patch, rebuilt = (Path(directory) / name for name in ("scratch", "patch", "rebuilt"))
        scratch.mkdir()
        encoding = tool.encode(pair.old, pair.new, patch, scratch)
        decoding = tool.decode(pair.old, patch, rebuilt, scratch)
        if blake3(rebuilt.read_bytes()).hexdigest() != digest(pair.new):
            raise SystemExit(f"{tool.name} does not rebuild {pair.new} from {pair.old}")
        return Result(
            tool=tool.name,
            version=tool.version,
            base=digest(pair.old),
            target=digest(pair.new),
            run=run,
            total_bytes=pair.old.stat().st_size + pair.new.stat().st_size,
            patch_bytes=patch.stat().st_size,
            encode_s=encoding.cpu_s,
            decode_s=decoding.cpu_s,
            start_s=decoding.start_s,
            start_bytes=decoding.start_bytes,
            encode_peak_bytes=encoding.peak_bytes,
            decode_peak_bytes=decoding.peak_bytes,
        )


def open_work(tools: list[Tool], pairs: list[Pair], results: Results, again: list[str]) -> list[tuple[Tool, Pair]]:
    """What is not known yet, one tool after another, small pairs first."""

    def is_known(tool: Tool, pair: Pair) -> bool:
        known = results.find(tool.name, digest(pair.old), digest(pair.new))
        return known is not None and known.version == tool.version and tool.name not in again

    by_size = sorted(pairs, key=lambda pair: pair.new.stat().st_size)
    return [(tool, pair) for tool in tools for pair in by_size if not is_known(tool, pair)]


def work_off(work: list[tuple[Tool, Pair]], jobs: int, act: Callable[[Tool, Pair], Result], results: Results) -> None:
    def one(numbered: tuple[int, tuple[Tool, Pair]]) -> None:
        number, (tool, pair) = numbered
        result = act(tool, pair)
        results.add(result)
        done = f"{result.patch_bytes:>9} bytes {result.encode_s:7.2f} s {result.decode_s:6.3f} s"
        print(f"{number}/{len(work)} {tool.name:<16} {pair.series} {pair.versions} {done}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, enumerate(work, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Deltas beside their peers: sizes, CPU times, memory.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--series", action="extend", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--match", default="*", metavar="GLOB", help="of file names")
    parser.add_argument("--tools", nargs="+", choices=delta_tools.TOOLS, default=delta_tools.DEFAULT, metavar="TOOL")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep results here, measure what is not in it")
    parser.add_argument("--again", nargs="+", choices=delta_tools.TOOLS, default=[], metavar="TOOL")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    tools, missing = delta_tools.find(options.tools)
    pairs = list(pairs_of(options.corpus, options.series, options.match))
    if not pairs:
        parser.error(f"no two versions of a file in {options.corpus}")
    results = Results(options.resume)
    run = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    work = open_work(tools, pairs, results, options.again)
    work_off(work, options.jobs, lambda tool, pair: measure(tool, pair, run), results)
    measured = delta_report.collect(
        pairs, tools, lambda tool, pair: results.find(tool, digest(pair.old), digest(pair.new))
    )
    print(delta_report.report(measured, tools, missing, run))
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(delta_plot.draw(measured))


if __name__ == "__main__":
    main()
