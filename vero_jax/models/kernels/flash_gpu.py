"""FlashAttention-2 (Dao 2023, arXiv:2307.08691) over pairs of blocks that see each other, for GPUs (Triton).

A program has one block of queries (or of keys) and walks through the list of the blocks that it has to do with. Softmax
and sums are in float32. Axes: B rows, H query heads, K key-value heads, T tokens, C head dimension (a power of two), t
and s tokens of a query and a key block.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Float32, Int32

from vero_jax.models.kernels.blocks import NEGATIVE, block_pairs


def forward(
    q: Float[Array, "B H T C"],
    k: Float[Array, "B K T C"],
    v: Float[Array, "B K T C"],
    groups: Int32[Array, "B T"],
    branches: Int32[Array, "B T"],
    *,
    causal: bool,
    block: int,
    interpret: bool = False,
) -> tuple[Float[Array, "B H T C"], Float32[Array, "B H T"]]:
    """Attention of scaled queries, and the log-sum-exp of their scores; padding gives zeros, and 1e30.

    Args:
      block: tokens of a block; a power of two, at least 16, that divides T.
      interpret: run on any platform, slowly.
    """
    B, H, T, C = q.shape
    J, blocks = H // k.shape[1], T // block
    pairs, _ = block_pairs(groups, branches, block, causal=causal)
    row = pl.BlockSpec((None, T), lambda b, h, i: (b, 0))
    one_block = pl.BlockSpec((None, None, block, C), lambda b, h, i: (b, h, i, 0))
    keys = pl.BlockSpec((None, None, T, C), lambda b, h, i: (b, h // J, 0, 0))
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, causal=causal, block=block),
        grid=(B, H, blocks),
        in_specs=[*_table(blocks), row, row, one_block, keys, keys],
        out_specs=[one_block, pl.BlockSpec((None, None, block), lambda b, h, i: (b, h, i))],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, H, T), jnp.float32)],
        compiler_params=_parameters(C),
        interpret=interpret,
    )(*pairs, groups, branches, q, k, v)
    return out, lse


def backward(
    q: Float[Array, "B H T C"],
    k: Float[Array, "B K T C"],
    v: Float[Array, "B K T C"],
    groups: Int32[Array, "B T"],
    branches: Int32[Array, "B T"],
    lse: Float32[Array, "B H T"],
    delta: Float32[Array, "B H T"],
    d_out: Float[Array, "B H T C"],
    *,
    causal: bool,
    block: int,
    interpret: bool = False,
) -> tuple[Float32[Array, "B H T C"], Float32[Array, "B K T C"], Float32[Array, "B K T C"]]:
    """Gradients of q, k and v; the scores are computed again.

    Args:
      delta: sum over the head dimension of d_out x out.
    """
    B, H, T, C = q.shape
    K, blocks = k.shape[1], T // block
    J = H // K
    by_query, by_key = block_pairs(groups, branches, block, causal=causal)
    row = pl.BlockSpec((None, T), lambda b, h, i: (b, 0))
    one_block = pl.BlockSpec((None, None, block, C), lambda b, h, i: (b, h, i, 0))
    numbers = pl.BlockSpec((None, None, block), lambda b, h, i: (b, h, i))
    keys = pl.BlockSpec((None, None, T, C), lambda b, h, i: (b, h // J, 0, 0))
    d_q = pl.pallas_call(
        functools.partial(_query_gradient_kernel, causal=causal, block=block),
        grid=(B, H, blocks),
        in_specs=[*_table(blocks), row, row, one_block, keys, keys, numbers, numbers, one_block],
        out_specs=one_block,
        out_shape=jax.ShapeDtypeStruct(q.shape, jnp.float32),
        compiler_params=_parameters(C),
        interpret=interpret,
    )(*by_query, groups, branches, q, k, v, lse, delta, d_out)
    heads = pl.BlockSpec((None, J, T, C), lambda b, h, i: (b, h, 0, 0))
    head_numbers = pl.BlockSpec((None, J, T), lambda b, h, i: (b, h, 0))
    d_k, d_v = pl.pallas_call(
        functools.partial(_key_gradient_kernel, causal=causal, block=block, heads=J),
        grid=(B, K, blocks),
        in_specs=[*_table(blocks), row, row, heads, one_block, one_block, head_numbers, head_numbers, heads],
        out_specs=[one_block, one_block],
        out_shape=[jax.ShapeDtypeStruct(k.shape, jnp.float32)] * 2,
        compiler_params=_parameters(C),
        interpret=interpret,
    )(*by_key, groups, branches, q, k, v, lse, delta, d_out)
    return d_q, d_k, d_v


def _table(blocks: int) -> list[pl.BlockSpec]:
    """Of the program's own block: how many others, and which."""
    return [
        pl.BlockSpec((None, blocks), lambda b, h, i: (b, 0)),
        pl.BlockSpec((None, blocks, blocks), lambda b, h, i: (b, 0, 0)),
    ]


def _parameters(width: int) -> Any:
    return plgpu.CompilerParams(num_warps=4 if width <= 64 else 8, num_stages=2)


def _product(a: Array, b: Array) -> Float32[Array, "x y"]:
    # Float32 factors would be rounded to TF32 by default.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _mask(groups: Any, branches: Any, i: Any, j: Any, *, causal: bool, block: int) -> Array:
    """Which keys of block j the queries of block i see."""
    here, there = pl.ds(i * block, block), pl.ds(j * block, block)
    q_group, k_group = groups[here][:, None], groups[there][None, :]
    seen = (q_group == k_group) & (q_group > 0)
    if not causal:
        return seen
    q_branch, k_branch = branches[here][:, None], branches[there][None, :]
    places = jnp.arange(block)
    earlier = (j * block + places)[None, :] <= (i * block + places)[:, None]
    return seen & ((k_branch == 0) | (k_branch == q_branch)) & earlier


def _forward_kernel(
    counts: Any, listed: Any, groups: Any, branches: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *,
    causal: bool, block: int,
) -> None:  # fmt: skip
    i = pl.program_id(2)
    queries = q[...]

    def add(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, sums = carry
        j = listed[i, n]
        there = pl.ds(j * block, block)
        seen = _mask(groups, branches, i, j, causal=causal, block=block)
        scores = jnp.where(seen, _product(queries, k[there, :].T), NEGATIVE)
        new_top = jnp.maximum(top, scores.max(1))
        weights = jnp.where(seen, jnp.exp(scores - new_top[:, None]), 0.0)
        shrink = jnp.exp(top - new_top)
        sums = sums * shrink[:, None] + _product(weights.astype(v.dtype), v[there, :])
        return new_top, total * shrink + weights.sum(1), sums

    start = (
        jnp.full((block,), NEGATIVE, jnp.float32),
        jnp.zeros((block,), jnp.float32),
        jnp.zeros(queries.shape, jnp.float32),
    )
    top, total, sums = jax.lax.fori_loop(0, counts[i], add, start)
    empty = total == 0
    divisor = jnp.where(empty, 1.0, total)
    out[...] = (sums / divisor[:, None]).astype(out.dtype)
    lse[...] = jnp.where(empty, -NEGATIVE, top + jnp.log(divisor))


def _query_gradient_kernel(
    counts: Any, listed: Any, groups: Any, branches: Any, q: Any, k: Any, v: Any, lse: Any, delta: Any, d_out: Any,
    d_q: Any, *, causal: bool, block: int,
) -> None:  # fmt: skip
    i = pl.program_id(2)
    queries, d_outs, log_sums, deltas = q[...], d_out[...], lse[...], delta[...]

    def add(n: Array, sums: Array) -> Array:
        j = listed[i, n]
        there = pl.ds(j * block, block)
        keys = k[there, :]
        seen = _mask(groups, branches, i, j, causal=causal, block=block)
        weights = jnp.where(seen, jnp.exp(_product(queries, keys.T) - log_sums[:, None]), 0.0)
        d_scores = weights * (_product(d_outs, v[there, :].T) - deltas[:, None])
        return sums + _product(d_scores.astype(keys.dtype), keys)

    d_q[...] = jax.lax.fori_loop(0, counts[i], add, jnp.zeros(queries.shape, jnp.float32))


def _key_gradient_kernel(
    counts: Any, listed: Any, groups: Any, branches: Any, q: Any, k: Any, v: Any, lse: Any, delta: Any, d_out: Any,
    d_k: Any, d_v: Any, *, causal: bool, block: int, heads: int,
) -> None:  # fmt: skip
    j = pl.program_id(2)
    keys, values = k[...], v[...]

    def add(step: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        head, n = step % heads, step // heads
        i = listed[j, n]
        there = pl.ds(i * block, block)
        queries, d_outs = q[head, there, :], d_out[head, there, :]
        seen = _mask(groups, branches, i, j, causal=causal, block=block)
        scores = _product(queries, keys.T) - lse[head, there][:, None]
        weights = jnp.where(seen, jnp.exp(scores), 0.0)
        d_scores = weights * (_product(d_outs, values.T) - delta[head, there][:, None])
        more_k = _product(d_scores.astype(queries.dtype).T, queries)
        return sums[0] + more_k, sums[1] + _product(weights.astype(values.dtype).T, d_outs)

    zeros = jnp.zeros(keys.shape, jnp.float32)
    d_k[...], d_v[...] = jax.lax.fori_loop(0, counts[j] * heads, add, (zeros, zeros))
