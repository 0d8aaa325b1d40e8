"""summary.json and the closing lines."""

from __future__ import annotations

import dataclasses
import json

import pytest

from vero_jax.config import Config
from vero_jax.runtime.compilation import versions, versions_header
from vero_jax.runtime.run_dir import open_run
from vero_jax.runtime.summary import Accuracy, Summary, closing_lines, write_summary


@pytest.fixture
def run(tmp_path):
    with open_run(dataclasses.replace(Config(), run_dir=str(tmp_path / "run"))) as run:
        yield run


def make_summary(**changes) -> Summary:
    values = {
        "config": Config(),
        "sampled": {
            "before": Accuracy({"chart_ocr": 0.0, "stem": 0.1}),
            "final": Accuracy({"stem": 0.5, "chart_ocr": 1.0}),
        },
        "greedy": {"final": Accuracy({"stem": float("nan")})},
        "steps": 100,
        "seconds": {"cold_start": 61.0, "reinforcement": 120.5},
        "device": "1 x cpu",
        "extra": {"blind": {"changed": 0.75}},
    }
    return Summary(**{**values, **changes})


def test_overall_is_the_mean_of_the_domains():
    assert Accuracy({"stem": 0.5, "chart_ocr": 1.0, "visual_alignment": 0.0}).overall == 0.5


def test_summary_file(run):
    write_summary(run, make_summary())
    content = json.loads(run.summary.read_text())
    assert content["accuracy"] == {
        "before": {"overall": 0.05, "domains": {"chart_ocr": 0.0, "stem": 0.1}},
        "after_cold_start": None,
        "final": {"overall": 0.75, "domains": {"chart_ocr": 1.0, "stem": 0.5}},
    }
    assert list(content["accuracy"]["final"]["domains"]) == ["chart_ocr", "stem"]
    assert content["accuracy_greedy"]["final"] == {"overall": None, "domains": {"stem": None}}
    assert content["seconds"] == {"cold_start": 61.0, "reinforcement": 120.5, "total": 181.5}
    assert (content["config"], content["seed"], content["steps"], content["device"]) == ("run", 0, 100, "1 x cpu")
    assert content["versions"]["jax"] and content["versions"]["python"] and content["blind"] == {"changed": 0.75}


def test_closing_lines_name_what_exists(run):
    summary = make_summary()
    write_summary(run, summary)
    text = "\n".join(closing_lines(run, summary))
    assert text.startswith("Finished 100 steps in 3 min 02 s on 1 x cpu.")
    assert "overall" in text and "75.0 %" in text and "5.0 %" in text and "cold start" not in text
    assert str(run.summary) in text and str(run.curves) not in text and "generate" not in text
    run.curves.write_text("")
    run.export.mkdir()
    text = "\n".join(closing_lines(run, summary))
    assert str(run.curves) in text and f"vero_jax.generate {run.export}" in text


def test_closing_lines_without_validation(run):
    text = "\n".join(closing_lines(run, make_summary(sampled={}, greedy={})))
    assert "accuracy" not in text and "Next:" in text


def test_versions():
    assert {"python", "jax", "flax", "numpy"} <= set(versions())
    assert versions_header().startswith("python 3.")
