"""Attention by XLA alone, on every platform: a row of one block at once, longer rows block by block.

Which keys a query sees is the caller's rule. Axes as in `models/attention.py`; queries are scaled and lie as
[B, K, J, T, C], J query heads to a key-value head. A backward pass computes the scores again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from vero_jax.models.kernels.common import NEGATIVE, delta
from vero_jax.models.layers import keep

Labels = Any
"""Tuple of Int32['B T'] arrays, the first of which is 0 at padding."""
Visible = Callable[[Labels, Labels, Int32[Array, "t"], Int32[Array, "s"]], Bool[Array, "B t s"]]
"""Says which keys a query sees, from the labels of both and their indices in the row."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def dense(q: Array, k: Array, v: Array, labels: Labels, visible: Visible) -> Array:
    """The whole row as one block, without table and loops."""
    return dense_forward(q, k, v, labels, visible)[0]


def dense_forward(q: Array, k: Array, v: Array, labels: Labels, visible: Visible) -> tuple:
    scores = jnp.where(_row_mask(labels, visible), _scores(q, k), NEGATIVE)
    top = scores.max(-1)
    weights = jnp.exp(scores - top[..., None])
    # Who sees nothing (padding) has weights of 1 here; a sum of 0 tells the lines below.
    total = jnp.where((labels[0] > 0)[:, None, None], weights.sum(-1), 0.0)
    out, lse = _normalised(_weighted(weights.astype(v.dtype), v), top, total)
    out, lse = keep(out.astype(v.dtype)), keep(lse)
    return out, (q, k, v, labels, out, lse)


def dense_backward(visible: Visible, kept: tuple, d_out: Array) -> tuple:
    q, k, v, labels, out, lse = kept
    d_q, d_k, d_v = _pair_gradients(q, k, v, _row_mask(labels, visible), lse, d_out, delta(d_out, out))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


dense.defvjp(dense_forward, dense_backward)


def _row_mask(labels: Labels, visible: Visible) -> Bool[Array, "B 1 1 T T"]:
    index = jnp.arange(labels[0].shape[1])
    return visible(labels, labels, index, index)[:, None, None]


def block_pairs(labels: Labels, block_visible: Callable[..., Array], block: int) -> Bool[Array, "B n n"]:
    """Which key blocks (last axis) the query blocks of each row may see.

    Blocks are judged by the extremes of their labels (padding aside): a few pairs too many cost time, and the mask
    inside the pair keeps the result right.
    """
    B = labels[0].shape[0]
    real = (labels[0] > 0).reshape(B, -1, block)
    low, high = [], []
    for label in labels:
        parts = label.reshape(B, -1, block)
        low.append(jnp.where(real, parts, jnp.iinfo(jnp.int32).max).min(-1))
        high.append(jnp.where(real, parts, -1).max(-1))
    return block_visible(tuple(low), tuple(high))


def block_table(labels: Labels, block_visible: Callable[..., Array], block: int) -> dict[str, Array]:
    """For every query block the key blocks it may see, and for every key block the query blocks that may see it.

    The same for all rows, which go through the blocks together.
    """
    pairs = block_pairs(labels, block_visible, block).any(0)

    def order(pairs: Array) -> Array:
        return jnp.argsort(~pairs, axis=-1, stable=True).astype(jnp.int32)

    return {
        "keys": order(pairs),
        "n_keys": pairs.sum(-1, dtype=jnp.int32),
        "queries": order(pairs.T),
        "n_queries": pairs.sum(0, dtype=jnp.int32),
    }


def _take(x: Array, i: Array, block: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis)


def _pair_mask(labels: Labels, i: Array, j: Array, visible: Visible, block: int) -> Bool[Array, "B 1 1 t s"]:
    query = tuple(_take(label, i, block, 1) for label in labels)
    key = tuple(_take(label, j, block, 1) for label in labels)
    offsets = jnp.arange(block)
    return visible(query, key, i * block + offsets, j * block + offsets)[:, None, None]


def _scores(q: Array, k: Array) -> Float32[Array, "B K J t s"]:
    B, K, J, t, C = q.shape
    rows = q.reshape(B, K, J * t, C)
    return jnp.einsum("bkxc,bksc->bkxs", rows, k, preferred_element_type=jnp.float32).reshape(B, K, J, t, -1)


def _weighted(weights: Float[Array, "B K J t s"], x: Float[Array, "B K s C"]) -> Float32[Array, "B K J t C"]:
    """Sums over the keys."""
    B, K, J, t, s = weights.shape
    rows = weights.reshape(B, K, J * t, s)
    return jnp.einsum("bkxs,bksc->bkxc", rows, x, preferred_element_type=jnp.float32).reshape(B, K, J, t, -1)


def _gathered(weights: Float[Array, "B K J t s"], x: Float[Array, "B K J t C"]) -> Float32[Array, "B K s C"]:
    """Sums over the queries."""
    B, K, J, t, s = weights.shape
    rows = weights.reshape(B, K, J * t, s), x.reshape(B, K, J * t, -1)
    return jnp.einsum("bkxs,bkxc->bksc", *rows, preferred_element_type=jnp.float32)


def _normalised(out: Array, top: Array, total: Array) -> tuple[Array, Array]:
    """Divides by the sum of the weights, and gives that sum's logarithm.

    Where the sum is empty the output is 0, and the logarithm infinite, so that all weights are 0 in the backward pass.
    """
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    return jnp.where(empty[..., None], 0.0, out / total[..., None]), jnp.where(empty, -NEGATIVE, top + jnp.log(total))


def _pair_gradients(
    q: Array, k: Array, v: Array, mask: Array, lse: Array, d_out: Array, delta: Array
) -> tuple[Float32[Array, "B K J t C"], Float32[Array, "B K s C"], Float32[Array, "B K s C"]]:
    """What a block of queries and a block of keys add to the gradients of q, k and v."""
    weights = jnp.exp(jnp.where(mask, _scores(q, k), NEGATIVE) - lse[..., None])
    d_scores = (weights * (_scores(d_out, v) - delta[..., None])).astype(q.dtype)
    return _weighted(d_scores, k), _gathered(d_scores, q), _gathered(weights.astype(v.dtype), d_out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def blocked(q: Array, k: Array, v: Array, labels: Labels, table: dict, visible: Visible, block: int) -> Array:
    return blocked_forward(q, k, v, labels, table, visible, block)[0]


def blocked_forward(q: Array, k: Array, v: Array, labels: Labels, table: dict, visible: Visible, block: int) -> tuple:
    B, K, J, T, C = q.shape

    def query_block(i: Array) -> tuple[Array, Array]:
        q_i = _take(q, i, block, 3)

        def add_key_block(n: Array, carry: tuple) -> tuple:
            top, total, out = carry
            j = table["keys"][i, n]
            k_j, v_j = _take(k, j, block, 2), _take(v, j, block, 2)
            mask = _pair_mask(labels, i, j, visible, block)
            scores = jnp.where(mask, _scores(q_i, k_j), NEGATIVE)
            new_top = jnp.maximum(top, scores.max(-1))
            weights = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0.0)
            shrink = jnp.exp(top - new_top)
            out = out * shrink[..., None] + _weighted(weights.astype(v.dtype), v_j)
            return new_top, total * shrink + weights.sum(-1), out

        shape = (B, K, J, block)
        start = (jnp.full(shape, NEGATIVE), jnp.zeros(shape), jnp.zeros((*shape, C)))
        top, total, out = jax.lax.fori_loop(0, table["n_keys"][i], add_key_block, start)
        out, lse = _normalised(out, top, total)
        return out.astype(v.dtype), lse

    out, lse = jax.lax.map(query_block, jnp.arange(T // block))
    out = out.transpose(1, 2, 3, 0, 4, 5).reshape(B, K, J, T, C)
    lse = lse.transpose(1, 2, 3, 0, 4).reshape(B, K, J, T)
    out, lse = keep(out), keep(lse)
    return out, (q, k, v, labels, table, out, lse)


def blocked_backward(visible: Visible, block: int, kept: tuple, d_out: Array) -> tuple:
    q, k, v, labels, table, out, lse = kept
    B, K, _, T, C = q.shape
    deltas = delta(d_out, out)

    def key_block(d_q: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
        k_j, v_j = _take(k, j, block, 2), _take(v, j, block, 2)

        def add_query_block(n: Array, carry: tuple) -> tuple:
            d_q, d_k, d_v = carry
            i = table["queries"][j, n]
            q_i, d_i, lse_i, delta_i = (_take(x, i, block, 3) for x in (q, d_out, lse, deltas))
            mask = _pair_mask(labels, i, j, visible, block)
            more_q, more_k, more_v = _pair_gradients(q_i, k_j, v_j, mask, lse_i, d_i, delta_i)
            d_q_i = _take(d_q, i, block, 3) + more_q
            return jax.lax.dynamic_update_slice_in_dim(d_q, d_q_i, i * block, 3), d_k + more_k, d_v + more_v

        zeros = jnp.zeros((B, K, block, C))
        d_q, d_k, d_v = jax.lax.fori_loop(0, table["n_queries"][j], add_query_block, (d_q, zeros, zeros))
        return d_q, (d_k, d_v)

    d_q, (d_k, d_v) = jax.lax.scan(key_block, jnp.zeros(q.shape), jnp.arange(T // block))

    def joined(blocks: Array) -> Array:
        return blocks.transpose(1, 2, 0, 3, 4).reshape(B, K, T, C)

    return d_q.astype(q.dtype), joined(d_k).astype(k.dtype), joined(d_v).astype(v.dtype), None, None


blocked.defvjp(blocked_forward, blocked_backward)
