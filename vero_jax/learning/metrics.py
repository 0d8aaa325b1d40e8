"""What a step reports: exact numbers over the whole global batch, under the reference's names where it has one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vero_jax.learning.aggregation import ResponseTokens
from vero_jax.rewards.metrics import reward_metrics
from vero_jax.types import Group


def reduce_metrics(values: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """One number per name: the largest where the name contains "max", the smallest for "min", else the mean."""
    reduced = {}
    for name, entries in values.items():
        array = np.asarray(list(entries), np.float64)
        reduced[name] = float(array.max() if "max" in name else array.min() if "min" in name else array.mean())
    return reduced


def _spread(prefix: str, values: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """mean, max and min of the values; entries of weight 0 are left out."""
    values = np.asarray(values, np.float64)
    weights = np.ones(values.shape) if weights is None else np.asarray(weights, np.float64)
    values, weights = values[weights > 0], weights[weights > 0]
    if values.size == 0:
        return {f"{prefix}/{name}": math.nan for name in ("mean", "max", "min")}
    return {
        f"{prefix}/mean": float((values * weights).sum() / weights.sum()),
        f"{prefix}/max": float(values.max()),
        f"{prefix}/min": float(values.min()),
    }


def data_metrics(
    scores: Float[np.ndarray, "S"],
    advantages: Float[np.ndarray, "S"],
    response_lengths: Int[np.ndarray, "S"],
    prompt_lengths: Int[np.ndarray, "S"],
    *,
    max_response_length: int,
    max_prompt_length: int,
    rewards: Float[np.ndarray, "S"] | None = None,
    returns: Float[np.ndarray, "S"] | None = None,
) -> dict[str, float]:
    """Scores, advantages and lengths of a step's responses.

    Scores and rewards (scores after a KL penalty) are over responses with tokens; advantages and returns weigh each
    response by its tokens. `clip_ratio` is the share at the length limit. A NaN score (missing) is left out.
    """
    response_lengths = np.asarray(response_lengths)
    scores = np.asarray(scores, np.float64)
    rewards = scores if rewards is None else np.asarray(rewards, np.float64)
    filled = response_lengths > 0
    known = filled & ~np.isnan(scores)
    metrics = _spread("critic/score", scores[known])
    metrics |= _spread("critic/rewards", rewards[known])
    metrics |= _spread("critic/advantages", advantages, response_lengths)
    metrics |= _spread("critic/returns", advantages if returns is None else returns, response_lengths)
    metrics |= _spread("response_length", response_lengths)
    metrics["response_length/clip_ratio"] = _share(response_lengths == max_response_length)
    metrics |= _spread("response_length_non_aborted", response_lengths[filled])
    metrics["response_length_non_aborted/clip_ratio"] = _share(response_lengths[filled] == max_response_length)
    metrics["response/aborted_ratio"] = _share(~filled)
    metrics |= _spread("prompt_length", prompt_lengths)
    metrics["prompt_length/clip_ratio"] = _share(np.asarray(prompt_lengths) == max_prompt_length)
    return metrics


def _share(flags: np.ndarray) -> float:
    return float(np.mean(flags)) if np.size(flags) else math.nan


def group_metrics(groups: Sequence[Group], *, max_response_length: int, max_prompt_length: int) -> dict[str, float]:
    """`data_metrics` of a step's groups, and what the reference does not report.

    `groups/zero_variance`: share of groups whose scores are all equal; `rewards/missing`: share of responses without a
    score; `response/truncated`: share cut by the length limit; and per domain `domain/<name>/` reward, accuracy,
    format, response_length, truncated, zero_variance and groups (a count). By reward type and source: `reward_metrics`.
    """
    responses = [response for group in groups for response in group.responses]
    lengths = np.array([len(response.token_ids) for response in responses], np.int64)
    prompts = np.repeat([len(group.prompt.token_ids) for group in groups], [len(group.responses) for group in groups])
    scores = [score for group in groups for score in group.scores]
    totals = np.array([math.nan if score.missing is not None else score.total for score in scores])
    advantages = np.concatenate([group.advantages for group in groups if group.advantages is not None] or [np.zeros(0)])
    metrics = data_metrics(
        totals,
        advantages,
        lengths,
        prompts,
        max_response_length=max_response_length,
        max_prompt_length=max_prompt_length,
    )
    metrics["groups/zero_variance"] = _share(np.array([_zero_variance(group) for group in groups]))
    metrics["rewards/missing"] = _share(np.isnan(totals))
    metrics["response/truncated"] = _share(np.array([response.stop_reason == "length" for response in responses]))
    for domain in sorted({group.prompt.example.domain for group in groups}):
        inside = [group for group in groups if group.prompt.example.domain == domain]
        known = [score for group in inside for score in group.scores if score.missing is None]
        drawn = [response for group in inside for response in group.responses]
        metrics |= {
            f"domain/{domain}/reward": _mean([score.total for score in known]),
            f"domain/{domain}/accuracy": _mean([score.accuracy for score in known]),
            f"domain/{domain}/format": _mean([score.format for score in known]),
            f"domain/{domain}/response_length": _mean([len(response.token_ids) for response in drawn]),
            f"domain/{domain}/truncated": _mean([response.stop_reason == "length" for response in drawn]),
            f"domain/{domain}/zero_variance": _mean([_zero_variance(group) for group in inside]),
            f"domain/{domain}/groups": float(len(inside)),
        }
    return metrics | reward_metrics(groups)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _zero_variance(group: Group) -> bool:
    known = {np.float32(score.total) for score in group.scores if score.missing is None}
    return len(known) < 2


class MismatchSums(NamedTuple):
    """Sums over counted tokens of sampler against learner; add them up over micro-batches (`largest_*`: maximum)."""

    tokens: Array
    probability_difference: Array
    probability_difference_squared: Array
    largest_probability_difference: Array
    learner: Array
    sampler: Array
    learner_squared: Array
    sampler_squared: Array
    product: Array
    k1: Array
    k3: Array
    largest_logprob_difference: Array


def mismatch_sums(learner: Float[Array, "B U"], sampler: Float[Array, "B U"], tokens: ResponseTokens) -> MismatchSums:
    """Compares the learner's log-probabilities of the sampled tokens with those the sampler reported."""
    keep = tokens.keep
    learner, sampler = keep(learner), keep(sampler)
    p, q = keep(jnp.exp(learner)), keep(jnp.exp(sampler))
    # Probabilities are centred at 1/2 so that the float32 sums of squares lose nothing to a common offset.
    p_centred, q_centred = keep(p - 0.5), keep(q - 0.5)
    difference = jnp.abs(p - q)
    log_ratio = sampler - learner
    return MismatchSums(
        tokens=tokens.mask.sum(),
        probability_difference=difference.sum(),
        probability_difference_squared=jnp.square(difference).sum(),
        largest_probability_difference=difference.max(initial=0.0),
        learner=p_centred.sum(),
        sampler=q_centred.sum(),
        learner_squared=jnp.square(p_centred).sum(),
        sampler_squared=jnp.square(q_centred).sum(),
        product=(p_centred * q_centred).sum(),
        k1=log_ratio.sum(),
        k3=(jnp.expm1(-log_ratio) + log_ratio).sum(),
        largest_logprob_difference=jnp.abs(log_ratio).max(initial=0.0),
    )


def add_mismatch(parts: Sequence[MismatchSums]) -> MismatchSums:
    """Sums of sums in float64, fetched from the device."""
    columns = {name: np.array([float(getattr(part, name)) for part in parts]) for name in MismatchSums._fields}
    return MismatchSums(
        **{name: v.max(initial=0.0) if name.startswith("largest") else v.sum() for name, v in columns.items()}
    )


def mismatch_metrics(sums: MismatchSums) -> dict[str, float]:
    """How far sampler and learner are apart on the same tokens.

    `rollout_probs_diff_*` are of |exp(learner) - exp(sampler)| (std unbiased), `rollout_logprobs_k1` and `_k3`
    estimate KL(sampler || learner), in nats per token. Without any token, `_valid` is 0 and nothing else is said.
    """
    n = float(sums.tokens)
    if n == 0:
        return {"training/rollout_probs_diff_valid": 0.0}
    mean = float(sums.probability_difference) / n
    variance = max(float(sums.probability_difference_squared) - n * mean * mean, 0.0) / max(n - 1, 1)
    p, q = float(sums.learner), float(sums.sampler)
    p_variance = max(float(sums.learner_squared) - p * p / n, 0.0)
    q_variance = max(float(sums.sampler_squared) - q * q / n, 0.0)
    scale = math.sqrt(p_variance * q_variance)
    correlation = (float(sums.product) - p * q / n) / scale if scale > 0 else math.nan
    return {
        "training/rollout_probs_diff_valid": 1.0,
        "training/rollout_probs_diff_max": float(sums.largest_probability_difference),
        "training/rollout_probs_diff_mean": mean,
        "training/rollout_probs_diff_std": math.sqrt(variance),
        "training/rollout_actor_probs_pearson_corr": correlation,
        "training/rollout_logprobs_k1": float(sums.k1) / n,
        "training/rollout_logprobs_k3": float(sums.k3) / n,
        "training/rollout_logprobs_diff_max": float(sums.largest_logprob_difference),
    }


def validation_metrics(
    sources: Sequence[str], prompt_ids: Sequence[str], variables: Mapping[str, Sequence[object]]
) -> dict[str, float]:
    """`{source}/{variable}/mean@n`: per prompt the mean over its n answers, then the mean over prompts.

    Missing values (None or NaN) are left out, n counts what is left of a prompt (the most over the source's prompts);
    variables of text are passed over, and so is a variable without any value in a source.
    """
    metrics: dict[str, float] = {}
    for source in dict.fromkeys(sources):
        for name, values in variables.items():
            per_prompt: dict[str, list[float]] = {}
            for place, prompt, value in zip(sources, prompt_ids, values, strict=True):
                if place != source or not isinstance(value, int | float | np.number) or np.isnan(float(value)):
                    continue
                per_prompt.setdefault(prompt, []).append(float(value))
            if per_prompt:
                draws = max(len(entries) for entries in per_prompt.values())
                mean = np.mean([np.mean(entries) for entries in per_prompt.values()])
                metrics[f"{source}/{name}/mean@{draws}"] = float(mean)
    return metrics
