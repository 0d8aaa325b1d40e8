"""Estimators of the divergence from a reference policy, the penalty inside the reward, and its controller.

d = log pi(token) - log pi_ref(token) at a token sampled from pi; the estimators are those of J. Schulman,
"Approximating KL divergence" (2020, joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vero_jax.config import AlgorithmConfig
from vero_jax.errors import UserError
from vero_jax.learning.aggregation import AggregationMode, ResponseTokens, Totals, aggregate

LOG_RATIO_LIMIT = 20.0
K3_LIMIT = 10.0


def kl_estimate(
    logprobs: Float[Array, "*shape"], reference: Float[Array, "*shape"], kind: str
) -> Float[Array, "*shape"]:
    """Per-token estimate of KL(pi || pi_ref).

    k1 (kl): d. abs: |d|. k2 (mse): d^2 / 2. k3 (low_var_kl): e^q - q - 1 with q = -d limited to +-20, and the value
    limited to +-10; where a limit acts the gradient is zero.

    Raises:
      UserError: the name is not one of these.
    """
    difference = logprobs - reference
    if kind in ("k1", "kl"):
        return difference
    if kind == "abs":
        return jnp.abs(difference)
    if kind in ("k2", "mse"):
        return 0.5 * jnp.square(difference)
    if kind in ("k3", "low_var_kl"):
        q = jnp.clip(-difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return jnp.clip(jnp.exp(q) - q - 1, -K3_LIMIT, K3_LIMIT)
    raise UserError(f"unknown KL estimator {kind!r}; use k1, kl, abs, k2, mse, k3 or low_var_kl")


def kl_loss(
    logprobs: Float[Array, "B U"],
    reference: Float[Array, "B U"],
    tokens: ResponseTokens,
    kind: str,
    mode: AggregationMode,
    totals: Totals,
) -> Float[Array, ""]:
    """This micro-batch's share of the aggregated KL term (without its coefficient)."""
    # Masked values may be huge; they are removed before the exponential, not after.
    return aggregate(kl_estimate(tokens.keep(logprobs), tokens.keep(reference), kind), tokens, mode, totals)


def penalised_rewards(
    scores: Float[Array, "B U"],
    old_logprobs: Float[Array, "B U"],
    reference: Float[Array, "B U"],
    tokens: ResponseTokens,
    coef: float,
    kind: str,
) -> tuple[Float[Array, "B U"], Float[Array, "B S"]]:
    """KL in the reward (InstructGPT, arXiv 2203.02155): each token's score minus coef x KL.

    Returns:
      token rewards (0 at masked tokens) and the mean KL of each response; the average of the latter over responses is
      what the controller is fed.
    """
    estimate = tokens.keep(kl_estimate(tokens.keep(old_logprobs), tokens.keep(reference), kind))
    return tokens.keep(scores) - coef * estimate, tokens.means(estimate)


@dataclasses.dataclass(frozen=True)
class KLController:
    """Coefficient of the in-reward penalty: constant, or steered to a target (Ziegler et al., arXiv 1909.08593)."""

    coef: float
    kind: str = "fixed"
    target: float = 0.1
    horizon: int = 10000

    @classmethod
    def from_config(cls, config: AlgorithmConfig) -> KLController:
        return cls(config.kl_coef, config.kl_controller, config.kl_target, config.kl_horizon)

    def updated(self, kl: float, sequences: int) -> KLController:
        """The controller after a step in which the mean KL of `sequences` responses was `kl`."""
        if self.kind == "fixed":
            return self
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return dataclasses.replace(self, coef=self.coef * (1.0 + error * sequences / self.horizon))
