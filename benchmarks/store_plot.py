"""The store benchmark as one SVG: a panel for each measure, a bar for each system, shorter is better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.delta_plot import COLOURS, FAINT, INK, text
from benchmarks.delta_report import OURS

WIDTH, PANEL_WIDTH, ROW, HEAD, GAP = 900, 430, 20, 64, 34
LABEL_WIDTH, FIGURE_WIDTH = 150, 60


@dataclass(frozen=True)
class Panel:
    title: str
    values: dict[str, float]
    """By system, in the order they are drawn."""
    reach: tuple[str, float] | None = None
    """A line to stay left of, and what it is."""


def draw(panels: Sequence[Panel]) -> str:
    rows = max(len(panel.values) for panel in panels)
    panel_height = HEAD + ROW * rows + GAP
    height = panel_height * -(-len(panels) // 2)
    parts: list[str] = []
    for number, panel in enumerate(panels):
        parts += _panel(panel, 20 + (number % 2) * (PANEL_WIDTH + 20), number // 2 * panel_height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>' + "\n".join(parts) + "</svg>\n"
    )


def _panel(panel: Panel, left: float, top: float) -> Iterator[str]:
    begin, widest = left + LABEL_WIDTH, PANEL_WIDTH - LABEL_WIDTH - FIGURE_WIDTH
    scale = widest / max(panel.values.values())
    yield text(left, top + 32, panel.title, size=15)
    if panel.reach is not None:
        words, value = panel.reach
        x, end = begin + value * scale, top + HEAD + ROW * len(panel.values)
        place = f'x1="{x:.1f}" y1="{top + HEAD - 8}" x2="{x:.1f}" y2="{end}"'
        yield f'<line {place} stroke="{FAINT}" stroke-dasharray="3"/>'
        yield text(x + 4, top + HEAD - 8, words, colour=FAINT, size=10)
    for number, (system, value) in enumerate(panel.values.items()):
        y = top + HEAD + ROW * number
        colour = COLOURS[OURS] if system.startswith("lowcloud") else FAINT
        yield text(begin - 8, y + 12, system, anchor="end")
        yield f'<rect x="{begin}" y="{y + 2}" width="{value * scale:.1f}" height="{ROW - 7}" fill="{colour}"/>'
        yield text(begin + value * scale + 6, y + 12, f"{value:.3g}" if value < 1000 else f"{value:.0f}", colour=INK)
