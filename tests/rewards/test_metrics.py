"""Figures of the rewards by reward type and source."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vero_jax.rewards.metrics import reward_metrics
from vero_jax.rewards.total import missing_score
from vero_jax.types import Example, Group, Prompt, Score


def group(source: str, reward_type: str, *scores: Score) -> Group:
    example = Example("id", "stem", source, (), (), reward_type, "", {})
    prompt = Prompt(
        example,
        np.zeros(1, np.int32),
        np.zeros((1, 3), np.int32),
        np.zeros(1, np.int32),
        np.zeros((0, 4), np.uint8),
        np.zeros((0, 3), np.int32),
    )
    return Group(prompt, (), scores)


def scored(total: float, latency_s: float = 0.1, **extras: float) -> Score:
    return Score(total, total, 1.0, extras=extras, latency_s=latency_s)


def test_means_missing_shares_timeouts_and_latencies_by_type_and_source() -> None:
    late = Score(math.nan, math.nan, math.nan, math.nan, "timeout", latency_s=5.0)
    groups = [
        group("geo", "numeric", scored(1.0), scored(0.5), late, missing_score("unusable row: x")),
        group("docs", "numeric", scored(0.0)),
    ]
    metrics = reward_metrics(groups)
    assert metrics["reward/type/numeric/mean"] == pytest.approx(0.5)
    assert metrics["reward/type/numeric/missing"] == pytest.approx(0.4)
    assert metrics["reward/source/geo/missing"] == 0.5 and metrics["reward/source/docs/missing"] == 0.0
    assert metrics["reward/source/geo/timeouts"] == 1.0 and metrics["reward/source/docs/timeouts"] == 0.0
    assert metrics["timing_s/reward_p95/source/docs"] == pytest.approx(0.1)
    assert 4.0 < metrics["timing_s/reward_p95/type/numeric"] <= 5.0


def test_further_numbers_of_own_functions_are_means_by_source_alone() -> None:
    groups = [
        group("a", "numeric", scored(1.0, length=4.0), scored(1.0, length=8.0)),
        group("b", "numeric", scored(1.0)),
    ]
    metrics = reward_metrics(groups)
    assert metrics["reward/source/a/extra/length"] == 6.0
    assert not [name for name in metrics if "length" in name and name != "reward/source/a/extra/length"]


def test_a_source_without_any_score_has_no_mean() -> None:
    metrics = reward_metrics([group("a", "numeric", missing_score("worker died"))])
    assert math.isnan(metrics["reward/source/a/mean"]) and metrics["reward/source/a/missing"] == 1.0
    assert "timing_s/reward_p95/source/a" not in metrics
