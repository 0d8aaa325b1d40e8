"""Policy losses on response tokens: GSPO, PPO-clip (GRPO, DAPO), CISPO, GMPO, GPG, Clip-Cov, KL-Cov; entropy, value.

Every loss takes log-probabilities under the current policy (differentiated), under the policy at the start of the step
(`old`), advantages and the layout of the tokens, all [B, U], and returns this micro-batch's share of the mini-batch's
loss together with sums over tokens from which the metrics are made. rho = exp(logprob - old) is a token's importance
ratio, A its advantage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vero_jax.config import ActorConfig
from vero_jax.learning.aggregation import AggregationMode, ResponseTokens, Totals, aggregate
from vero_jax.learning.kl import LOG_RATIO_LIMIT

GSPO_LOG_RATIO_LIMIT = 10.0


class LossTerms(NamedTuple):
    """A loss and the sums over counted tokens behind its metrics (divide by the mini-batch's tokens)."""

    loss: Float[Array, ""]
    clipped: Float[Array, ""]
    """Tokens at which the clip acts (pg_clipfrac)."""
    clipped_lower: Float[Array, ""]
    """Tokens at which the second clip, for negative advantages, acts (pg_clipfrac_lower)."""
    kl: Float[Array, ""]
    """Sum of old - logprob (ppo_kl), limited as in the loss; for KL-Cov of its absolute value."""


class LossInputs(NamedTuple):
    """What a policy loss is computed from; everything but `logprobs` is a constant of the differentiation."""

    logprobs: Float[Array, "B U"]
    old: Float[Array, "B U"]
    advantages: Float[Array, "B U"]
    tokens: ResponseTokens
    totals: Totals
    sampler: Float[Array, "B U"] | None = None
    """Log-probabilities reported by the sampler, for truncated importance sampling."""
    key: Key[Array, ""] | None = None
    """Random key of Clip-Cov's choice; None takes the first tokens in row-major order."""


def gspo(x: LossInputs, config: ActorConfig) -> LossTerms:
    """Group sequence policy optimisation (arXiv 2507.18071), its per-token form (GSPO-token).

    delta_i = 1/n_i sum_t (logprob_it - old_it); s_it = exp(min(logprob_it - sg(logprob_it) + sg(delta_i), 10)) has the
    value exp(delta_i) and the gradient of its own token; the loss is the mean over responses of the mean over tokens of
    max(-A s, -A clip(s, 1 - low, 1 + high)). Always aggregated seq-mean-token-mean.
    """
    stop = jax.lax.stop_gradient
    log_ratio = x.logprobs - x.old
    delta = x.tokens.spread(x.tokens.means(stop(log_ratio)))
    ratio = jnp.exp(jnp.minimum(x.logprobs - stop(x.logprobs) + delta, GSPO_LOG_RATIO_LIMIT))
    loss = -x.advantages * ratio
    limited = -x.advantages * _limit(ratio, 1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    # Where both are equal, maximum gives each half of the gradient and the clip passes it: the sum is the whole.
    per_token = jnp.maximum(loss, limited) * sampler_weight(x, config)
    return LossTerms(
        aggregate(per_token, x.tokens, "seq-mean-token-mean", x.totals),
        clipped=x.tokens.keep(limited > loss).sum(),
        clipped_lower=jnp.zeros(()),
        kl=-x.tokens.keep(log_ratio).sum(),
    )


def ppo_clip(x: LossInputs, config: ActorConfig) -> LossTerms:
    """PPO-clip (arXiv 1707.06347), the loss of GRPO and, with clip_ratio_high > clip_ratio_low, of DAPO.

    max(-A rho, -A clip(rho, 1 - low, 1 + high)), for A < 0 at most -A c (dual clip, arXiv 1912.09729), with
    log rho limited to +-20.
    """
    log_ratio = jnp.clip(x.logprobs - x.old, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = jnp.exp(log_ratio)
    loss = -x.advantages * ratio
    limited = -x.advantages * _limit(ratio, 1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    upper = jnp.maximum(loss, limited)
    dual = -x.advantages * config.clip_ratio_c
    negative = x.advantages < 0
    per_token = jnp.where(negative, jnp.minimum(dual, upper), upper) * sampler_weight(x, config)
    return LossTerms(
        aggregate(per_token, x.tokens, config.loss_agg_mode, x.totals),
        clipped=x.tokens.keep(limited > loss).sum(),
        clipped_lower=x.tokens.keep((upper > dual) & negative).sum(),
        kl=-x.tokens.keep(log_ratio).sum(),
    )


def cispo(x: LossInputs, config: ActorConfig) -> LossTerms:
    """CISPO (MiniMax-M1, arXiv 2506.13585): -sg(clip(rho)) A logprob, so that no token loses its gradient."""
    log_ratio = jnp.clip(x.logprobs - x.old, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = jnp.exp(log_ratio)
    limited = _limit(ratio, 1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    per_token = -jax.lax.stop_gradient(limited) * x.advantages * x.logprobs * sampler_weight(x, config)
    return LossTerms(
        aggregate(per_token, x.tokens, config.loss_agg_mode, x.totals),
        clipped=x.tokens.keep(limited != ratio).sum(),
        clipped_lower=jnp.zeros(()),
        kl=-x.tokens.keep(log_ratio).sum(),
    )


def geo_mean(x: LossInputs, config: ActorConfig) -> LossTerms:
    """GMPO (arXiv 2507.20673): the geometric mean of token ratios, each limited on the side its advantage pushes to.

    The clip ratios are limits of log rho here. Always the mean over responses.
    """
    log_ratio = x.logprobs - x.old
    limited = _limit(log_ratio, -config.clip_ratio_low, config.clip_ratio_high)
    sign = jnp.sign(x.advantages)
    pessimistic = sign * jnp.minimum(sign * log_ratio, sign * limited)
    ratio = jnp.exp(x.tokens.means(pessimistic))
    advantage = x.tokens.means(x.advantages * sampler_weight(x, config))
    clipped = log_ratio != limited
    return LossTerms(
        (-advantage * ratio).sum() / jnp.maximum(x.totals.sequences, 1),
        clipped=x.tokens.keep(clipped & (x.advantages > 0)).sum(),
        clipped_lower=x.tokens.keep(clipped & (x.advantages < 0)).sum(),
        kl=-x.tokens.keep(log_ratio).sum(),
    )


def gpg(x: LossInputs, config: ActorConfig) -> LossTerms:
    """Group policy gradient (arXiv 2504.02546): -A logprob, no ratio and no clip."""
    per_token = -x.advantages * x.logprobs * sampler_weight(x, config)
    loss = aggregate(per_token, x.tokens, config.loss_agg_mode, x.totals)
    return LossTerms(loss, jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def clip_cov(x: LossInputs, config: ActorConfig) -> LossTerms:
    """Clip-Cov (arXiv 2505.22617): PPO-clip without some tokens whose advantage and log-probability go together.

    Among tokens that the clip leaves alone and whose covariance term lies between the bounds, a random
    max(1, ratio x tokens) lose their loss. Means, candidates and their number are those of the micro-batch, so this
    choice (not its denominator) depends on the packing.
    """
    log_ratio = x.logprobs - x.old
    ratio = jnp.exp(log_ratio)
    loss = -x.advantages * ratio
    limited = -x.advantages * _limit(ratio, 1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    counted = x.tokens.mask > 0
    covariance = _covariance(x)
    candidate = counted & (limited <= loss) & (covariance > config.clip_cov_lb) & (covariance < config.clip_cov_ub)
    if x.key is None:
        priority = -jnp.arange(candidate.size, dtype=jnp.float32).reshape(candidate.shape)
    else:
        priority = jax.random.uniform(x.key, candidate.shape)
    dropped = candidate & _largest(jnp.where(candidate, priority, -jnp.inf), _share(x, config.clip_cov_ratio))
    per_token = jnp.where(dropped, 0, jnp.maximum(loss, limited)) * sampler_weight(x, config)
    return LossTerms(
        aggregate(per_token, x.tokens, config.loss_agg_mode, x.totals),
        clipped=x.tokens.keep(dropped).sum(),
        clipped_lower=jnp.zeros(()),
        kl=-x.tokens.keep(log_ratio).sum(),
    )


def kl_cov(x: LossInputs, config: ActorConfig) -> LossTerms:
    """KL-Cov (arXiv 2505.22617): -A rho, plus coef |log rho| at the tokens of largest covariance.

    There are max(1, ratio x tokens) of them. Means and choice are those of the micro-batch, as in `clip_cov`.
    """
    log_ratio = x.logprobs - x.old
    chosen = _largest(jnp.where(x.tokens.mask > 0, _covariance(x), -jnp.inf), _share(x, config.kl_cov_ratio))
    per_token = -x.advantages * jnp.exp(log_ratio) + jnp.where(chosen, config.kl_cov_coef * jnp.abs(log_ratio), 0)
    per_token *= sampler_weight(x, config)
    return LossTerms(
        aggregate(per_token, x.tokens, config.loss_agg_mode, x.totals),
        clipped=jnp.zeros(()),
        clipped_lower=jnp.zeros(()),
        kl=x.tokens.keep(jnp.abs(log_ratio)).sum(),
    )


POLICY_LOSSES: Mapping[str, Callable[[LossInputs, ActorConfig], LossTerms]] = {
    "gspo": gspo,
    "vanilla": ppo_clip,
    "cispo": cispo,
    "geo_mean": geo_mean,
    "gpg": gpg,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}


def policy_loss(x: LossInputs, config: ActorConfig) -> LossTerms:
    """The loss that `config.loss_mode` names. Values at masked tokens reach neither loss, gradient nor sums."""
    keep = x.tokens.keep
    x = x._replace(
        logprobs=keep(x.logprobs),
        old=jax.lax.stop_gradient(keep(x.old)),
        advantages=keep(x.advantages),
        sampler=None if x.sampler is None else keep(x.sampler),
    )
    return POLICY_LOSSES[config.loss_mode](x, config)


def value_loss(
    values: Float[Array, "B U"],
    old_values: Float[Array, "B U"],
    returns: Float[Array, "B U"],
    tokens: ResponseTokens,
    clip: float,
    mode: AggregationMode,
    totals: Totals,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Clipped squared error of a value head (PPO): half the larger of the errors with and without the limit.

    Returns:
      this micro-batch's share of the loss, and the number of tokens at which the limited error is larger.
    """
    values, old_values, returns = tokens.keep(values), tokens.keep(old_values), tokens.keep(returns)
    limited = jnp.clip(values, old_values - clip, old_values + clip)
    error, limited_error = jnp.square(values - returns), jnp.square(limited - returns)
    loss = 0.5 * aggregate(jnp.maximum(error, limited_error), tokens, mode, totals)
    return loss, tokens.keep(limited_error > error).sum()


def _limit(values: Array, low: float, high: float) -> Array:
    """A clip whose gradient is 1 at the bounds themselves: with GSPO's narrow range a ratio does fall on one in
    float32, where `jnp.clip` passes half a gradient."""
    return jnp.where(values < low, low, jnp.where(values > high, high, values))


def sampler_weight(x: LossInputs, config: ActorConfig) -> Float[Array, "B U"] | float:
    """Truncated importance weight of the sampler's policy at each token, without gradient; 1 when off.

    Corrects for responses that were drawn by other numbers than the learner's (Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training"; Ionides 2008): min(exp(old - sampler), cap) of the token, or
    of the whole response, whose log-ratios are summed. Logarithms are limited to +-20.
    """
    if config.rollout_is == "none" or x.sampler is None:
        return 1.0
    log_weight = x.old - x.sampler
    if config.rollout_is == "sequence":
        log_weight = x.tokens.spread(x.tokens.sums(log_weight))
    log_weight = jnp.clip(log_weight, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_weight), config.rollout_is_cap))


def _covariance(x: LossInputs) -> Array:
    """(A - mean A)(logprob - mean logprob) at each token, means over the counted tokens."""
    count = jnp.maximum(x.tokens.mask.sum(), 1)
    logprobs = jax.lax.stop_gradient(x.logprobs)
    return (x.advantages - x.advantages.sum() / count) * (logprobs - logprobs.sum() / count)


def _share(x: LossInputs, ratio: float) -> Array:
    """How many tokens a share of the counted ones is: at least one."""
    return jnp.maximum(jnp.floor(ratio * x.tokens.mask.sum()), 1)


def _largest(values: Array, number: Array) -> Array:
    """True at the `number` largest entries (ties: the earlier in row-major order)."""
    flat = values.reshape(-1)
    rank = jnp.zeros(flat.shape, jnp.int32).at[jnp.argsort(-flat, stable=True)].set(jnp.arange(flat.size))
    return (rank < number).reshape(values.shape)
