"""Heat maps of presence rates, drawn with matplotlib (no display needed)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from vero_jax.evaluation.behaviours.catalogue import LABELS
from vero_jax.evaluation.behaviours.lengths import ALL
from vero_jax.evaluation.behaviours.rates import Rate
from vero_jax.runtime.files import atomic_write

Cells = Mapping[tuple[str, str, str], Rate]
"""By what the policy was trained on, the evaluated domain and the behaviour."""

_COLORS = colormaps["YlGnBu"].with_extremes(bad="#eeeeee")
_PER_ROW = 4
_BEHAVIOURS_PER_ROW = 6
_TITLE = 1.9
"""Inches that the longest name of a behaviour takes as a title."""


def draw_overview(cells: Cells, inputs: Sequence[str], domains: Sequence[str], names: Sequence[str], out: Path) -> None:
    """Behaviours by evaluated domains, one map for each input, with the number of judged answers below each domain."""
    columns = min(len(inputs), _PER_ROW)
    rows = math.ceil(len(inputs) / columns)
    figure = _figure(2.6 + columns * (0.62 * len(domains) + 0.3), rows * (0.235 * len(names) + 1.6))
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for place, (axes, trained_on) in enumerate(zip(grid, inputs, strict=False)):
        values = [[cells.get((trained_on, domain, name)) for domain in domains] for name in names]
        _draw(axes, values, size=7)
        axes.set_title(fill(f"trained on {trained_on}", 10 * len(domains)), fontsize=10)
        axes.set_xticks(range(len(domains)), [_counted(domain, values, at) for at, domain in enumerate(domains)])
        axes.set_yticks(range(len(names)), _labels(names) if place % columns == 0 else [""] * len(names))
    _finish(figure, grid, len(inputs), "presence rate of each behaviour", out)


def draw_training(cells: Cells, inputs: Sequence[str], names: Sequence[str], out: Path) -> None:
    """Behaviours by what was trained on, over all domains: the paper's figures 11 and D3."""
    figure = _figure(3.6 + 0.62 * len(inputs), 0.235 * len(names) + 2.4)
    axes = figure.subplots()
    values = [[cells.get((trained_on, ALL, name)) for trained_on in inputs] for name in names]
    _draw(axes, values, size=7)
    axes.set_xticks(range(len(inputs)), [_counted(one, values, at) for at, one in enumerate(inputs)])
    axes.set_yticks(range(len(names)), _labels(names))
    _finish(figure, [axes], 1, "presence rate by training, over all domains", out)


def draw_behaviours(
    cells: Cells, inputs: Sequence[str], domains: Sequence[str], names: Sequence[str], out: Path
) -> None:
    """For each behaviour a map of what was trained on by evaluated domains."""
    columns = _BEHAVIOURS_PER_ROW
    rows = math.ceil(len(names) / columns)
    width = max(0.42 * len(domains), _TITLE) + 0.2
    figure = _figure(2.0 + columns * width, 1.6 + rows * (0.27 * len(inputs) + 0.45))
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for place, (axes, name) in enumerate(zip(grid, names, strict=False)):
        _draw(axes, [[cells.get((one, domain, name)) for domain in domains] for one in inputs], size=6)
        axes.set_title(LABELS[name], fontsize=8)
        lowest = place + columns >= len(names)
        axes.set_xticks(range(len(domains)), [_wrapped(domain) if lowest else "" for domain in domains])
        axes.set_yticks(range(len(inputs)), [fill(one, 24) if place % columns == 0 else "" for one in inputs])
    title = "presence rate: rows say what was trained on, columns what was evaluated"
    _finish(figure, grid, len(names), title, out)


def by_prevalence(cells: Cells, inputs: Sequence[str], names: Sequence[str]) -> list[str]:
    """The behaviours from the most to the least frequent one, by the mean of the inputs' rates over all domains."""

    def prevalence(name: str) -> float:
        rates = [one.rate for trained_on in inputs if (one := cells.get((trained_on, ALL, name))) is not None]
        known = [rate for rate in rates if rate is not None]
        return sum(known) / len(known) if known else -1.0

    return sorted(names, key=prevalence, reverse=True)


def _labels(names: Sequence[str]) -> list[str]:
    return [LABELS[name] for name in names]


def _figure(width: float, height: float) -> Figure:
    # A Figure of its own: pyplot would pick a backend and keep every figure alive.
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(axes: Axes, rates: Sequence[Sequence[Rate | None]], size: float) -> None:
    values = np.array(
        [[np.nan if one is None or one.rate is None else one.rate for one in row] for row in rates], float
    )
    axes.imshow(np.ma.masked_invalid(values), cmap=_COLORS, vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        color = "white" if value > 0.55 else "black"  # dark cells begin about there
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
    axes.tick_params(length=0, labelsize=size)
    axes.tick_params(axis="x", labelrotation=90)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _counted(domain: str, values: Sequence[Sequence[Rate | None]], place: int) -> str:
    counts = {row[place].judged for row in values if row[place] is not None}  # type: ignore[union-attr]
    return f"{_wrapped(domain)}\nn = {span(counts)}"


def span(counts: set[int]) -> str:
    """ "12", or "10-12" where the numbers differ."""
    least, most = min(counts, default=0), max(counts, default=0)
    return f"{least}" if least == most else f"{least}-{most}"


def _wrapped(domain: str) -> str:
    return fill(domain, 16)


def _finish(figure: Figure, grid: list[Axes], used: int, title: str, out: Path) -> None:
    for axes in grid[used:]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=11)
    scale = ScalarMappable(cmap=_COLORS)
    scale.set_clim(0.0, 1.0)
    bar = figure.colorbar(scale, ax=grid[:used], fraction=0.02, aspect=40, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write(out, buffer.getvalue())
