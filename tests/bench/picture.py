"""Row 6 as a picture: an SVG of two panels, written by hand, that reads in a light and in a dark page. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 760, 300
PANEL = 300
"""Width of the area in which a panel draws."""
TOP, BOTTOM = 62, 246
LEFTS = (70, 440)

STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #57606a }
  .title { font-size: 14px; font-weight: 600; fill: #1f2328 }
  .value { font-size: 11px; fill: #1f2328 }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  .line { fill: none; stroke: #0969da; stroke-width: 2.5; stroke-linejoin: round }
  .dot { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1 } .title, .value { fill: #f0f6fc } .grid { stroke: #3d444d }
    .line { stroke: #4493f8 } .dot { fill: #4493f8 }
  }"""


def growth(rows: Sequence[Mapping[str, Any]]) -> str:
    """Messages per second, and memory, by messages in flight."""
    sizes = [row["in_flight"] for row in rows]
    panels = (
        ("Messages per second, no work", [row["per_second"] for row in rows], lambda value: f"{value:,.0f}"),
        ("Memory with so many in flight, MiB", [row["held"] / 2**20 for row in rows], lambda value: f"{value:.0f}"),
    )
    drawn = [
        _panel(left, title, sizes, values, shown) for left, (title, values, shown) in zip(LEFTS, panels, strict=True)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">\n'
        "<title>Messages per second and memory by messages in flight</title>\n"
        f"<style>{STYLE}\n</style>\n{chr(10).join(drawn)}\n</svg>\n"
    )


def _panel(left: int, title: str, sizes: Sequence[int], values: Sequence[float], shown: Callable[[float], str]) -> str:
    top = _round_up(max(values))
    step = PANEL / max(1, len(sizes) - 1)
    parts = [f'<text class="title" x="{left}" y="28">{title}</text>']
    for tick in range(5):
        y = BOTTOM - (BOTTOM - TOP) * tick / 4
        parts.append(f'<line class="grid" x1="{left}" x2="{left + PANEL}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{top * tick / 4:,.0f}</text>')
    points = [(left + step * number, BOTTOM - (BOTTOM - TOP) * value / top) for number, value in enumerate(values)]
    parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    for (x, y), size, value in zip(points, sizes, values, strict=True):
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(f'<text class="value" x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{shown(value)}</text>')
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{size:,}</text>')
    parts.append(
        f'<text x="{left + PANEL / 2:.0f}" y="{BOTTOM + 42}" text-anchor="middle">messages in flight at most</text>'
    )
    return "\n".join(parts)


def _round_up(value: float) -> float:
    """The next number that makes good ticks."""
    magnitude = 10 ** math.floor(math.log10(max(value, 1)))
    return next(
        step * magnitude for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12) if step * magnitude >= value * 1.05
    )
