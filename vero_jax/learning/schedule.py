"""Learning rate by global step, and AdamW as the reference runs it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

CLIP_EPSILON = 1e-6


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    schedule: str = "constant",
    total_steps: int = 0,
    min_ratio: float = 0.0,
    strict_reference: bool = False,
) -> float:
    """Learning rate of all updates of global step `step` (from 1).

    Linear warm-up from exactly 0 at step 1 to `peak` at step warmup_steps + 1, then constant, or half a cosine down to
    min_ratio x peak at step total_steps + 1, where it stays (`strict_reference`: the cosine goes on and rises again).
    Indexed by the step, not by the count of updates, of which a step may make several.

    Raises:
      ValueError: a step below 1, or an unknown schedule.
    """
    if step < 1:
        raise ValueError(f"steps are counted from 1, got {step}")
    done = step - 1
    if done < warmup_steps:
        return peak * done / warmup_steps
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        progress = (done - warmup_steps) / max(total_steps - warmup_steps, 1)
        if not strict_reference:
            progress = min(progress, 1.0)
        return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
    raise ValueError(f"unknown schedule {schedule!r}; use constant or cosine")


def adamw(betas: tuple[float, float], eps: float, weight_decay: float) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) up to the factor -lr, which the caller multiplies in.

    Decay acts on every parameter, norms and biases included; the bias correction counts updates, those at learning
    rate 0 among them.
    """
    return optax.chain(
        optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps, eps_root=0.0), optax.add_decayed_weights(weight_decay)
    )


def clip_by_global_norm(gradients: Any, limit: float) -> tuple[Any, Float[Array, ""]]:
    """Scales the tree by min(1, limit / (norm + 1e-6)). Returns it and the norm before."""
    norm = jnp.sqrt(sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradients)), 0.0))
    scale = jnp.minimum(1.0, limit / (norm + CLIP_EPSILON))
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), gradients), norm


def descend(
    params: Any, gradients: Any, optimizer_state: Any, optimizer: optax.GradientTransformation, rate: Array
) -> tuple[Any, Any]:
    """One step of size `rate` against the gradients. Returns (new parameters, new optimizer state)."""
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
    return jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), params, updates), optimizer_state
