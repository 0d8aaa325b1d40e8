"""Curves of a run, or of several side by side, drawn from metrics.jsonl with matplotlib (no display needed).

In: lines of metrics.jsonl. Out: a PNG with one panel per quantity; a quantity that no line has gets no panel.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.metrics import read_metrics
from vero_jax.types import DOMAINS

Row = Mapping[str, Any]

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#8c564b")
"""Okabe and Ito's palette, told apart by colour-blind readers too, and two more."""

_DOMAIN_METRIC = re.compile(r"(domain|val)/(.+)/([a-z_]+)")

_STAGE_MARKERS = {"before": "o", "after_cold_start": "s", "during": ".", "final": "*"}
_STAGE_NAMES = {"before": "before", "after_cold_start": "after cold start", "final": "final"}


@dataclasses.dataclass(frozen=True)
class Line:
    """Points of one curve; values that are missing are left out."""

    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row], value: Callable[[Row], float | None]) -> Line:
        points = [(row["step"], number) for row in rows if (number := value(row)) is not None and math.isfinite(number)]
        return cls(np.array([step for step, _ in points], float), np.array([number for _, number in points], float))

    def __len__(self) -> int:
        return len(self.steps)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One quantity: its title, the phase whose lines have it, and how to read it from a line."""

    title: str
    value: Callable[[Row], float | None]
    phase: str = "reinforcement"
    share: bool = False
    """A share of 1, so that the axis runs from 0 to 1."""
    log: bool = False


def plot_run(run_dir: Path, out: Path | None = None) -> Path:
    """Draws `curves.png` of one run, accuracy by domain included; `out` puts it elsewhere."""
    target = run_dir / "curves.png" if out is None else out
    rows = read_metrics(run_dir / "metrics.jsonl")
    runs = {"": rows}
    drawings: list[tuple[str, Callable[[Axes], None]]] = _validation_drawing(runs)
    drawings += _domain_drawing("validation accuracy by domain", rows, "validation", "val")
    for panel in PANELS:
        by_domain = _domain_drawing("accuracy by domain", rows, panel.phase, "domain") if panel is ACCURACY else []
        single = _panel_drawing(panel, runs)
        drawings += by_domain or ([(panel.title, single)] if single else [])
    _save(drawings, target, run_dir.name)
    return target


def plot_runs(runs: Mapping[str, Path], out: Path, title: str = "") -> Path:
    """Draws several runs into one PNG, one colour a run: {label: run directory}."""
    rows = {label: read_metrics(Path(folder) / "metrics.jsonl") for label, folder in runs.items()}
    drawings = _validation_drawing(rows)
    drawings += [(panel.title, drawing) for panel in PANELS if (drawing := _panel_drawing(panel, rows))]
    _save(drawings, out, title)
    return out


def _get(*names: str) -> Callable[[Row], float | None]:
    """Reads the first of the names that a line has."""

    def read(row: Row) -> float | None:
        return next((row[name] for name in names if isinstance(row.get(name), (int, float))), None)

    return read


def _domain_mean(metric: str) -> Callable[[Row], float | None]:
    """Mean over the domains that a line has, each counting the same."""

    def read(row: Row) -> float | None:
        values = [
            value
            for name, value in row.items()
            if isinstance(value, (int, float))
            and (match := _DOMAIN_METRIC.fullmatch(name))
            and match.group(1, 3) == ("domain", metric)
        ]
        return sum(values) / len(values) if values else None

    return read


ACCURACY = Panel("accuracy (mean of domains)", _domain_mean("accuracy"), share=True)

PANELS = (
    Panel("cold start: loss", _get("loss", "cold_start/loss"), phase="cold_start"),
    Panel("reward", _get("critic/score/mean")),
    ACCURACY,
    Panel("format", _domain_mean("format"), share=True),
    Panel("response length (tokens)", _get("response_length/mean")),
    Panel("answers cut at the limit", _get("response/truncated", "response_length/clip_ratio"), share=True),
    Panel("groups without variance", _get("groups/zero_variance"), share=True),
    Panel("entropy (nats per token)", _get("actor/entropy")),
    Panel("sampler against learner: mean |Δp|", _get("training/rollout_probs_diff_mean"), log=True),
    Panel("gradient norm", _get("actor/grad_norm")),
)


def _phase(rows: Sequence[Row], phase: str) -> list[Row]:
    """The lines of a phase; a line with validation metrics is a validation, whatever else it has."""
    if phase == "validation":
        return [row for row in rows if row.get("phase") == phase or "val/accuracy" in row]
    return [row for row in rows if row.get("phase") == phase]


def _domains(rows: Sequence[Row]) -> list[str]:
    found = {match[2] for row in rows for name in row if (match := _DOMAIN_METRIC.fullmatch(name))}
    return [name for name in DOMAINS if name in found] + sorted(found - set(DOMAINS))


def _panel_drawing(panel: Panel, runs: Mapping[str, Sequence[Row]]) -> Callable[[Axes], None] | None:
    lines = {label: Line.of(_phase(rows, panel.phase), panel.value) for label, rows in runs.items()}
    if not any(map(len, lines.values())):
        return None
    return lambda axes: _draw_lines(axes, lines, panel)


def _domain_drawing(
    title: str, rows: Sequence[Row], phase: str, prefix: str
) -> list[tuple[str, Callable[[Axes], None]]]:
    """Accuracy of each domain in one phase; empty when no line has it."""
    lines = {name: Line.of(_phase(rows, phase), _get(f"{prefix}/{name}/accuracy")) for name in _domains(rows)}
    if not any(map(len, lines.values())):
        return []
    return [(title, lambda axes: _draw_lines(axes, lines, ACCURACY))]


def _draw_lines(axes: Axes, lines: Mapping[str, Line], panel: Panel) -> None:
    for (label, line), color in zip(lines.items(), _cycle(len(lines)), strict=True):
        if not len(line):
            continue
        many = len(line) > 30
        axes.plot(line.steps, line.values, color=color, alpha=0.25 if many else 1.0, linewidth=1.0 if many else 1.6)
        smooth = _smoothed(line.values, len(line) / 25) if many else line.values
        axes.plot(line.steps, smooth, color=color, linewidth=1.6, label=label or None)
    if panel.share:
        axes.set_ylim(-0.03, 1.03)
    values = np.concatenate([line.values for line in lines.values()])
    if panel.log and 0 < values.min() < values.max():
        axes.set_yscale("log")
    if sum(bool(label) for label in lines) > 0:
        axes.legend(fontsize=7, frameon=False)


def _validation_drawing(runs: Mapping[str, Sequence[Row]]) -> list[tuple[str, Callable[[Axes], None]]]:
    """Accuracy of every validation: sampled as a line with a marker per stage, greedy dashed."""
    found = {label: _phase(rows, "validation") for label, rows in runs.items()}
    if not any(found.values()):
        return []

    def draw(axes: Axes) -> None:
        for (label, rows), color in zip(found.items(), _cycle(len(found)), strict=True):
            for name, style in (("val/accuracy", "-"), ("val/accuracy_greedy", "--")):
                read = _get(name)
                line = Line.of(rows, read)
                if not len(line):
                    continue
                text = label if style == "-" else f"{label} greedy".strip()
                axes.plot(line.steps, line.values, style, color=color, linewidth=1.4, label=text or "sampled")
                for row in rows:
                    if (value := read(row)) is not None:
                        marker = _STAGE_MARKERS.get(str(row.get("stage")), ".")
                        axes.plot(row["step"], value, marker, color=color, markersize=7, clip_on=False)
        stages = {row.get("stage") for rows in found.values() for row in rows}
        for stage, name in _STAGE_NAMES.items():
            if stage in stages:  # in grey, since a stage's shape holds for every colour
                axes.plot([], [], _STAGE_MARKERS[stage], color="grey", linestyle="none", label=name)
        axes.set_ylim(-0.03, 1.03)
        axes.legend(fontsize=7, frameon=False)

    return [("validation accuracy (mean of domains)", draw)]


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Gaussian average of `width` points; the ends average over what there is."""
    reach = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    inside = np.convolve(np.ones(len(values)), kernel, mode="full")[reach:-reach]
    return np.convolve(values, kernel, mode="full")[reach:-reach] / inside


def _save(drawings: Sequence[tuple[str, Callable[[Axes], None]]], out: Path, title: str) -> None:
    columns = min(max(len(drawings), 1), 4)
    rows = max(math.ceil(len(drawings) / columns), 1)
    # A Figure of its own: pyplot would pick a backend and keep every figure alive.
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12)
    if not drawings:
        figure.text(0.5, 0.5, "no metrics yet", ha="center", va="center", color="grey")
    for index, (name, draw) in enumerate(drawings):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.set_title(name, fontsize=10)
        axes.grid(True, color="#e3e6ea", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("step", fontsize=8)
        draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write(Path(out), buffer.getvalue())
