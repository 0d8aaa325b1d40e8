"""The output head, a block of the vocabulary at a time: exact log-probabilities and entropies, and token choice.

Logits are hidden @ head.T / temperature, accumulated in float32, and never exist for the whole vocabulary at once
(but for truncated sampling, see `choose_tokens`): with 151,936 entries a row of 36,864 tokens would need 22 GB of them.
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
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from vero_jax.models.noise import gumbel

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


def choose_tokens(
    hidden: Float[Array, "n D"],
    head: Float[Array, "V D"],
    keys: UInt32[Array, "n 2"],
    position: Int32[Array, ""] | int,
    banned: Bool[Array, "V"],
    *,
    temperature: float | Float32[Array, ""],
    block: int,
    truncation: tuple[Any, Any, Any] | None = None,
    valid_vocab: int | None = None,
) -> tuple[Int32[Array, "n"], Float32[Array, "n"]]:
    """The next token of each sample, and its log-probability under the untruncated policy at this temperature.

    Draws by the Gumbel-max trick: argmax over v of z_v + Gumbel noise, whose noise is a function of (key, position, v)
    alone (`models.noise`). So a choice depends neither on the block size nor on the other rows.

    Args:
      keys: one key per sample.
      position: place of the token in the response.
      banned: ids that are never chosen.
      temperature: divides the logits; 0 takes the most likely token, and reports log-probabilities at temperature 1.
      block: vocabulary entries per block.
      truncation: None, or (top_k, top_p, min_p), numbers or traced scalars, -1, 1 and 0 being off. They need the
        sorted distribution: one [n, V] float32 array exists then, and is searched for the cut by bisection.
      valid_vocab: rows of `head` from here on are no vocabulary entries; None uses all.
    """
    valid = head.shape[0] if valid_vocab is None else valid_vocab
    head = head.astype(hidden.dtype)
    inverse = inverse_temperature(temperature)
    sampled = jnp.asarray(temperature) > 0
    if truncation is not None:
        block = head.shape[0]
    block = min(block, head.shape[0])

    def add_block(carry: tuple, i: Array) -> tuple[tuple, None]:
        top, total, best, best_id, best_logit = carry
        logits, entries, counted = block_logits(hidden, head, inverse, i, block, valid)
        new_top = jnp.maximum(top, logits.max(-1))
        total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(-1)
        allowed = counted & ~jax.lax.dynamic_slice_in_dim(banned, entries[0], block)
        scores = jnp.where(allowed, logits, _NEGATIVE)
        if truncation is not None:
            scores = _truncate(scores, *truncation)
        # A branch, so that greedy decoding does not pay for noise, and needs no program of its own.
        scores = jax.lax.cond(sampled, lambda x: x + gumbel(keys, position, entries), lambda x: x, scores)
        # Without the barrier XLA:CPU computes the noise once for the maximum and once more to find its place.
        scores = jax.lax.optimization_barrier(scores)
        peak = scores.max(-1)
        place = jnp.where(scores == peak[:, None], jnp.arange(block), block - 1).min(-1)
        better = peak > best
        carry = (
            new_top,
            total,
            jnp.maximum(peak, best),
            jnp.where(better, entries[0] + place, best_id),
            jnp.where(better, jnp.take_along_axis(logits, place[:, None], 1)[:, 0], best_logit),
        )
        return carry, None

    n = hidden.shape[0]
    low = jnp.full(n, _NEGATIVE)
    start = (low, jnp.zeros(n), low, jnp.zeros(n, jnp.int32), jnp.zeros(n))
    top, total, _, ids, logit = over_blocks(add_block, start, head.shape[0], block)
    return ids.astype(jnp.int32), logit - top - jnp.log(total)


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


def _truncate(logits: Float32[Array, "n V"], top_k: Any, top_p: Any, min_p: Any) -> Float32[Array, "n V"]:
    """Rules out what top-k, then top-p of the rest, then min-p cut off (the order of Hugging Face's warpers).

    top-k keeps the k largest logits, top-p the smallest set of most likely tokens that holds at least that share of
    the probability, min-p what has at least that share of the most likely token's probability. Tokens equal to the
    last one kept are kept with it.
    """
    V = logits.shape[-1]
    k = jnp.minimum(jnp.asarray(top_k), V)
    everything = jnp.ones(logits.shape, bool)
    # A branch skips the searches that are off: each reads the whole array 32 times.
    kept = jax.lax.cond(
        k > 0, lambda: _largest_cut(logits, lambda above: above.sum(-1, dtype=jnp.int32) >= k), lambda: everything
    )
    weights = jnp.where(kept, jnp.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    needed = jnp.asarray(top_p, jnp.float32) * weights.sum(-1)
    kept &= jax.lax.cond(
        jnp.asarray(top_p) < 1,
        lambda: _largest_cut(logits, lambda above: jnp.where(above, weights, 0.0).sum(-1) >= needed),
        lambda: everything,
    )
    kept &= weights >= jnp.asarray(min_p, jnp.float32)
    return jnp.where(kept, logits, _NEGATIVE)


def _largest_cut(x: Float32[Array, "n V"], enough: Callable[[Array], Array]) -> Bool[Array, "n V"]:
    """x >= cut in each row, for the largest cut that leaves `enough`: a bisection over the bits of float32.

    32 sums over the array, where a sort of 151,936 entries takes many times as long on every backend.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = np.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)

    def try_bit(n: Array, cut: Array) -> Array:
        larger = cut | (sign >> n.astype(jnp.uint32))
        return jnp.where(enough(ordered >= larger[:, None]), larger, cut)

    cut = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(x.shape[0], jnp.uint32))
    return ordered >= cut[:, None]
