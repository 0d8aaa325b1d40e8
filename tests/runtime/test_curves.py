"""Curves: drawn from whatever metrics a run has, for one run and for several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vero_jax.runtime import curves
from vero_jax.types import DOMAINS


def write_run(folder: Path, steps: int = 40) -> Path:
    rng = np.random.default_rng(0)
    rows = [{"phase": "validation", "step": 0, "stage": "before", "val/accuracy": 0.1, "val/accuracy_greedy": 0.2}]
    rows += [{"phase": "cold_start", "step": step, "loss": 1 / step} for step in range(1, 6)]
    rows += [
        {
            "phase": "validation",
            "step": 0,
            "stage": "after_cold_start",
            "val/accuracy": 0.3,
            "val/accuracy_greedy": None,
        }
    ]
    for step in range(1, steps + 1):
        domains = {f"domain/{name}/accuracy": rng.random() for name in DOMAINS}
        rows.append(
            {
                "phase": "reinforcement",
                "step": step,
                "critic/score/mean": rng.random(),
                "response_length/mean": 30.0,
                "actor/entropy": None,
                "training/rollout_probs_diff_mean": 1e-6,
                **domains,
            }
        )
    rows += [{"phase": "validation", "step": steps, "stage": "final", "val/accuracy": 0.5, "val/stem/accuracy": 0.5}]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"phase": "reinf')
    return folder


@pytest.fixture
def titles(monkeypatch) -> list[str]:
    """Titles of the panels, in the order they are drawn."""
    seen: list[str] = []
    save = curves._save

    def spy(drawings, out, title):
        seen.extend(name for name, _ in drawings)
        save(drawings, out, title)

    monkeypatch.setattr(curves, "_save", spy)
    return seen


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and len(set(image.convert("L").resize((60, 40)).getdata())) > 5


def test_one_run_has_a_panel_for_each_quantity_it_measured(tmp_path, titles):
    out = curves.plot_run(write_run(tmp_path / "run"))
    assert out == tmp_path / "run" / "curves.png" and is_picture(out)
    assert titles == [
        "validation accuracy (mean of domains)",
        "validation accuracy by domain",
        "cold start: loss",
        "reward",
        "accuracy by domain",
        "response length (tokens)",
        "sampler against learner: mean |Δp|",
    ]


def test_several_runs_side_by_side(tmp_path, titles):
    runs = {"a": write_run(tmp_path / "a"), "b": write_run(tmp_path / "b", steps=3)}
    assert is_picture(curves.plot_runs(runs, tmp_path / "out" / "both.png", title="both"))
    assert "accuracy (mean of domains)" in titles and "accuracy by domain" not in titles


def test_a_run_without_metrics_gives_a_picture_that_says_so(tmp_path, titles):
    (tmp_path / "metrics.jsonl").write_text("")
    assert curves.plot_run(tmp_path).exists() and titles == []


def test_missing_values_are_left_out_and_domains_count_the_same():
    rows = [{"step": 1, "x": 2.0}, {"step": 2, "x": None}, {"step": 3}, {"step": 4, "x": 5}]
    line = curves.Line.of(rows, curves._get("x"))
    assert line.steps.tolist() == [1, 4] and line.values.tolist() == [2, 5]
    mean = curves._domain_mean("format")
    assert mean({"domain/a/format": 1.0, "domain/b/format": 0.0, "domain/b/format_x": 9.0, "format": 7}) == 0.5
    assert mean({"step": 1}) is None


def test_smoothing_keeps_a_constant_and_the_length():
    assert np.allclose(curves._smoothed(np.full(50, 3.0), 2.0), 3.0)
    assert len(curves._smoothed(np.arange(50.0), 2.0)) == 50
