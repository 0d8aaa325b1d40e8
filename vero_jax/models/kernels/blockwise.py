"""Attention by XLA alone, on every platform: a row of one block at once, longer rows block by block.

Which keys a query sees is the caller's `Rule`. Axes as in `models/attention.py`; queries are scaled and lie as
[B, K, J, T, C], J query heads to a key-value head. A backward pass computes the scores again.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which keys a query sees: between tokens, and between blocks, which are judged by the extremes of their labels.

    Attributes:
      sees: (labels of t queries, of s keys, their indices in the row) to Bool['B t s'].
      some: (lowest labels of the n blocks, highest labels) to Bool['B n n']: whether a query block (axis 1) may see
        something of a key block (axis 2). Pairs too many cost time and change nothing.
      every: the same for whether it surely sees all of it, if neither block has padding. Pairs too few cost time.
    """

    sees: Callable[[Labels, Labels, Int32[Array, "t"], Int32[Array, "s"]], Bool[Array, "B t s"]]
    some: Callable[[Labels, Labels], Bool[Array, "B n n"]]
    every: Callable[[Labels, Labels], Bool[Array, "B n n"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def dense(q: Array, k: Array, v: Array, labels: Labels, rule: Rule) -> Array:
    """The whole row as one block, without table and loops."""
    return dense_forward(q, k, v, labels, rule)[0]


def dense_forward(q: Array, k: Array, v: Array, labels: Labels, rule: Rule) -> tuple:
    scores = jnp.where(_row_mask(labels, rule), _scores(q, k), NEGATIVE)
    top = scores.max(-1)
    weights = jnp.exp(scores - top[..., None])
    # Who sees nothing (padding) has weights of 1 here; a sum of 0 tells the lines below.
    total = jnp.where((labels[0] > 0)[:, None, None], weights.sum(-1), 0.0)
    out, lse = _normalised(_weighted(weights.astype(v.dtype), v), top, total)
    out, lse = keep(out.astype(v.dtype)), keep(lse)
    return out, (q, k, v, labels, out, lse)


def dense_backward(rule: Rule, kept: tuple, d_out: Array) -> tuple:
    q, k, v, labels, out, lse = kept
    queries = q, d_out, lse, delta(d_out, out), _turned(q), _turned(d_out)
    d_q, d_k, d_v = _pair_gradients(queries, (k, v), _row_mask(labels, rule))
    return d_q.astype(q.dtype), d_k.mT.astype(k.dtype), d_v.mT.astype(v.dtype), None


dense.defvjp(dense_forward, dense_backward)


def _row_mask(labels: Labels, rule: Rule) -> Bool[Array, "B 1 1 T T"]:
    index = jnp.arange(labels[0].shape[1])
    return rule.sees(labels, labels, index, index)[:, None, None]


def block_pairs(labels: Labels, rule: Rule, block: int) -> tuple[Bool[Array, "B n n"], Bool[Array, "B n n"]]:
    """Which key blocks (last axis) the query blocks of each row may see something of, and of which they see all."""
    B = labels[0].shape[0]
    real = (labels[0] > 0).reshape(B, -1, block)
    low, high = [], []
    for label in labels:
        parts = label.reshape(B, -1, block)
        low.append(jnp.where(real, parts, jnp.iinfo(jnp.int32).max).min(-1))
        high.append(jnp.where(real, parts, -1).max(-1))
    full = real.all(-1)
    every = rule.every(tuple(low), tuple(high)) & full[:, :, None] & full[:, None]
    return rule.some(tuple(low), tuple(high)), every


def block_table(labels: Labels, rule: Rule, block: int) -> dict[str, Array]:
    """For every query block the key blocks it may see, and for every key block the query blocks that may see it.

    Those that need no mask come first. The same for all rows, which go through the blocks together.
    """
    some, every = block_pairs(labels, rule, block)
    some, every = some.any(0), every.all(0)
    rank = jnp.where(every, 0, jnp.where(some, 1, 2))
    return {
        "keys": jnp.argsort(rank, axis=1, stable=True).astype(jnp.int32),
        "whole_keys": every.sum(1, dtype=jnp.int32),
        "n_keys": some.sum(1, dtype=jnp.int32),
        "queries": jnp.argsort(rank.T, axis=1, stable=True).astype(jnp.int32),
        "whole_queries": every.sum(0, dtype=jnp.int32),
        "n_queries": some.sum(0, dtype=jnp.int32),
    }


def _blocks(x: Array, block: int, axis: int) -> Array:
    """[n, ..., block, ...]: a block is then one piece of memory."""
    axis %= x.ndim
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :]), axis, 0)


def _joined(blocks: Float[Array, "n B K ... block C"]) -> Float[Array, "B K ... T C"]:
    """The way back."""
    x = jnp.moveaxis(blocks, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _turned(x: Float[Array, "B K J T C"]) -> Float[Array, "B K C J T"]:
    return jnp.moveaxis(x, -1, 2)


def _scores(q: Float[Array, "B K J t C"], k: Float[Array, "B K s C"]) -> Float32[Array, "B K J t s"]:
    B, K, J, t, C = q.shape
    rows = q.reshape(B, K, J * t, C)
    return jnp.einsum("bkxc,bksc->bkxs", rows, k, preferred_element_type=jnp.float32).reshape(B, K, J, t, -1)


def _weighted(weights: Float[Array, "B K J t s"], x: Float[Array, "B K s C"]) -> Float32[Array, "B K J t C"]:
    """Sums over the keys."""
    B, K, J, t, s = weights.shape
    rows = weights.reshape(B, K, J * t, s)
    return jnp.einsum("bkxs,bksc->bkxc", rows, x, preferred_element_type=jnp.float32).reshape(B, K, J, t, -1)


def _gathered(weights: Float[Array, "B K J t s"], x: Float[Array, "B K C J t"]) -> Float32[Array, "B K C s"]:
    """Sums over the queries. In this order: XLA:CPU has no fast product of a transposed left factor."""
    B, K, J, t, s = weights.shape
    rows = x.reshape(B, K, -1, J * t), weights.reshape(B, K, J * t, s)
    return jnp.einsum("bkcx,bkxs->bkcs", *rows, preferred_element_type=jnp.float32)


def _normalised(
    out: Float32[Array, "B K J t C"], top: Float32[Array, "B K J t"], total: Float32[Array, "B K J t"]
) -> tuple[Float32[Array, "B K J t C"], Float32[Array, "B K J t"]]:
    """Divides by the sum of the weights, and gives that sum's logarithm.

    Where the sum is empty the output is 0, and the logarithm infinite, so that all weights are 0 in the backward pass.
    """
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    return jnp.where(empty[..., None], 0.0, out / total[..., None]), jnp.where(empty, -NEGATIVE, top + jnp.log(total))


def _pair_gradients(
    queries: tuple[Array, ...], keys: tuple[Array, Array], mask: Array | None
) -> tuple[Float32[Array, "B K J t C"], Float32[Array, "B K C s"], Float32[Array, "B K C s"]]:
    """What a block of queries and a block of keys add to the gradients of q, k and v.

    Of the queries it takes q, the gradient of the output, the log-sum-exp, `delta`, and the first two `_turned`. No
    mask: all see all.
    """
    (q, d_out, lse, deltas, q_turned, d_out_turned), (k, v) = queries, keys
    scores = _scores(q, k)
    weights = jnp.exp((scores if mask is None else jnp.where(mask, scores, NEGATIVE)) - lse[..., None])
    d_scores = (weights * (_scores(d_out, v) - deltas[..., None])).astype(q.dtype)
    return _weighted(d_scores, k), _gathered(d_scores, q_turned), _gathered(weights.astype(v.dtype), d_out_turned)


def _mask_of(labels: Labels, rule: Rule, block: int) -> Callable[[Array, Array], Bool[Array, "B 1 1 t s"]]:
    parts, offsets = tuple(_blocks(label, block, 1) for label in labels), jnp.arange(block)

    def mask(i: Array, j: Array) -> Array:
        query, key = tuple(part[i] for part in parts), tuple(part[j] for part in parts)
        return rule.sees(query, key, i * block + offsets, j * block + offsets)[:, None, None]

    return mask


def blocked_forward(
    q: Float[Array, "B K J T C"],
    k: Float[Array, "B K T C"],
    v: Float[Array, "B K T C"],
    labels: Labels,
    rule: Rule,
    block: int,
) -> tuple[Float[Array, "B K J T C"], Float32[Array, "B K J T"]]:
    """Output, and the logarithm of each query's sum of exponentials. T is a multiple of the block."""
    B, K, J, _, C = q.shape
    table = block_table(labels, rule, block)
    mask_of = _mask_of(labels, rule, block)
    queries, keys, values = _blocks(q, block, 3), _blocks(k, block, 2), _blocks(v, block, 2)

    def query_block(i: Array) -> tuple[Array, Array]:
        q_i = queries[i]

        def add_key_block(masked: bool, n: Array, carry: tuple) -> tuple:
            top, total, out = carry
            j = table["keys"][i, n]
            scores = _scores(q_i, keys[j])
            if masked:
                mask = mask_of(i, j)
                scores = jnp.where(mask, scores, NEGATIVE)
            new_top = jnp.maximum(top, scores.max(-1))
            weights = jnp.exp(scores - new_top[..., None])
            if masked:  # a query that has seen nothing so far has weights of 1 for all that it may not see
                weights = jnp.where(mask, weights, 0.0)
            shrink = jnp.exp(top - new_top)
            out = out * shrink[..., None] + _weighted(weights.astype(v.dtype), values[j])
            return new_top, total * shrink + weights.sum(-1), out

        shape = (B, K, J, block)
        carry = (jnp.full(shape, NEGATIVE), jnp.zeros(shape), jnp.zeros((*shape, C)))
        top, total, out = _two_loops(add_key_block, table["whole_keys"][i], table["n_keys"][i], carry)
        out, lse = _normalised(out, top, total)
        return out.astype(v.dtype), lse

    out, lse = jax.lax.map(query_block, jnp.arange(len(queries)))
    return _joined(out), jnp.moveaxis(lse, 0, -2).reshape(q.shape[:-1])


def blocked_backward(
    q: Float[Array, "B K J T C"],
    k: Float[Array, "B K T C"],
    v: Float[Array, "B K T C"],
    labels: Labels,
    out: Float[Array, "B K J T C"],
    lse: Float32[Array, "B K J T"],
    d_out: Float[Array, "B K J T C"],
    rule: Rule,
    block: int,
) -> tuple[Float[Array, "B K J T C"], Float[Array, "B K T C"], Float[Array, "B K T C"]]:
    """Gradients of q, k and v."""
    B, K, J, _, C = q.shape
    table = block_table(labels, rule, block)
    mask_of = _mask_of(labels, rule, block)
    queries = tuple(_blocks(x, block, 3) for x in (q, d_out, lse, delta(d_out, out)))
    queries += tuple(_blocks(_turned(x), block, 4) for x in (q, d_out))
    keys = _blocks(k, block, 2), _blocks(v, block, 2)

    def key_block(d_q: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
        k_j, v_j = keys[0][j], keys[1][j]

        def add_query_block(masked: bool, n: Array, carry: tuple) -> tuple:
            d_q, d_k, d_v = carry
            i = table["queries"][j, n]
            mask = mask_of(i, j) if masked else None
            more_q, more_k, more_v = _pair_gradients(tuple(x[i] for x in queries), (k_j, v_j), mask)
            return d_q.at[i].add(more_q), d_k + more_k, d_v + more_v

        zeros = jnp.zeros((B, K, C, block))
        carry = (d_q, zeros, zeros)
        d_q, d_k, d_v = _two_loops(add_query_block, table["whole_queries"][j], table["n_queries"][j], carry)
        return d_q, (d_k, d_v)

    n = len(keys[0])
    d_q, (d_k, d_v) = jax.lax.scan(key_block, jnp.zeros((n, B, K, J, block, C)), jnp.arange(n))
    return _joined(d_q).astype(q.dtype), _joined(d_k.mT).astype(k.dtype), _joined(d_v.mT).astype(v.dtype)


def _two_loops(body: Callable[[bool, Array, tuple], tuple], whole: Array, all_: Array, carry: tuple) -> tuple:
    """body(False, n, carry) for the pairs that need no mask, then body(True, n, carry) for the others."""
    carry = jax.lax.fori_loop(0, whole, functools.partial(body, False), carry)
    return jax.lax.fori_loop(whole, all_, functools.partial(body, True), carry)
