"""summary.json, the result of a run in one file, and the closing lines that say where everything is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vero_jax.config import Config
from vero_jax.runtime.compilation import versions
from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.progress import format_seconds
from vero_jax.runtime.run_dir import RunDir
from vero_jax.types import DOMAINS

POINTS = ("before", "after_cold_start", "final")
"""The validations a summary compares; one that was not made is null."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Mean accuracy of each domain in one validation; domains without a question are absent."""

    domains: Mapping[str, float]

    @property
    def overall(self) -> float:
        """Mean over domains, so that a large domain counts no more than a small one; NaN without any."""
        return sum(self.domains.values()) / len(self.domains) if self.domains else math.nan

    def to_json(self) -> dict[str, Any]:
        order = [*DOMAINS, *(name for name in self.domains if name not in DOMAINS)]
        return {
            "overall": _number(self.overall),
            "domains": {name: _number(self.domains[name]) for name in order if name in self.domains},
        }


@dataclasses.dataclass(frozen=True)
class Summary:
    """Everything summary.json says. `sampled` and `greedy` go from a name in POINTS to what was measured there."""

    config: Config
    sampled: Mapping[str, Accuracy]
    greedy: Mapping[str, Accuracy]
    steps: int
    """Steps of reinforcement done."""
    seconds: Mapping[str, float]
    """Wall-clock seconds of each phase of the whole run, resumed parts included."""
    device: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More results, such as how many answers change without the image."""

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config.name,
            "seed": self.config.seed,
            "steps": self.steps,
            "accuracy": _points(self.sampled),
            "accuracy_greedy": _points(self.greedy),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()}
            | {"total": round(sum(self.seconds.values()), 3)},
            "device": self.device,
            "versions": versions(),
            **self.extra,
        }


def write_summary(run: RunDir, summary: Summary) -> None:
    """Replaces summary.json."""
    atomic_write(run.summary, json.dumps(summary.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def closing_lines(run: RunDir, summary: Summary, program: str = "python -m vero_jax") -> Sequence[str]:
    """What is printed at the end: accuracy by domain before and after, where the files are, what to run next."""
    columns = [(point, summary.sampled[point]) for point in POINTS if point in summary.sampled]
    names = {"before": "before", "after_cold_start": "cold start", "final": "final"}
    lines = [f"Finished {summary.steps} steps in {format_seconds(sum(summary.seconds.values()))} on {summary.device}."]
    if columns:
        domains = [name for name in DOMAINS if any(name in accuracy.domains for _, accuracy in columns)]
        domains += sorted({name for _, accuracy in columns for name in accuracy.domains} - set(domains))
        width = max(map(len, ["accuracy (sampled)", *domains]))
        lines += ["", f"{'accuracy (sampled)':<{width}}" + "".join(f"{names[point]:>12}" for point, _ in columns)]
        for domain in domains:
            cells = "".join(f"{_percent(accuracy.domains.get(domain, math.nan)):>12}" for _, accuracy in columns)
            lines.append(f"{domain:<{width}}{cells}")
        lines.append(f"{'overall':<{width}}" + "".join(f"{_percent(accuracy.overall):>12}" for _, accuracy in columns))
    places = {
        "results": run.summary,
        "curves": run.curves,
        "sample answers": run.samples / "index.html",
        "metrics": run.metrics,
        "checkpoint (Hugging Face)": run.export if run.export.is_dir() else None,
    }
    lines += ["", *(f"{name + ':':<28}{path}" for name, path in places.items() if path is not None and path.exists())]
    lines += ["", "Next:"]
    if run.export.is_dir():
        lines.append(f'  {program}.generate {run.export} --image picture.png "What is it?"    asks the trained policy')
    lines.append(f"  tensorboard --logdir {run.tensorboard}")
    lines.append(f"  {program}.train {run.config} trainer.steps={_more(summary.steps)}    trains on from here")
    return lines


def _more(steps: int) -> int:
    return max(2 * steps, 1)


def _points(measured: Mapping[str, Accuracy]) -> dict[str, Any]:
    return {point: measured[point].to_json() if point in measured else None for point in POINTS}


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"
