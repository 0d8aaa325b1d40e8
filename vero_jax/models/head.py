"""The output head, a block of the vocabulary at a time: exact log-probabilities and entropies.

Logits are hidden @ head.T / temperature, accumulated in float32, and never exist for the whole vocabulary at once
(but for truncated sampling, see `models.choice`): with 151,936 entries a row of 36,864 tokens would need 22 GB of them.
The learner and the sampler go through the same blocks, so their log-probabilities differ only by what differs in the
hidden states. Axes: n tokens, D model width, V vocabulary, b entries of a block.

A log-probability is that of the untruncated policy over the whole vocabulary: ids that the sampler may not choose, and
what top-p and its kin cut off, keep their share of the denominator. That is the distribution the loss differentiates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

_NEGATIVE = -1e30
"""A logit that counts for nothing; finite, so that no difference of two becomes NaN."""


def token_logprobs(
    hidden: Float[Array, "n D"],
    head: Float[Array, "V D"],
    targets: Int32[Array, "n"],
    *,
    temperature: float | Float32[Array, ""],
    block: int,
    valid_vocab: int | None = None,
) -> tuple[Float32[Array, "n"], Float32[Array, "n"]]:
    """Log-probability of each target and entropy of its distribution, differentiable in `hidden` and `head`.

    log p(t) = z_t - log sum_v exp(z_v) and H = -sum_v p_v log p_v with z = hidden @ head.T / temperature. The backward
    pass computes every block again: dz_v = g_logp (1[v = t] - p_v) - g_H p_v (log p_v + H).

    Args:
      hidden: states after the final norm, in the activations' type, to which `head` is rounded.
      targets: ids in [0, valid_vocab).
      temperature: divides the logits; 0 (greedy sampling) counts as 1. No gradient flows to it.
      block: vocabulary entries per block.
      valid_vocab: rows of `head` from here on are no vocabulary entries and take no part; None uses all.
    """
    valid = head.shape[0] if valid_vocab is None else valid_vocab
    block = min(block, head.shape[0])
    # Both functions of this module round the head to the activations' type, so sampler and learner agree.
    return _token_logprobs(hidden, head.astype(hidden.dtype), targets, inverse_temperature(temperature), block, valid)


def inverse_temperature(temperature: float | Float32[Array, ""]) -> Float32[Array, ""]:
    temperature = jnp.asarray(temperature, jnp.float32)
    return 1.0 / jnp.where(temperature > 0, temperature, 1.0)


def over_blocks(body: Callable, carry: Any, vocab: int, block: int) -> Any:
    if block == vocab:
        return body(carry, jnp.int32(0))[0]
    return jax.lax.scan(body, carry, jnp.arange(-(-vocab // block), dtype=jnp.int32))[0]


def block_logits(
    hidden: Array, head: Array, inverse: Array, i: Array, block: int, valid: int
) -> tuple[Float32[Array, "n b"], Int32[Array, "b"], Bool[Array, "b"]]:
    """Logits of the i-th block, the entries they belong to, and which of them count.

    When the block size does not divide the vocabulary, the last block is moved back to end with it, and the entries
    that the one before has counted count for nothing: padding the head would copy it.
    """
    first = i * block
    start = jnp.minimum(first, head.shape[0] - block)
    entries = start + jnp.arange(block, dtype=jnp.int32)
    part = jax.lax.dynamic_slice_in_dim(head, start, block)
    counted = (entries >= first) & (entries < valid)
    return jnp.where(counted, _product(hidden, part.T) * inverse, _NEGATIVE), entries, counted


def _product(a: Array, b: Array) -> Float32[Array, "x y"]:
    """Matrix product accumulated in float32. Float32 inputs are not rounded first, as TPUs and GPUs do by default."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _token_logprobs(
    hidden: Array, head: Array, targets: Array, inverse: Array, block: int, valid: int
) -> tuple[Array, Array]:
    return _forward(hidden, head, targets, inverse, block, valid)[0]


def _forward(hidden: Array, head: Array, targets: Array, inverse: Array, block: int, valid: int) -> tuple:
    def add_block(carry: tuple, i: Array) -> tuple[tuple, None]:
        top, total, moment, target_logit = carry
        logits, entries, counted = block_logits(hidden, head, inverse, i, block, valid)
        new_top = jnp.maximum(top, logits.max(-1))
        shrink = jnp.exp(top - new_top)
        shifted = logits - new_top[:, None]
        weights = jnp.exp(shifted)
        # The first moment is kept relative to the largest logit, where it does not lose digits to the logits' size.
        moment = shrink * (moment + total * (top - new_top)) + (weights * shifted).sum(-1)
        total = shrink * total + weights.sum(-1)
        hit = (entries == targets[:, None]) & counted
        return (new_top, total, moment, target_logit + jnp.where(hit, logits, 0.0).sum(-1)), None

    n = hidden.shape[0]
    start = (jnp.full(n, _NEGATIVE), jnp.zeros(n), jnp.zeros(n), jnp.zeros(n))
    top, total, moment, target_logit = over_blocks(add_block, start, head.shape[0], block)
    log_total = jnp.log(total)
    entropy = log_total - moment / total
    # (z - top) is exact where it matters; top + log_total would be rounded at the size of the largest logit.
    return (target_logit - top - log_total, entropy), (hidden, head, targets, inverse, top, log_total, entropy)


def _backward(block: int, valid: int, kept: tuple, cotangents: tuple[Array, Array]) -> tuple:
    hidden, head, targets, inverse, top, log_total, entropy = kept
    d_logprob, d_entropy = cotangents

    def add_block(carry: tuple, i: Array) -> tuple[tuple, None]:
        d_hidden, d_head = carry
        logits, entries, counted = block_logits(hidden, head, inverse, i, block, valid)
        logp = logits - top[:, None] - log_total[:, None]
        slope = d_logprob[:, None] + d_entropy[:, None] * (logp + entropy[:, None])
        hit = (entries == targets[:, None]) & counted
        d_logits = (jnp.where(hit, d_logprob[:, None], 0.0) - jnp.exp(logp) * slope) * inverse
        d_logits = d_logits.astype(head.dtype)
        part = jax.lax.dynamic_slice_in_dim(head, entries[0], block)
        d_part = jax.lax.dynamic_slice_in_dim(d_head, entries[0], block) + _product(d_logits.T, hidden)
        d_head = jax.lax.dynamic_update_slice_in_dim(d_head, d_part, entries[0], 0)
        return (d_hidden + _product(d_logits, part), d_head), None

    start = (jnp.zeros(hidden.shape), jnp.zeros(head.shape))
    d_hidden, d_head = over_blocks(add_block, start, head.shape[0], block)
    no_gradient = np.zeros(targets.shape, jax.dtypes.float0)
    return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype), no_gradient, jnp.zeros_like(inverse)


_token_logprobs.defvjp(_forward, _backward)
