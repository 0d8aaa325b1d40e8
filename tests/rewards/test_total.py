"""The overlong term."""

from __future__ import annotations

import math

import pytest

from vero_jax.config import RewardConfig
from vero_jax.rewards.settings import RuleScore
from vero_jax.rewards.total import missing_score, overlong_term, total_score


@pytest.mark.parametrize(("length", "term"), [(1, 0.0), (16384, 0.0), (17408, -0.5), (18432, -1.0), (20480, -1.0)])
def test_the_penalty_grows_in_the_buffer_before_the_longest_answer_and_has_a_floor(length: int, term: float) -> None:
    assert overlong_term(length, RewardConfig(), max_response_length=18432) == pytest.approx(term)


def test_the_reference_counts_from_16384_and_has_no_floor() -> None:
    config = RewardConfig(overlong_max_length=16384, overlong_floor=False)
    assert overlong_term(18432, config, max_response_length=18432) == pytest.approx(-2.0)
    assert overlong_term(10240, config, max_response_length=10240) == 0.0


def test_no_buffer_means_no_penalty() -> None:
    assert overlong_term(10**6, RewardConfig(overlong_buffer=0), max_response_length=1) == 0.0


def test_accuracy_and_format_stay_free_of_the_penalty() -> None:
    score = total_score(RuleScore(1.0, 1.0, 1.0), 18432, RewardConfig(), max_response_length=18432)
    assert (score.total, score.accuracy, score.format, score.overlong) == (0.0, 1.0, 1.0, -1.0)


def test_a_missing_score_is_no_number() -> None:
    score = missing_score("timeout")
    assert score.missing == "timeout" and math.isnan(score.total) and math.isnan(score.accuracy)
