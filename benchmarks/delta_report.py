"""The delta benchmark's tables, in Markdown, and its verdicts on what was to be reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.corpus import Pair
from benchmarks.delta_tools import Tool
from benchmarks.results import Result

OURS, FAST = "lowcloud", "lowcloud-fast"
KB = 1000

PROTOTYPE_KB = {
    "rolldown": 697, "oxc": 89, "tailwind": 327, "esbuild": 1509, "ruby": 239, "jco-bindgen": 226, "wasm-tools": 93,
}  # fmt: skip
"""What the experiment that showed the way needed for the whole series; jco's were measured on other releases."""

LARGER_AT_MOST, LARGER_AT_MOST_BYTES = 1.03, 256
"""No pair may be larger than the best generic tool's by more than both."""
MEDIAN_AT_LEAST = 3.0


@dataclass(frozen=True)
class Measured:
    """All results of one pair, by tool."""

    pair: Pair
    target_bytes: int
    by_tool: dict[str, Result]

    @property
    def ours(self) -> Result | None:
        return self.by_tool.get(OURS)

    @property
    def generic(self) -> dict[str, Result]:
        return {name: result for name, result in self.by_tool.items() if not name.startswith(OURS)}

    @property
    def best_generic_bytes(self) -> int | None:
        return min((result.patch_bytes for result in self.generic.values()), default=None)

    @property
    def best_generic(self) -> str:
        """Its name; of several the first."""
        return min(self.generic, key=lambda name: self.generic[name].patch_bytes, default="-")

    @property
    def ratio(self) -> float | None:
        best = self.best_generic_bytes
        return best / self.ours.patch_bytes if best is not None and self.ours else None

    @property
    def is_too_large(self) -> bool:
        best = self.best_generic_bytes
        if best is None or self.ours is None:
            return False
        return self.ours.patch_bytes > max(best * LARGER_AT_MOST, best + LARGER_AT_MOST_BYTES)


def collect(pairs: Iterable[Pair], tools: list[Tool], find: Callable[[str, Pair], Result | None]) -> list[Measured]:
    return [
        Measured(
            pair,
            pair.new.stat().st_size,
            {tool.name: result for tool in tools if (result := find(tool.name, pair)) is not None},
        )
        for pair in pairs
    ]


def report(measured: list[Measured], tools: list[Tool], missing: list[str], run: str) -> str:
    parts = [sizes(measured, tools), by_series(measured), by_tool(measured, tools), "\n".join(verdicts(measured))]
    return "\n\n".join([*parts, "\n".join(remarks(measured, tools, missing, run))])


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    ruled = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def sizes(measured: list[Measured], tools: list[Tool]) -> str:
    names = [tool.name for tool in tools if tool.name != OURS]
    head = ["series", "versions", "target MB", OURS, *names, "best generic", "best generic / ours"]

    def cells(row: Measured) -> list[str]:
        patch_bytes = [row.by_tool[name].patch_bytes if name in row.by_tool else None for name in [OURS, *names]]
        what = [row.pair.series, row.pair.versions, number(row.target_bytes / 1e6, 1)]
        return [*what, *map(number, patch_bytes), row.best_generic, number(row.ratio, 2)]

    return table(head, map(cells, measured))


def total(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def megabytes_per_s(rows: list[Measured], tool: str, seconds: Callable[[Result], float]) -> float | None:
    spent = total(seconds(row.by_tool[tool]) if tool in row.by_tool else None for row in rows)
    return sum(row.target_bytes for row in rows) / 1e6 / spent if spent else None


def memory_factor(rows: list[Measured], peak: Callable[[Result], int | None]) -> float | None:
    """The largest peak as a multiple of base and target, what the process held before it read them taken off."""
    results = [row.ours for row in rows if row.ours]
    factors = [
        (peak_bytes - result.start_bytes) / result.total_bytes
        for result in results
        if (peak_bytes := peak(result)) is not None and result.start_bytes is not None
    ]
    return max(factors, default=None)


def encode_ratio(rows: list[Measured], peer: str) -> float | None:
    """The median over pairs of our encoding time by the peer's."""
    ratios = [row.ours.encode_s / row.by_tool[peer].encode_s for row in rows if row.ours and peer in row.by_tool]
    return statistics.median(ratios) if ratios else None


def by_series(measured: list[Measured]) -> str:
    head = [
        *(
            "series (pairs)",
            "targets MB",
            "ours KB",
            "prototype KB",
            "fast KB",
            "best generic KB",
            "best generic / ours",
        ),
        *("decode MB/s", "encode MB/s", "fast encode MB/s", "encode time / bsdiff4's", "peak decode", "peak encode"),
    ]
    rows = []
    for name in dict.fromkeys(row.pair.series for row in measured):
        some = [row for row in measured if row.pair.series == name]
        ours = total(row.ours.patch_bytes if row.ours else None for row in some)
        fast = total(row.by_tool[FAST].patch_bytes if FAST in row.by_tool else None for row in some)
        best = total(row.best_generic_bytes for row in some)
        rows.append(
            [
                f"{name} ({len(some)})",
                number(sum(row.target_bytes for row in some) / 1e6, 1),
                number(ours and ours / KB),
                number(PROTOTYPE_KB.get(name)),
                number(fast and fast / KB),
                number(best and best / KB),
                number(best / ours if best and ours else None, 2),
                number(megabytes_per_s(some, OURS, lambda result: result.decode_s)),
                number(megabytes_per_s(some, OURS, lambda result: result.encode_s), 2),
                number(megabytes_per_s(some, FAST, lambda result: result.encode_s), 1),
                number(encode_ratio(some, "bsdiff4"), 2),
                number(memory_factor(some, lambda result: result.decode_peak_bytes), 1),
                number(memory_factor(some, lambda result: result.encode_peak_bytes), 1),
            ]
        )
    return table(head, rows)


def by_tool(measured: list[Measured], tools: list[Tool]) -> str:
    head = ["tool", "version", "all patches KB", "encode MB/s", "decode MB/s"]
    rows = []
    for tool in tools:
        sum_bytes = total(row.by_tool[tool.name].patch_bytes if tool.name in row.by_tool else None for row in measured)
        rows.append(
            [
                tool.name,
                "this" if tool.is_ours else tool.version,
                number(sum_bytes and sum_bytes / KB),
                number(megabytes_per_s(measured, tool.name, lambda result: result.encode_s), 2),
                number(megabytes_per_s(measured, tool.name, lambda result: result.decode_s)),
            ]
        )
    return table(head, rows)


def verdicts(measured: list[Measured]) -> Iterator[str]:
    ratios = [row.ratio for row in measured if row.ratio is not None]
    if ratios:
        median = statistics.median(ratios)
        yield f"- best generic / ours over {len(ratios)} pairs: median {median:.2f} (reach: {MEDIAN_AT_LEAST:g})"
    too_large = [f"{row.pair.series} {row.pair.versions}" for row in measured if row.is_too_large]
    bound = f"{LARGER_AT_MOST - 1:.0%} or {LARGER_AT_MOST_BYTES} bytes"
    yield f"- pairs larger than the best generic tool's by more than {bound}: {', '.join(too_large) or 'none'}"
    for name, prototype_kb in PROTOTYPE_KB.items():
        ours = total(row.ours.patch_bytes if row.ours else None for row in measured if row.pair.series == name)
        if ours and ours > prototype_kb * KB:
            yield f"- {name} is larger than the prototype's: {ours / KB:.0f} KB against {prototype_kb} KB"
    starts = [row.ours.start_s for row in measured if row.ours]
    held = [row.ours.start_bytes for row in measured if row.ours and row.ours.start_bytes is not None]
    if starts and held:
        start_s, start_mb = statistics.median(starts), statistics.median(held) / 1e6
        yield f"- our library's start, once per process: {start_s:.2f} s of CPU and {start_mb:.0f} MB"


def remarks(measured: list[Measured], tools: list[Tool], missing: list[str], run: str) -> Iterator[str]:
    earlier = sorted(
        {
            tool.name
            for row in measured
            for tool in tools
            if tool.name in row.by_tool and row.by_tool[tool.name].run != run
        }
    )
    when = f"measured earlier on the same machine: {', '.join(earlier)}" if earlier else "all measured in the same run"
    yield f"Times are CPU time. {when.capitalize()}."
    if missing:
        yield f"Not installed, so left out: {', '.join(missing)}."
