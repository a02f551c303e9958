"""The delta benchmark as one SVG: the size of every pair, and size against time over all pairs. No library needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from html import escape

from benchmarks.delta_report import FAST, OURS, Measured, megabytes_per_s, total

WIDTH, ROW, HEAD, FOOT = 900, 15, 84, 52
LEFT, RIGHT = 250, 30
SECOND_LEFT = 80
SECOND = 330
"""Height of the second plot."""
LABEL = 13

INK, FAINT, RULE = "#24292f", "#6e7781", "#e4e7eb"
COLOURS = {
    OURS: "#c2255c", FAST: "#f08c00", "lowcloud-best": "#862e9c", "bsdiff4": "#1971c2", "zstd-19": "#7048e8",
    "hdiffpatch-zstd": "#2f9e44", "hdiffpatch-lzma2": "#66a80f", "zstd-22": "#9775fa", "xdelta3": "#868e96",
    "ostree": "#495057",
}  # fmt: skip


def text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK, size: int = 11) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}" font-size="{size}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = RULE, width: float = 1) -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{colour}" stroke-width="{width}"/>'


def dot(x: float, y: float, colour: str, radius: float, title: str) -> str:
    shape = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return f'<circle {shape} fill="{colour}" fill-opacity="0.85"><title>{escape(title)}</title></circle>'


class LogScale:
    """Positions of positive numbers between two pixels; the ends are 1, 2 or 5 times a power of ten."""

    def __init__(self, values: list[float], begin: float, end: float) -> None:
        steps = [digit * 10.0**power for power in range(-6, 13) for digit in (1, 2, 5)]
        first = max(step for step in steps if step <= min(values))
        last = min(step for step in steps if step > max(values))
        self.ticks = [step for step in steps if first <= step <= last]
        self._low, self._high = math.log10(first), math.log10(last)
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    @property
    def decades(self) -> list[float]:
        return [tick for tick in self.ticks if math.log10(tick).is_integer()]


def in_bytes(value: float) -> str:
    for unit, size in (("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def draw(measured: list[Measured]) -> str:
    """The plots of what was measured; pairs that one of the tools was not run on stand without it."""
    second_at = HEAD + ROW * len(measured) + FOOT
    parts = [*draw_pairs(measured), *draw_tools(measured, second_at)]
    height = second_at + HEAD + SECOND + FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>' + "\n".join(parts) + "</svg>\n"
    )


def draw_pairs(measured: list[Measured]) -> Iterator[str]:
    sizes = [float(result.patch_bytes) for row in measured for result in row.by_tool.values()]
    x, bottom = LogScale(sizes, LEFT, WIDTH - RIGHT), HEAD + ROW * len(measured)
    yield text(20, 28, "Size of the patch, pair by pair", size=16)
    yield from legend(20, 52, {OURS: COLOURS[OURS], "smallest of the generic tools": INK, "the others": FAINT})
    for tick in x.decades:
        yield line(x(tick), HEAD - 6, x(tick), bottom)
        yield text(x(tick), bottom + 16, in_bytes(tick), anchor="middle", colour=FAINT)
    for number, row in enumerate(measured):
        y = HEAD + ROW * number + ROW / 2
        if number and row.pair.series != measured[number - 1].pair.series:
            yield line(20, y - ROW / 2, WIDTH - RIGHT, y - ROW / 2)
        yield text(LEFT - 14, y + 4, f"{row.pair.series}  {row.pair.versions}", anchor="end", size=10)
        yield from draw_pair(row, x, y)


def draw_pair(row: Measured, x: Callable[[float], float], y: float) -> Iterator[str]:
    best = row.best_generic_bytes
    if best is not None and row.ours:
        yield line(x(row.ours.patch_bytes), y, x(best), y, COLOURS[OURS], 1.5)
    for name, result in row.generic.items():
        is_best = name == row.best_generic
        title = f"{name}: {result.patch_bytes} bytes"
        yield dot(x(result.patch_bytes), y, INK if is_best else FAINT, 3.5 if is_best else 2, title)
    if row.ours:
        ratio = "" if row.ratio is None else f", best generic / ours {row.ratio:.2f}"
        yield dot(x(row.ours.patch_bytes), y, COLOURS[OURS], 4.5, f"{OURS}: {row.ours.patch_bytes} bytes{ratio}")


def draw_tools(measured: list[Measured], top: float) -> Iterator[str]:
    """One dot a tool: all its patches together, against how fast it encodes."""
    names = [name for name in COLOURS if all(name in row.by_tool for row in measured)]
    share, speed, decoding = {}, {}, {}
    whole = sum(row.target_bytes for row in measured)
    for name in names:
        share[name] = (total(row.by_tool[name].patch_bytes for row in measured) or 0) / whole * 100
        speed[name] = megabytes_per_s(measured, name, lambda result: result.encode_s) or 0
        decoding[name] = megabytes_per_s(measured, name, lambda result: result.decode_s) or 0
    if not names:
        return
    x = LogScale(list(speed.values()), SECOND_LEFT, WIDTH - RIGHT)
    begin, end = top + HEAD + SECOND, top + HEAD
    most = max(share.values()) * 1.15
    yield text(20, top + 28, "All pairs together: patches in per cent of the targets, against encoding speed", size=16)
    yield text(
        20,
        top + 52,
        "CPU time on one machine; left and low is slow and small; beside each, its decoding speed",
        colour=FAINT,
    )
    for tick in x.ticks:
        yield line(x(tick), end, x(tick), begin)
        yield text(x(tick), begin + 16, f"{tick:g} MB/s", anchor="middle", colour=FAINT)
    for step in range(int(most) + 1):
        y = begin - step / most * SECOND
        yield line(SECOND_LEFT, y, WIDTH - RIGHT, y)
        yield text(SECOND_LEFT - 14, y + 4, f"{step} %", anchor="end", colour=FAINT)
    label_y = begin + 2 * LABEL
    for name in sorted(names, key=lambda name: share[name]):
        at, y = x(speed[name]), begin - share[name] / most * SECOND
        label_y = min(y, label_y - LABEL)  # labels do not lie on one another
        words = f"{name}, {decoding[name]:.0f} MB/s"
        is_far_right = at > WIDTH - RIGHT - 8 * len(words)
        yield dot(at, y, COLOURS[name], 6, f"{words}: {share[name]:.2f} % at {speed[name]:.2f} MB/s")
        anchor, beside = ("end", -10) if is_far_right else ("start", 10)
        yield text(at + beside, label_y + 4, words, anchor=anchor, colour=COLOURS[name])


def legend(x: float, y: float, entries: dict[str, str]) -> Iterator[str]:
    for words, colour in entries.items():
        yield dot(x + 4, y - 4, colour, 4, words)
        yield text(x + 14, y, words, colour=FAINT)
        x += 14 + 7 * len(words) + 24
