"""Advantages on the host: what each response's score is worth beside the others of its group.

Scores are rounded to float32 (as stored by the rewards of the reference) and everything after is float64. Axes:
S responses of a step in any order, R tokens of a padded response.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from vero_jax.config import AlgorithmConfig
from vero_jax.errors import UserError
from vero_jax.types import Group

WHITENING_EPSILON = 1e-8


def estimate_advantages(
    scores: Float[np.ndarray, "S"],
    groups: Int[np.ndarray, "S"],
    lengths: Int[np.ndarray, "S"],
    *,
    estimator: str,
    norm_by_std: bool = True,
    epsilon: float = 1e-6,
    valid: Bool[np.ndarray, "S"] | None = None,
    strict_reference: bool = False,
) -> Float64[np.ndarray, "S"]:
    """Advantage of each response, equal at all its tokens. s is a score, mu its group's mean, n the group's size.

    | estimator | advantage | source |
    |---|---|---|
    | grpo | (s - mu) / (std + eps), std with n - 1; without the division if not norm_by_std | arXiv 2402.03300 |
    | dr_grpo | s - mu | arXiv 2503.20783 |
    | grpo_vectorized | grpo with std = sqrt(max(var, eps)) | verl |
    | grpo_passk | best minus second best for the best, else 0; / (std + eps) if norm_by_std | arXiv 2503.19595 |
    | rloo, rloo_vectorized | n / (n - 1) (s - mu) | arXiv 2402.14740 |
    | opo | s - (sum of length x s) / (sum of lengths) | arXiv 2505.23585 |
    | gpg | alpha (s - mu), alpha = responses / responses with a score other than 0 | arXiv 2504.02546 |
    | reinforce_plus_plus | s, whitened over all tokens of the step | arXiv 2501.03262 |
    | reinforce_plus_plus_baseline | s - mu, whitened over all tokens of the step | arXiv 2501.03262 |

    By default a group of equal scores and a group of one get exactly 0. The reference divides float32 rounding of the
    mean by eps (up to 0.1 for equal scores) and takes the raw score for the advantage of a group of one;
    `strict_reference` does the same. Whitening shifts all advantages by a common amount, zero ones too.

    Args:
      scores: one per response; entries that are not valid are not looked at.
      groups: group number of each response.
      lengths: tokens of each response.
      valid: False where the score is missing: the response leaves its group's statistics and gets 0.

    Raises:
      UserError: the estimator is unknown.
    """
    scores = np.asarray(scores, np.float32).astype(np.float64)
    lengths = np.asarray(lengths, np.float64)
    valid = np.ones(len(scores), bool) if valid is None else np.asarray(valid, bool)
    if estimator not in _GROUP_ESTIMATORS:
        raise UserError(f"unknown advantage estimator {estimator!r}; use one of {sorted(_GROUP_ESTIMATORS)}")
    estimate = _GROUP_ESTIMATORS[estimator]
    options = _Options(norm_by_std and estimator != "dr_grpo", epsilon, strict_reference)
    advantages = np.zeros(len(scores))
    counted = valid.copy()
    for number in np.unique(groups):
        members = np.flatnonzero((groups == number) & valid)
        if len(members) == 0:
            continue
        inside = scores[members]
        if estimator != "reinforce_plus_plus" and not strict_reference:
            if len(members) == 1:
                counted[members] = False
                continue
            if inside.min() == inside.max():
                continue
        advantages[members] = estimate(inside, lengths[members], options)
    if estimator == "gpg":
        advantages *= valid.sum() / max(np.count_nonzero(scores[valid]), 1)
    if estimator.startswith("reinforce_plus_plus") and counted.any():
        advantages[counted] = whiten(advantages[counted], lengths[counted])
    return advantages


@dataclasses.dataclass(frozen=True)
class _Options:
    norm_by_std: bool
    epsilon: float
    strict_reference: bool


def _grpo(scores: np.ndarray, lengths: np.ndarray, options: _Options) -> np.ndarray:
    if len(scores) == 1:
        return scores / (1 + options.epsilon) if options.norm_by_std else scores
    if options.strict_reference and scores.min() == scores.max():
        return _rounding_noise(scores, options)
    centred = scores - scores.mean()
    return centred / (scores.std(ddof=1) + options.epsilon) if options.norm_by_std else centred


def _rounding_noise(scores: np.ndarray, options: _Options) -> np.ndarray:
    """Equal scores in float32 with a sum taken one by one, as the reference's mean comes out on CPUs."""
    single = scores.astype(np.float32)
    mean = np.cumsum(single, dtype=np.float32)[-1] / np.float32(len(single))
    centred = single - mean
    if not options.norm_by_std:
        return centred.astype(np.float64)
    std = np.sqrt(np.sum(centred * centred) / np.float32(len(single) - 1))
    return (centred / (std + np.float32(options.epsilon))).astype(np.float64)


def _grpo_vectorized(scores: np.ndarray, lengths: np.ndarray, options: _Options) -> np.ndarray:
    if len(scores) == 1:
        return scores / (1 + options.epsilon) if options.norm_by_std else scores
    centred = scores - scores.mean()
    if not options.norm_by_std:
        return centred
    return centred / (np.sqrt(max(scores.var(ddof=1), options.epsilon)) + options.epsilon)


def _grpo_passk(scores: np.ndarray, lengths: np.ndarray, options: _Options) -> np.ndarray:
    advantages = np.zeros(len(scores))
    if len(scores) < 2:
        return advantages
    second, best = np.argsort(scores, kind="stable")[-2:]
    advantages[best] = scores[best] - scores[second]
    return advantages / (scores.std(ddof=1) + options.epsilon) if options.norm_by_std else advantages


def _rloo(scores: np.ndarray, lengths: np.ndarray, options: _Options) -> np.ndarray:
    if len(scores) == 1:
        return scores
    return (scores - scores.mean()) * len(scores) / (len(scores) - 1)


def _rloo_vectorized(scores: np.ndarray, lengths: np.ndarray, options: _Options) -> np.ndarray:
    return _rloo(scores, lengths, options) if len(scores) > 1 else np.zeros(1)


def _opo(scores: np.ndarray, lengths: np.ndarray, options: _Options) -> np.ndarray:
    if len(scores) == 1:
        return scores
    return scores - (lengths * scores).sum() / max(lengths.sum(), 1)


def _centred(scores: np.ndarray, lengths: np.ndarray, options: _Options) -> np.ndarray:
    return scores - scores.mean() if len(scores) > 1 else scores


def _raw(scores: np.ndarray, lengths: np.ndarray, options: _Options) -> np.ndarray:
    return scores


_GROUP_ESTIMATORS: Mapping[str, Callable[[np.ndarray, np.ndarray, _Options], np.ndarray]] = {
    "grpo": _grpo,
    "dr_grpo": _grpo,
    "grpo_vectorized": _grpo_vectorized,
    "grpo_passk": _grpo_passk,
    "rloo": _rloo,
    "rloo_vectorized": _rloo_vectorized,
    "opo": _opo,
    "gpg": _centred,
    "reinforce_plus_plus": _raw,
    "reinforce_plus_plus_baseline": _centred,
}


def whiten(
    values: Float64[np.ndarray, "*shape"], weights: Float[np.ndarray, "*shape"], *, shift_mean: bool = True
) -> Float64[np.ndarray, "*shape"]:
    """Mean 0 and unbiased variance 1 over tokens; `weights` is how many tokens carry each value (a mask counts too)."""
    count = weights.sum()
    if count < 2:
        return np.zeros_like(values)
    mean = (values * weights).sum() / count
    variance = (np.square(values - mean) * weights).sum() / (count - 1)
    whitened = (values - mean) / np.sqrt(variance + WHITENING_EPSILON)
    return whitened if shift_mean else whitened + mean


def discounted_returns(
    rewards: Float[np.ndarray, "S R"], mask: Int[np.ndarray, "S R"], gamma: float = 1.0
) -> Float64[np.ndarray, "S R"]:
    """Reward to go of each token of a padded batch; starts afresh after a masked token, which carries 0."""
    returns = np.zeros(rewards.shape)
    ahead = np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        returns[:, t] = rewards[:, t] + gamma * ahead
        ahead = returns[:, t] * mask[:, t]
    return returns


def reinforce_plus_plus(
    rewards: Float[np.ndarray, "S R"], mask: Int[np.ndarray, "S R"], gamma: float
) -> tuple[Float64[np.ndarray, "S R"], Float64[np.ndarray, "S R"]]:
    """REINFORCE++ with a reward at every token: discounted returns, whitened. Returns (advantages, returns)."""
    returns = discounted_returns(rewards, mask, gamma)
    return whiten(returns, mask) * mask, returns


def remax(
    rewards: Float[np.ndarray, "S R"], baselines: Float[np.ndarray, "S"], mask: Int[np.ndarray, "S R"]
) -> tuple[Float64[np.ndarray, "S R"], Float64[np.ndarray, "S R"]]:
    """ReMax (arXiv 2310.10505): the return minus the score of the greedy answer. Returns (advantages, returns)."""
    kept = np.where(mask > 0, rewards, 0).astype(np.float64)
    returns = np.cumsum(kept[:, ::-1], axis=1)[:, ::-1]
    return (returns - baselines[:, None]) * mask, returns


def gae(
    rewards: Float[np.ndarray, "S R"],
    values: Float[np.ndarray, "S R"],
    mask: Int[np.ndarray, "S R"],
    gamma: float,
    lam: float,
) -> tuple[Float64[np.ndarray, "S R"], Float64[np.ndarray, "S R"]]:
    """Generalised advantage estimation (arXiv 1506.02438), whitened. Returns (advantages, returns).

    A masked token is passed over: value and running sum of the token after it stay. Masked entries of the results are
    without meaning.
    """
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    raw = np.zeros(rewards.shape)
    next_value, running = np.zeros(len(rewards)), np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        error = rewards[:, t] + gamma * next_value - values[:, t]
        candidate = error + gamma * lam * running
        counted = mask[:, t] > 0
        next_value = np.where(counted, values[:, t], next_value)
        running = np.where(counted, candidate, running)
        raw[:, t] = running
    return whiten(raw, mask), raw + values


def add_advantages(
    groups: Sequence[Group], config: AlgorithmConfig, *, penalties: Sequence[Float[np.ndarray, "N"]] | None = None
) -> list[Group]:
    """The groups with `advantages` filled in from their scores.

    Args:
      groups: scored groups of one step.
      config: estimator and its options.
      penalties: per group, what the KL in the reward takes off each response's score (coefficient included).

    Raises:
      UserError: a group has not one score for each response.
    """
    for group in groups:
        if len(group.scores) != len(group.responses):
            raise UserError(
                f"group of question {group.prompt.example.id!r} has {len(group.scores)} scores for "
                f"{len(group.responses)} responses; score it before advantages are asked for"
            )
    sizes = [len(group.responses) for group in groups]
    numbers = np.repeat(np.arange(len(groups)), sizes)
    scores = np.array([score.total for group in groups for score in group.scores], np.float64)
    if penalties is not None and len(groups):
        scores = scores - np.concatenate(penalties)
    advantages = estimate_advantages(
        scores,
        numbers,
        np.array([len(response.token_ids) for group in groups for response in group.responses]),
        estimator=config.adv_estimator,
        norm_by_std=config.norm_adv_by_std,
        valid=np.array([score.missing is None for group in groups for score in group.scores], bool),
        strict_reference=config.strict_reference,
    )
    parts = np.split(advantages.astype(np.float32), np.cumsum(sizes)[:-1]) if groups else []
    return [dataclasses.replace(group, advantages=part) for group, part in zip(groups, parts, strict=True)]
