"""Metrics of a step against the reference's vectors and on small groups."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.learning.golden import METRIC, cases, load
from tests.learning.policies import make_group
from vero_jax.learning.aggregation import ResponseTokens
from vero_jax.learning.metrics import (
    add_mismatch,
    data_metrics,
    group_metrics,
    mismatch_metrics,
    mismatch_sums,
    reduce_metrics,
    validation_metrics,
)
from vero_jax.types import Score

golden = pytest.mark.golden_rl


def expected(z):
    return {str(name): float(value) for name, value in zip(z["out_metric_names"], z["out_metric_values"], strict=True)}


def assert_has(ours, theirs):
    assert set(theirs) <= set(ours)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, err_msg=name, **METRIC)


@golden
@pytest.mark.parametrize(("hp", "file"), cases("data_metrics"))
def test_data_metrics_match_reference(hp, file):
    z = load(file)
    if "in_list0" in z:
        lists = {str(name): z[f"in_list{i}"] for i, name in enumerate(z["out_metric_names"])}
        assert_has(reduce_metrics(lists), expected(z))
        return
    width = int(z["in_response_width"])
    ours = data_metrics(
        z["in_token_level_scores"].sum(axis=1),
        z["in_advantages"][:, 0],
        z["in_response_mask"].sum(axis=1),
        z["in_attention_mask"][:, :-width].sum(axis=1),
        max_response_length=width,
        max_prompt_length=z["in_attention_mask"].shape[1] - width,
    )
    assert_has(ours, expected(z))
    assert set(ours) == set(expected(z))


@golden
@pytest.mark.parametrize(("hp", "file"), cases("mismatch_metrics"))
def test_mismatch_metrics_match_reference(hp, file):
    z = load(file)
    learner, sampler, mask = z["in_old_log_probs"], z["in_rollout_log_probs"], z["in_response_mask"]
    whole = mismatch_sums(jnp.asarray(learner), jnp.asarray(sampler), ResponseTokens.of_matrix(mask))
    assert_has(mismatch_metrics(whole), expected(z))
    halves = [
        mismatch_sums(jnp.asarray(learner[rows]), jnp.asarray(sampler[rows]), ResponseTokens.of_matrix(mask[rows]))
        for rows in (slice(0, 2), slice(2, None))
    ]
    assert_has(mismatch_metrics(add_mismatch(halves)), expected(z))


@golden
@pytest.mark.parametrize(("hp", "file"), cases("validation_metrics"))
def test_validation_metrics_match_reference(hp, file):
    z = load(file)
    variables = {"reward": z["in_reward"].tolist(), "llm_judge_reward": z["in_llm_judge_reward"].tolist()}
    variables["text"] = ["words"] * len(z["in_uid"])
    ours = validation_metrics(z["in_data_source"].tolist(), z["in_uid"].tolist(), variables)
    assert set(ours) == set(expected(z))
    assert_has(ours, expected(z))


def test_validation_takes_the_mean_per_prompt_first():
    ours = validation_metrics(["a"] * 3, ["p", "p", "q"], {"acc": [1.0, 0.0, 1.0], "none": [None] * 3})
    assert ours == {"a/acc/mean@2": 0.75}


def test_mismatch_of_identical_logprobs_is_zero_and_of_nothing_is_marked():
    logprobs = jnp.log(jnp.asarray([[0.1, 0.5, 0.9]]))
    ours = mismatch_metrics(mismatch_sums(logprobs, logprobs, ResponseTokens.of_matrix(np.ones((1, 3)))))
    assert ours["training/rollout_probs_diff_max"] == ours["training/rollout_logprobs_k3"] == 0
    assert ours["training/rollout_actor_probs_pearson_corr"] == pytest.approx(1)
    assert mismatch_metrics(mismatch_sums(logprobs, logprobs, ResponseTokens.of_matrix(np.zeros((1, 3))))) == {
        "training/rollout_probs_diff_valid": 0.0
    }


def test_group_metrics_report_domains_truncation_and_missing_scores():
    missing = Score(float("nan"), float("nan"), float("nan"), missing="timeout")
    groups = [
        make_group([[1, 2], [3]], scores=[1.0, 0.0], advantages=[1, -1], stop_reasons=["stop", "length"]),
        make_group([[1, 2, 3], [4]], scores=[0.2, missing], advantages=[0, 0], domain="chart_ocr"),
    ]
    ours = group_metrics(groups, max_response_length=3, max_prompt_length=10)
    assert ours["groups/zero_variance"] == 0.5
    assert ours["rewards/missing"] == ours["response/truncated"] == 0.25
    assert ours["domain/stem/reward"] == 0.5
    assert ours["domain/chart_ocr/reward"] == pytest.approx(0.2)
    assert ours["domain/chart_ocr/zero_variance"] == 1
    assert ours["domain/stem/truncated"] == 0.5
    assert ours["critic/score/mean"] == pytest.approx(0.4)
    assert ours["response_length/clip_ratio"] == 0.25
    assert all(np.isfinite(list(ours.values())))
