"""Advantages against the reference's vectors, and the rules for equal, single and missing scores."""

from __future__ import annotations

import numpy as np
import pytest

from tests.learning.golden import cases, load
from tests.learning.policies import make_group
from vero_jax.config import AlgorithmConfig
from vero_jax.errors import UserError
from vero_jax.learning.advantages import add_advantages, estimate_advantages, gae, reinforce_plus_plus, remax
from vero_jax.types import Score

golden = pytest.mark.golden_rl


def response_level(z, hp, **options):
    rewards, mask = z["in_token_level_rewards"], z["in_response_mask"]
    advantages = estimate_advantages(
        rewards.sum(axis=1),
        z["in_group_index"],
        mask.sum(axis=1),
        estimator=hp["adv_estimator"],
        norm_by_std=hp.get("norm_adv_by_std_in_grpo", True),
        epsilon=hp["epsilon"],
        **options,
    )
    return advantages[:, None] * mask


@golden
@pytest.mark.parametrize(("hp", "file"), cases("grpo_adv", "grpo_vectorized_adv", "grpo_passk_adv", "other_adv"))
def test_advantages_match_reference(hp, file):
    z = load(file)
    name, mask = hp["adv_estimator"], z["in_response_mask"]
    rewards = z["in_token_level_rewards"]
    if name == "gae":
        advantages, returns = gae(rewards, z["in_values"], mask, hp["gamma"], hp["lam"])
        # Entries at masked tokens carry no meaning in either.
        np.testing.assert_allclose(advantages * mask, z["out_advantages"] * mask, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(returns * mask, z["out_returns"] * mask, rtol=2e-5, atol=1e-6)
        return
    if name == "remax":
        advantages, returns = remax(rewards, z["in_reward_baselines"], mask)
        np.testing.assert_allclose(returns, z["out_returns"], rtol=2e-5, atol=1e-6)
    elif name == "reinforce_plus_plus":
        advantages, returns = reinforce_plus_plus(rewards, mask, hp["gamma"])
        np.testing.assert_allclose(returns, z["out_returns"], rtol=2e-5, atol=1e-6)
    else:
        advantages = response_level(z, hp, strict_reference=True)
        equal = all_equal(z)
        # float32 leaves rounding noise in groups of equal scores; there the float64 answer is 0.
        np.testing.assert_allclose(advantages[~equal], z["out64_advantages"][~equal], rtol=1e-6, atol=1e-7)
        ours = response_level(z, hp)
        alone = np.isin(z["in_group_index"], [g for g, n in zip(*np.unique(z["in_group_index"], return_counts=True), strict=True) if n == 1])  # fmt: skip # noqa: E501
        assert (ours[alone] == 0).all()
        assert (ours[equal] == 0).all()
        if "plus_plus" not in name:  # whitening spreads the difference in groups of one over all
            np.testing.assert_allclose(ours[~alone], z["out64_advantages"][~alone], rtol=1e-6, atol=1e-7)
        return
    np.testing.assert_allclose(advantages, z["out64_advantages"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(advantages, z["out_advantages"], rtol=2e-5, atol=2e-6)


def all_equal(z):
    scores, groups = z["in_token_level_rewards"].sum(axis=1), z["in_group_index"]
    return np.array([np.ptp(scores[groups == g]) == 0 and (groups == g).sum() > 1 for g in groups])


@golden
def test_strict_reference_has_its_rounding_noise():
    seen = 0
    for hp, file in (case.values for case in cases("grpo_adv")):
        z = load(file)
        equal = all_equal(z)
        if equal.any() and hp["norm_adv_by_std_in_grpo"] and np.abs(z["out_advantages"][equal]).max() > 1e-3:
            # Other builds round differently: the size is what is reproduced, not each value.
            noise = np.abs(response_level(z, hp, strict_reference=True)[equal]).max()
            assert 1e-3 < noise <= 0.2
            seen += 1
    assert seen


ESTIMATORS = ["grpo", "grpo_vectorized", "grpo_passk", "dr_grpo", "rloo", "opo", "gpg"]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("value", [0.2, 0.9, 0.1, 1 / 3, 1.0, 0.0, -0.7])
def test_equal_scores_give_exactly_zero(name, value):
    scores = np.array([value] * 8 + [0.0, 1.0])
    advantages = estimate_advantages(scores, np.array([0] * 8 + [1] * 2), np.arange(1, 11), estimator=name)
    assert (advantages[:8] == 0).all()
    assert (advantages[8:] != 0).any()


@pytest.mark.parametrize("name", [*ESTIMATORS, "reinforce_plus_plus_baseline"])
def test_a_missing_score_leaves_the_statistics_and_gets_zero(name):
    scores, lengths = np.array([0.0, 1.0, 0.5, np.nan]), np.array([3, 4, 5, 6])
    valid = np.array([True, True, True, False])
    with_missing = estimate_advantages(scores, np.zeros(4, int), lengths, estimator=name, valid=valid)
    without = estimate_advantages(scores[:3], np.zeros(3, int), lengths[:3], estimator=name)
    assert with_missing[3] == 0
    np.testing.assert_array_equal(with_missing[:3], without)


def test_a_group_left_with_one_score_is_dropped():
    advantages = estimate_advantages(
        np.array([1.0, np.nan]), np.zeros(2, int), np.ones(2, int), estimator="grpo", valid=np.array([True, False])
    )
    assert (advantages == 0).all()


def test_add_advantages_normalises_inside_each_group():
    groups = [make_group([[1, 2], [3]], scores=[0.0, 1.0]), make_group([[1], [2], [3]], scores=[0.2, 0.2, 0.2])]
    first, second = add_advantages(groups, AlgorithmConfig())
    np.testing.assert_allclose(first.advantages, [-0.7071058, 0.7071058], rtol=1e-5)
    assert first.advantages.dtype == np.float32
    np.testing.assert_array_equal(second.advantages, np.zeros(3))
    penalised, _ = add_advantages(groups, AlgorithmConfig(norm_adv_by_std=False), penalties=[np.array([0, 0.5]), np.zeros(3)])  # fmt: skip # noqa: E501
    np.testing.assert_allclose(penalised.advantages, [-0.25, 0.25])
    assert add_advantages([], AlgorithmConfig()) == []


def test_unscored_groups_are_refused():
    with pytest.raises(UserError, match="0 scores for 1 responses"):
        add_advantages([make_group([[1]])], AlgorithmConfig())
    with pytest.raises(UserError, match="unknown advantage estimator"):
        estimate_advantages(np.zeros(1), np.zeros(1, int), np.ones(1, int), estimator="grop")


def test_missing_scores_reach_the_groups():
    group = make_group([[1], [2], [3]], scores=[0.0, 1.0, 0.0])
    scores = (*group.scores[:2], Score(float("nan"), float("nan"), float("nan"), missing="timeout"))
    (out,) = add_advantages([make_group([[1], [2], [3]], scores=scores)], AlgorithmConfig())
    assert out.advantages[2] == 0
    assert out.advantages[0] == -out.advantages[1] != 0
