"""Attention kernels for GPU (the Triton backend of Pallas), in the manner of FlashAttention-2 (Dao 2023, 2307.08691).

A program holds one block of queries (or keys) and loops over the blocks that can see it, from a table per row; it takes
each of them in parts, because registers hold two accumulators and the scores of one part only. Heads that are no power
of two wide get zeros behind them, because Triton has no other arrays.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Float32, Int32

from vero_jax.models.kernels.common import NEGATIVE, delta, dot, visible, widened

BLOCK = 128
_FORWARD_PART = 64
_BACKWARD_PART = 32


def forward(
    q: Float[Array, "B K J T C"],
    k: Float[Array, "B K T C"],
    v: Float[Array, "B K T C"],
    labels: Int32[Array, "B L T"],
    pairs: Bool[Array, "B n n"],
    interpret: bool = False,
) -> tuple[Float[Array, "B K J T C"], Float32[Array, "B K J T"]]:
    """Output, and the logarithm of each query's sum of exponentials. See the package's description."""
    B, K, J, T, C = q.shape
    n = pairs.shape[-1]
    size, width = T // n, pl.next_power_of_2(C)
    q, k, v = widened(width, q, k, v)
    table, counts = _table(pairs)

    def kernel(table: Any, counts: Any, q: Any, k: Any, v: Any, labels: Any, out: Any, lse: Any) -> None:
        i, part = pl.program_id(0), _part(_FORWARD_PART, size, q.dtype)
        queries = q[...]
        query, query_index = _labels(labels, i * size, size)

        def add(n: Any, carry: tuple) -> tuple:
            start = table[i, n] * size
            for offset in range(0, size, part):
                top, total, sums = carry
                at = pl.ds(start + offset, part)
                key, key_index = _labels(labels, start + offset, part)
                mask = _mask(query, key, query_index, key_index)
                scores = jnp.where(mask, dot(queries, k[at, :], (1, 1)), NEGATIVE)
                new_top = jnp.maximum(top, scores.max(1))
                weights = jnp.where(mask, jnp.exp(scores - new_top[:, None]), 0.0)
                shrink = jnp.exp(top - new_top)
                sums = sums * shrink[:, None] + dot(weights.astype(v.dtype), v[at, :], (1, 0))
                carry = new_top, total * shrink + weights.sum(1), sums
            return carry

        zeros = jnp.zeros((size,), jnp.float32)
        start = zeros + NEGATIVE, zeros, jnp.zeros((size, width), jnp.float32)
        top, total, sums = jax.lax.fori_loop(0, counts[i], add, start)
        empty = total == 0
        safe = jnp.where(empty, 1.0, total)
        out[...] = (sums / safe[:, None]).astype(out.dtype)
        lse[...] = jnp.where(empty, -NEGATIVE, top + jnp.log(safe))

    own = pl.BlockSpec((None, None, size, width), lambda i, b, h: (b, h, i, 0))
    out, lse = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct((B, K * J, T, width), q.dtype),
            jax.ShapeDtypeStruct((B, K * J, T), jnp.float32),
        ),
        grid=(n, B, K * J),
        in_specs=[*_row_specs(n), own, *(_keys_spec(T, width, J),) * 2, _labels_spec(labels)],
        out_specs=(own, pl.BlockSpec((None, None, size), lambda i, b, h: (b, h, i))),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=_stages(q.dtype)),
        interpret=interpret,
        name="attention_forward",
    )(table, counts, q.reshape(B, K * J, T, width), k, v, labels)
    return out.reshape(B, K, J, T, width)[..., :C], lse.reshape(B, K, J, T)


def backward(
    q: Float[Array, "B K J T C"],
    k: Float[Array, "B K T C"],
    v: Float[Array, "B K T C"],
    labels: Int32[Array, "B L T"],
    pairs: Bool[Array, "B n n"],
    out: Float[Array, "B K J T C"],
    lse: Float32[Array, "B K J T"],
    d_out: Float[Array, "B K J T C"],
    interpret: bool = False,
) -> tuple[Float[Array, "B K J T C"], Float[Array, "B K T C"], Float[Array, "B K T C"]]:
    """Gradients of q, k and v. The scores are computed again, once for the queries and once for the keys."""
    B, K, J, T, C = q.shape
    n = pairs.shape[-1]
    size, width = T // n, pl.next_power_of_2(C)
    deltas = delta(d_out, out)
    q, k, v, d_out = widened(width, q, k, v, d_out)

    def queries_kernel(
        table: Any, counts: Any, q: Any, k: Any, v: Any, d_out: Any, lse: Any, deltas: Any, labels: Any, d_q: Any
    ) -> None:
        i, part = pl.program_id(0), _part(_BACKWARD_PART, size, q.dtype)
        own = q[...], d_out[...], lse[...][:, None], deltas[...][:, None]
        query, query_index = _labels(labels, i * size, size)

        def add(n: Any, sums: Array) -> Array:
            start = table[i, n] * size
            for offset in range(0, size, part):
                at = pl.ds(start + offset, part)
                key, key_index = _labels(labels, start + offset, part)
                mask = _mask(query, key, query_index, key_index)
                keys = k[at, :]
                weights = jnp.exp(jnp.where(mask, dot(own[0], keys, (1, 1)), NEGATIVE) - own[2])
                d_scores = weights * (dot(own[1], v[at, :], (1, 1)) - own[3])
                sums += dot(d_scores.astype(k.dtype), keys, (1, 0))
            return sums

        sums = jax.lax.fori_loop(0, counts[i], add, jnp.zeros((size, width), jnp.float32))
        d_q[...] = sums.astype(d_q.dtype)

    def keys_kernel(
        table: Any, counts: Any, q: Any, k: Any, v: Any, d_out: Any, lse: Any, deltas: Any, labels: Any,
        d_k: Any, d_v: Any,
    ) -> None:  # fmt: skip
        j, part = pl.program_id(0), _part(_BACKWARD_PART, size, q.dtype)
        keys, values = k[...], v[...]
        key, key_index = _labels(labels, j * size, size)

        def add(step: Any, carry: tuple) -> tuple:
            # Not % and //: their rules for negative numbers do not lower.
            head, start = jax.lax.rem(step, jnp.int32(J)), table[j, jax.lax.div(step, jnp.int32(J))] * size
            for offset in range(0, size, part):
                k_sums, v_sums = carry
                at = pl.ds(start + offset, part)
                query, query_index = _labels(labels, start + offset, part)
                # Keys on the first axis: the two sums then need no array turned.
                mask = _mask(query, key, query_index, key_index, keys_first=True)
                queries, gradients = q[head, at, :], d_out[head, at, :]
                scores = jnp.where(mask, dot(keys, queries, (1, 1)), NEGATIVE)
                weights = jnp.exp(scores - lse[head, at][None])
                v_sums += dot(weights.astype(d_out.dtype), gradients, (1, 0))
                d_scores = weights * (dot(values, gradients, (1, 1)) - deltas[head, at][None])
                carry = k_sums + dot(d_scores.astype(q.dtype), queries, (1, 0)), v_sums
            return carry

        zeros = jnp.zeros((size, width), jnp.float32)
        k_sums, v_sums = jax.lax.fori_loop(0, counts[j] * J, add, (zeros, zeros))
        d_k[...], d_v[...] = k_sums.astype(d_k.dtype), v_sums.astype(d_v.dtype)

    heads = q.reshape(B, K * J, T, width), d_out.reshape(B, K * J, T, width)
    numbers = lse.reshape(B, K * J, T), deltas.reshape(B, K * J, T)
    own = pl.BlockSpec((None, None, size, width), lambda i, b, h: (b, h, i, 0))
    own_numbers = pl.BlockSpec((None, None, size), lambda i, b, h: (b, h, i))
    parameters = plgpu.CompilerParams(num_warps=8, num_stages=_stages(q.dtype))
    table, counts = _table(pairs)
    d_q = pl.pallas_call(
        queries_kernel,
        out_shape=jax.ShapeDtypeStruct(heads[0].shape, q.dtype),
        grid=(n, B, K * J),
        in_specs=[
            *(*_row_specs(n), own, *(_keys_spec(T, width, J),) * 2, own, own_numbers, own_numbers),
            _labels_spec(labels),
        ],
        out_specs=own,
        compiler_params=parameters,
        interpret=interpret,
        name="attention_backward_queries",
    )(table, counts, heads[0], k, v, heads[1], *numbers, labels)

    all_queries = pl.BlockSpec((None, None, J, T, width), lambda i, b, h: (b, h, 0, 0, 0))
    all_numbers = pl.BlockSpec((None, None, J, T), lambda i, b, h: (b, h, 0, 0))
    table, counts = _table(pairs.swapaxes(1, 2))
    d_k, d_v = pl.pallas_call(
        keys_kernel,
        out_shape=(jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        grid=(n, B, K),
        in_specs=[
            *(*_row_specs(n), all_queries, own, own, all_queries, all_numbers, all_numbers),
            _labels_spec(labels),
        ],
        out_specs=(own, own),
        compiler_params=parameters,
        interpret=interpret,
        name="attention_backward_keys",
    )(table, counts, q, k, v, d_out, lse, deltas, labels)
    return d_q.reshape(B, K, J, T, width)[..., :C], d_k[..., :C], d_v[..., :C]


def _table(pairs: Bool[Array, "B n n"]) -> tuple[Int32[Array, "B n n"], Int32[Array, "B n"]]:
    """For every block the blocks that it meets, these first, and how many they are."""
    return jnp.argsort(~pairs, axis=-1, stable=True).astype(jnp.int32), pairs.sum(-1, dtype=jnp.int32)


def _row_specs(n: int) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    table = pl.BlockSpec((None, n, n), lambda i, b, h: (b, 0, 0))
    return table, pl.BlockSpec((None, n), lambda i, b, h: (b, 0))


def _keys_spec(length: int, width: int, group: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, length, width), lambda i, b, h: (b, h // group, 0, 0))


def _labels_spec(labels: Int32[Array, "B L T"]) -> pl.BlockSpec:
    return pl.BlockSpec((None, *labels.shape[1:]), lambda i, b, h: (b, 0, 0))


def _stages(dtype: Any) -> int:
    """How many steps' keys are fetched ahead: float32 blocks fill the shared memory of an H100 with one."""
    return 2 if dtype == jnp.bfloat16 else 1


def _part(size: int, block: int, dtype: Any) -> int:
    """Tokens of a part: half of them for float32, whose blocks take twice the shared memory; Triton needs 16."""
    return min(block, max(16, size * 2 // jnp.dtype(dtype).itemsize))


def _labels(labels: Any, start: Any, size: int) -> tuple[list[Int32[Array, "t"]], Int32[Array, "t"]]:
    rows = [labels[label, pl.ds(start, size)] for label in range(labels.shape[0])]
    return rows, start + jnp.arange(size, dtype=jnp.int32)


def _mask(query: list, key: list, query_index: Array, key_index: Array, keys_first: bool = False) -> Bool[Array, "x y"]:
    if keys_first:
        return visible([x[None] for x in query], [x[:, None] for x in key], query_index[None], key_index[:, None])
    return visible([x[:, None] for x in query], [x[None] for x in key], query_index[:, None], key_index[None])
