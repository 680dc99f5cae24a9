"""Charts as inline SVG: lines with axes, legend and hover, grouped bars, horizontal bars; colours come from CSS."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 92, 14, 44


@dataclasses.dataclass(frozen=True)
class Line:
    """One line: points (x, y) in any order of x; ``colour`` is a CSS class suffix such as ``c1``."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: str
    dashed: bool = False


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover [low, high] in steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis: 1.2M, 30k, 0.05."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _even_labels(values: Sequence[float], gap: float) -> list[float]:
    """Moves label positions apart so that none overlap, keeping their order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = list(values)
    for before, after in zip(order, order[1:], strict=False):
        placed[after] = max(placed[after], placed[before] + gap)
    overflow = max(0.0, max(placed, default=0.0) - (HEIGHT - _BOTTOM))
    return [value - overflow for value in placed]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """An SVG of the lines, labelled at their ends, with a hover read-out; ``marks`` are vertical lines with a name."""
    lines = [
        dataclasses.replace(line, points=tuple(sorted((x, y) for x, y in line.points if math.isfinite(y))))
        for line in lines
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return '<p class="note">Nothing recorded.</p>'
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks, y_ticks = ticks(min(0.0, min(xs)), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high, y_low, y_high = x_ticks[0], max(x_ticks[-1], max(xs)), y_ticks[0], y_ticks[-1]
    plot_width, plot_height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def px(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * plot_width, 1)

    def py(y: float) -> float:
        return round(_TOP + (y_high - y) / (y_high - y_low) * plot_height, 1)

    out = [_axes(x_ticks, y_ticks, px, py, x_label, y_label)]
    for x, name in marks:
        out.append(
            f'<line class="mark" x1="{px(x)}" x2="{px(x)}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
            f'<text class="tick" x="{px(x) + 4}" y="{_TOP + 9}">{escape(name)}</text>'
        )
    label_places = _even_labels([py(line.points[-1][1]) for line in lines], 12)
    for line, place in zip(lines, label_places, strict=True):
        path = " ".join(f"{px(x)},{py(y)}" for x, y in line.points)
        x, y = line.points[-1]
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        out.append(f'<polyline class="line s-{line.colour}"{dashes} points="{path}"/>')
        out.append(f'<circle class="f-{line.colour}" cx="{px(x)}" cy="{py(y)}" r="3"/>')
        out.append(f'<text class="end" x="{px(x) + 7}" y="{place + 4:.1f}">{escape(line.label)}</text>')
    out.append(f'<line class="cross" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="0" x2="0" visibility="hidden"/>')
    data = {
        "x": [_LEFT, plot_width, x_low, x_high],
        "name": x_label,
        "lines": [{"label": line.label, "colour": line.colour, "points": line.points} for line in lines],
    }
    summary = "; ".join(f"{line.label}: last {line.points[-1][1]:.3g}" for line in lines)
    return (
        f'<div class="chart" data-chart="{escape(json.dumps(data))}"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(y_label)} against {escape(x_label)}. {escape(summary)}">{"".join(out)}</svg>'
        f'<div class="tip" hidden></div></div>'
    )


def _axes(x_ticks, y_ticks, px, py, x_label: str, y_label: str) -> str:
    out = []
    for value in y_ticks:
        out.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(value)}" y2="{py(value)}"/>'
            f'<text class="tick" x="{_LEFT - 8}" y="{py(value) + 4}" text-anchor="end">{short(value)}</text>'
        )
    for value in x_ticks:
        if px(value) <= WIDTH - _RIGHT + 1:
            out.append(
                f'<text class="tick" x="{px(value)}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">'
                f"{short(value)}</text>"
            )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(y_ticks[0])}" y2="{py(y_ticks[0])}"/>')
    out.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    out.append(
        f'<text class="name" transform="translate(13 {(_TOP + HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(out)


def paired_bars(
    labels: Sequence[str], first: Sequence[float], second: Sequence[float], names: tuple[str, str], y_label: str
) -> str:
    """Two bars per label (such as loss beside entropy), each with its value on hover."""
    y_ticks = ticks(0.0, max([*first, *second, 1e-9]))
    plot_width, plot_height = WIDTH - _LEFT - 10, HEIGHT - _TOP - _BOTTOM
    slot = plot_width / len(labels)

    def py(y: float) -> float:
        return round(_TOP + (1 - y / y_ticks[-1]) * plot_height, 1)

    out = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - 10}" y1="{py(v)}" y2="{py(v)}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{py(v) + 4}" text-anchor="end">{short(v)}</text>'
        for v in y_ticks
    ]
    for i, (label, values) in enumerate(zip(labels, zip(first, second, strict=True), strict=True)):
        left = _LEFT + i * slot + slot * 0.16
        for j, value in enumerate(values):
            out.append(
                f'<rect class="f-p{j}" x="{left + j * slot * 0.34:.1f}" y="{py(value)}" width="{slot * 0.32:.1f}" '
                f'height="{max(0.0, py(0) - py(value)):.1f}" rx="2"><title>{escape(names[j])}, {escape(label)}: '
                f"{value:.3f}</title></rect>"
            )
        share = values[0] / values[1] if values[1] else math.nan
        out.append(
            f'<text class="end" x="{left + slot * 0.33:.1f}" y="{py(max(values)) - 5:.1f}" text-anchor="middle">'
            f"{share:.0%}</text>"
            f'<text class="tick" x="{left + slot * 0.33:.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">'
            f"{escape(label)}</text>"
        )
    out.append(
        f'<text class="name" transform="translate(13 {_TOP + plot_height / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    legend = "".join(f'<span><i class="b-p{j}"></i>{escape(name)}</span>' for j, name in enumerate(names))
    return (
        f'<div class="legend">{legend}</div><div class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(names[0])} beside {escape(names[1])}">{"".join(out)}</svg></div>'
    )


def horizontal_bars(values: Sequence[tuple[str, float]], unit: str) -> str:
    """Named bars as plain HTML, which wraps on narrow screens."""
    top = max([value for _, value in values], default=0.0) or 1.0
    rows = "".join(
        f'<div class="hbar"><span>{escape(name)}</span><b><i style="width:{max(0.3, 100 * value / top):.1f}%"></i></b>'
        f"<em>{value:,.1f} {escape(unit)}</em></div>"
        for name, value in values
    )
    return f'<div class="hbars">{rows}</div>'
