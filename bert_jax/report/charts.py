"""Draws line charts and scatter plots as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from bert_jax.report.html import Html, joined, tag
from bert_jax.tasks.figures import Chart

MOST_POINTS = 4000
COLOURS = 6
_WIDTH, _HEIGHT = 480, 300
_LEFT, _BOTTOM, _EDGE = 74, 44, 10  # room for the axes, and at the other sides
_SIDES = np.array([_WIDTH - _LEFT - _EDGE, _HEIGHT - _BOTTOM - _EDGE])


class Line(NamedTuple):
    """A line through `line` and dots at `points`, both x and y [2, N]."""

    name: str
    line: np.ndarray
    points: np.ndarray
    colour: int = 0
    dashed: bool = False


def draw_chart(figure: Chart) -> Html:
    """Returns a chart with its caption; a scatter plot is thinned to MOST_POINTS."""
    points = figure.points
    if not figure.joined:
        points = points[:, :: -(-points.shape[1] // MOST_POINTS)]
    drawn = chart([Line("", points if figure.joined else points[:, :0], points)], figure.x_name, figure.y_name, figure.diagonal)
    return joined([tag("h3", figure.caption), drawn]) if figure.caption else drawn


def chart(lines: Sequence[Line], x_name: str, y_name: str, diagonal: bool = False) -> Html:
    """Returns lines over shared axes, without points that are not finite; `diagonal` adds the line on which x is y."""
    lines = [line._replace(line=finite(line.line), points=finite(line.points)) for line in lines]
    points = np.concatenate([part for line in lines for part in (line.line, line.points)], axis=1)
    if not points.size:
        return tag("p", f"There is no finite {y_name} to show.")
    low, high = points.min(axis=1), points.max(axis=1)
    room = np.where(high > low, 0.04 * (high - low), np.maximum(1e-3, 0.1 * abs(high)))
    axes = _Axes(low - room, high + room)
    drawn = [*axes.grid(), *(axes.diagonal() if diagonal else []), *(part for line in lines for part in axes.drawn(line))]
    drawn.append(f'<text x="{_LEFT + _SIDES[0] / 2}" y="{_HEIGHT - 6}">{escape(x_name)}</text>')
    drawn.append(f'<text transform="translate(14 {_EDGE + _SIDES[1] / 2}) rotate(-90)">{escape(y_name)}</text>')
    label = f"{y_name} against {x_name}"
    return tag("svg", Html("".join(drawn)), viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", **{"aria-label": label})


class _Axes(NamedTuple):
    """The least and the greatest x and y of a chart."""

    low: np.ndarray
    high: np.ndarray

    def path(self, points: np.ndarray | Sequence[Sequence[float]], between: str = "L") -> str:
        x, y = (np.asarray(points, np.float64).T - self.low).T * (_SIDES / (self.high - self.low))[:, None]
        return between.join(f"{_LEFT + a:.1f},{_EDGE + _SIDES[1] - b:.1f}" for a, b in zip(x, y, strict=True))

    def grid(self) -> list[str]:
        (left, bottom), (right, top), drawn = self.low, self.high, []
        for x in ticks(left, right):
            drawn.append(f'<path class="grid" d="M{self.path([[x, x], [bottom, top]])}"/>')
            at = self.path([[x], [bottom]]).split(",")[0]
            drawn.append(f'<text x="{at}" y="{_HEIGHT - _BOTTOM + 18}">{x:g}</text>')
        for y in ticks(bottom, top):
            drawn.append(f'<path class="grid" d="M{self.path([[left, right], [y, y]])}"/>')
            at = self.path([[left], [y]]).split(",")[1]
            drawn.append(f'<text class="y" x="{_LEFT - 6}" y="{float(at) + 4:.1f}">{y:g}</text>')
        return drawn

    def diagonal(self) -> list[str]:
        ends = [self.low.max(), self.high.min()]
        dashed = f'<path class="grid" stroke-dasharray="5 4" d="M{self.path([ends, ends])}"/>'
        return [dashed] * bool(ends[0] < ends[1])

    def drawn(self, line: Line) -> list[str]:
        """Returns the dots and the line; a stroke of no length with round ends is a dot."""
        parts, style = [], f'style="stroke: var(--colour{line.colour % COLOURS})"'
        if line.points.size:
            parts.append(f'<path class="points" {style} d="M{self.path(line.points, "h0M")}h0"/>')
        if line.line.size:
            dashes = 'stroke-dasharray="5 4"' if line.dashed else ""
            title = tag("title", line.name)
            parts.append(f'<path class="line" {style} {dashes} d="M{self.path(line.line)}">{title}</path>')
        return parts


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers from `low` to `high`.

    >>> ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    least = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(least))
    step = next(many * power for many in (1, 2, 5, 10) if many * power >= 0.999 * least)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def finite(points: np.ndarray) -> np.ndarray:
    """Returns the points [2, N] whose x and y are finite."""
    return points[:, np.isfinite(points).all(axis=0)]
