"""Token choice: the next token of every lane, from one pass over the output head, a block of the vocabulary at a time.

The log-probability that is reported is that of the untruncated policy over the whole vocabulary, through the same
products as the learner's (`models.head`): penalties, banned ids and what top-p and its kin cut off shape the draw only.
Axes: n lanes, D model width, V vocabulary, b entries of a block, A alternatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from vero_jax.models.head import NEGATIVE, block_logits, inverse_temperature, over_blocks
from vero_jax.models.noise import gumbel

SEEN_IN_PROMPT = 1 << 20
"""Added to the count of a token that the prompt holds; no response has as many tokens."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Warping:
    """How the distribution of each lane is changed before a token is drawn; another value needs no other program.

    Penalties come first (on the logits), then the temperature, then top-k, top-p and min-p, in the order and with the
    meaning that Hugging Face and vLLM give them.
    """

    temperature: Float32[Array, "n"]
    """Divides the logits; 0 takes the most likely token, and reports log-probabilities at temperature 1."""
    top_k: Int32[Array, "n"]
    """The k most likely tokens stay; -1 is off."""
    top_p: Float32[Array, "n"]
    """The smallest set of tokens with at least that probability stays; 1 is off."""
    min_p: Float32[Array, "n"]
    """Tokens with at least that share of the largest probability stay; 0 is off."""
    presence: Float32[Array, "n"]
    """Taken from the logit of each token that the response holds."""
    frequency: Float32[Array, "n"]
    """The same, times how often it is there."""
    repetition: Float32[Array, "n"]
    """Divides the positive and multiplies the negative logits of tokens in prompt or response (Keskar et al. 2019,
    arXiv:1909.05858); 1 is off."""


class Choice(NamedTuple):
    """What was drawn, and how likely it was."""

    ids: Int32[Array, "n"]
    logprobs: Float32[Array, "n"]
    """Under the untruncated policy at the lane's temperature."""
    warped_logprobs: Float32[Array, "n"]
    """Under the distribution that was drawn from: after penalties, banned ids and truncation. 0 for a greedy choice."""
    top_ids: Int32[Array, "n A"]
    top_logprobs: Float32[Array, "n A"]
    """The most likely tokens under the untruncated policy."""


def choose_tokens(
    hidden: Float[Array, "n D"],
    head: Float[Array, "V D"],
    keys: UInt32[Array, "n 2"],
    position: Int32[Array, "n"] | Int32[Array, ""] | int,
    banned: Bool[Array, "V"],
    warping: Warping,
    *,
    block: int,
    truncated: bool = False,
    counts: Int32[Array, "n V"] | None = None,
    alternatives: int = 0,
    warped_logprobs: bool = False,
    valid_vocab: int | None = None,
) -> Choice:
    """The next token of each lane.

    Draws by the Gumbel-max trick: argmax over v of z_v + Gumbel noise, whose noise is a function of (key, position, v)
    alone (`models.noise`). So a choice depends neither on the block size nor on the other lanes.

    Args:
      keys: one key per lane.
      position: place of the token in its response.
      banned: ids that are never chosen.
      block: vocabulary entries per block.
      truncated: whether any lane may use top-k, top-p or min-p. They need the whole distribution: one [n, V] float32
        array exists then, and is searched for the cut by bisection.
      counts: how often each token is in the response so far, plus SEEN_IN_PROMPT if the prompt holds it; None: no lane
        has penalties.
      alternatives: A, how many most likely tokens to report; any number needs the [n, V] array.
      warped_logprobs: whether to report them; zeros otherwise.
      valid_vocab: rows of `head` from here on are no vocabulary entries; None uses all.
    """
    V = head.shape[0]
    valid = V if valid_vocab is None else valid_vocab
    head = head.astype(hidden.dtype)
    inverse = inverse_temperature(warping.temperature)[:, None]
    sampled = warping.temperature > 0
    block = V if truncated or alternatives else min(block, V)

    def add_block(carry: tuple, i: Array) -> tuple[tuple, None]:
        top, total, warped_top, warped_total, best, best_id, best_logit, best_warped, top_ids, top_logits = carry
        logits, entries, counted = block_logits(hidden, head, inverse, i, block, valid)
        top, total = _add_exponentials(top, total, logits)
        allowed = counted & ~jax.lax.dynamic_slice_in_dim(banned, entries[0], block)
        warped = logits
        if counts is not None:
            part = jax.lax.dynamic_slice_in_dim(counts, entries[0], block, 1)
            # Penalties are for logits before the temperature, so what they change is divided by it afterwards.
            warped = jnp.where(counted, _penalised(logits, part, inverse, warping), NEGATIVE)
        warped = jnp.where(allowed, warped, NEGATIVE)
        if truncated:
            warped = _truncate(warped, warping.top_k, warping.top_p, warping.min_p)
        if warped_logprobs:
            warped_top, warped_total = _add_exponentials(warped_top, warped_total, warped)

        def with_noise(x: Array) -> Array:
            return jnp.where(sampled[:, None], x + gumbel(keys, position, entries), x)

        # A branch, so that greedy decoding does not pay for noise, and needs no program of its own.
        scores = jax.lax.cond(sampled.any(), with_noise, lambda x: x, warped)
        # Without the barrier XLA:CPU computes the noise once for the maximum and once more to find its place.
        scores = jax.lax.optimization_barrier(scores)
        peak = scores.max(-1)
        place = jnp.where(scores == peak[:, None], jnp.arange(block), block - 1).min(-1)
        better = peak > best

        def at_place(x: Array) -> Array:
            return jnp.take_along_axis(x, place[:, None], 1)[:, 0]

        if alternatives:
            top_logits, top_ids = jax.lax.top_k(logits, alternatives)
        carry = (
            top,
            total,
            warped_top,
            warped_total,
            jnp.maximum(peak, best),
            jnp.where(better, entries[0] + place, best_id),
            jnp.where(better, at_place(logits), best_logit),
            jnp.where(better, at_place(warped), best_warped),
            top_ids,
            top_logits,
        )
        return carry, None

    n = hidden.shape[0]
    low, zero, none = jnp.full(n, NEGATIVE), jnp.zeros(n), jnp.zeros(n, jnp.int32)
    listed = jnp.zeros((n, alternatives), jnp.int32), jnp.zeros((n, alternatives))
    start = (low, zero, low, zero, low, none, zero, zero, *listed)
    ended = over_blocks(add_block, start, V, block)
    top, total, warped_top, warped_total, _, ids, logit, warped, top_ids, top_logits = ended
    lse = top + jnp.log(total)
    return Choice(
        ids.astype(jnp.int32),
        # The difference to the largest logit first: it is exact where it matters.
        logit - top - jnp.log(total),
        jnp.where(sampled, warped - warped_top - jnp.log(warped_total), 0.0) if warped_logprobs else zero,
        top_ids.astype(jnp.int32),
        top_logits - lse[:, None],
    )


def _add_exponentials(top: Array, total: Array, logits: Array) -> tuple[Array, Array]:
    """The largest logit and the sum of exponentials relative to it, with a block more."""
    new_top = jnp.maximum(top, logits.max(-1))
    return new_top, total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(-1)


def _penalised(logits: Array, counts: Array, inverse: Array, warping: Warping) -> Float32[Array, "n b"]:
    drawn = (counts & (SEEN_IN_PROMPT - 1)).astype(jnp.float32)
    factor = jnp.where(counts > 0, warping.repetition[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / factor, logits * factor)
    taken = warping.frequency[:, None] * drawn + jnp.where(drawn > 0, warping.presence[:, None], 0.0)
    return logits - taken * inverse


def _truncate(
    logits: Float32[Array, "n V"],
    top_k: Int32[Array, "n"],
    top_p: Float32[Array, "n"],
    min_p: Float32[Array, "n"],
) -> Float32[Array, "n V"]:
    """Rules out what top-k, then top-p of the rest, then min-p cut off (the order of Hugging Face's warpers).

    Tokens equal to the last one kept are kept with it.
    """
    V = logits.shape[-1]
    k = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)
    everything = jnp.ones(logits.shape, bool)
    # A branch skips the searches that are off in all lanes: each reads the whole array 32 times.
    kept = jax.lax.cond(
        (k < V).any(),
        lambda: _largest_cut(logits, lambda above: above.sum(-1, dtype=jnp.int32) >= k) | (k == V)[:, None],
        lambda: everything,
    )
    weights = jnp.where(kept, jnp.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    needed = top_p * weights.sum(-1)
    kept &= jax.lax.cond(
        (top_p < 1).any(),
        lambda: (
            _largest_cut(logits, lambda above: jnp.where(above, weights, 0.0).sum(-1) >= needed) | (top_p >= 1)[:, None]
        ),
        lambda: everything,
    )
    kept &= weights >= min_p[:, None]
    return jnp.where(kept, logits, NEGATIVE)


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
