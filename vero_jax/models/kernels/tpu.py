"""Attention kernels for TPU, in the manner of FlashAttention-2 (Dao 2023, arXiv:2307.08691).

The grid's third axis runs over a list of the pairs of blocks that can see each other, one list per row, which lies in
scalar memory before a kernel starts; its length is the longest row's, known when the program runs. A step past the end
of a shorter list repeats that list's last pair, so that nothing is loaded, and computes nothing.

Scores are computed with keys on the first axis: what belongs to a query (its maximum, sum, label) then is a row along
the lanes, as it lies in memory, and reductions over keys are sums of registers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Float32, Int32

from vero_jax.models.kernels.common import NEGATIVE, delta, dot, visible, widened

LANES = 128
MAX_PAIRS = 2**16
"""Pairs of blocks in the lists of all rows: 4 bytes each, in scalar memory of 1 MiB."""

_SHIFT = 16
"""A pair is one number: the block that results are summed for, times 2^16, plus the block that is visited."""


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
    size = T // pairs.shape[-1]
    width = C + -C % LANES
    q, k, v = widened(width, q, k, v)
    steps, counts, longest = _steps(pairs)
    spec = _Specs(size, width, labels.shape[1], J, pairs.shape[-1] ** 2)
    out, lse = pl.pallas_call(
        _forward_kernel,
        out_shape=(
            jax.ShapeDtypeStruct((B, K * J, T, width), q.dtype),
            jax.ShapeDtypeStruct((B, K * J, 1, T), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K * J, longest),
            in_specs=[spec.own(), spec.visited_keys(), spec.visited_keys(), spec.own_labels(), spec.visited_labels()],
            out_specs=[spec.own(), spec.own_numbers()],
            scratch_shapes=[
                pltpu.VMEM((1, size), jnp.float32),
                pltpu.VMEM((1, size), jnp.float32),
                pltpu.VMEM((width, size), jnp.float32),
            ],
        ),
        compiler_params=_parameters(3),
        interpret=interpret,
        name="attention_forward",
    )(steps, counts, q.reshape(B, K * J, T, width), k, v, labels, labels)
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
    size = T // pairs.shape[-1]
    width = C + -C % LANES
    numbers = [x.reshape(B, K * J, 1, T) for x in (lse, delta(d_out, out))]
    q, k, v, d_out = widened(width, q, k, v, d_out)
    q, d_out = (x.reshape(B, K * J, T, width) for x in (q, d_out))
    spec = _Specs(size, width, labels.shape[1], J, pairs.shape[-1] ** 2)

    steps, counts, longest = _steps(pairs)
    d_q = pl.pallas_call(
        _queries_kernel,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K * J, longest),
            in_specs=[
                *(spec.own(), spec.visited_keys(), spec.visited_keys(), spec.own()),
                *(spec.own_numbers(), spec.own_numbers(), spec.own_labels(), spec.visited_labels()),
            ],
            out_specs=spec.own(),
            scratch_shapes=[pltpu.VMEM((width, size), jnp.float32)],
        ),
        compiler_params=_parameters(3),
        interpret=interpret,
        name="attention_backward_queries",
    )(steps, counts, q, k, v, d_out, *numbers, labels, labels)

    steps, counts, longest = _steps(pairs.swapaxes(1, 2))
    d_k, d_v = pl.pallas_call(
        _keys_kernel,
        out_shape=(jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, longest, J),
            in_specs=[
                *(spec.visited_queries(), spec.own(), spec.own(), spec.visited_queries()),
                *(spec.visited_numbers(), spec.visited_numbers(), spec.visited_labels(), spec.own_labels()),
            ],
            out_specs=[spec.own(), spec.own()],
            scratch_shapes=[pltpu.VMEM((size, width), jnp.float32), pltpu.VMEM((size, width), jnp.float32)],
        ),
        compiler_params=_parameters(4),
        interpret=interpret,
        name="attention_backward_keys",
    )(steps, counts, q, k, v, d_out, *numbers, labels, labels)
    return d_q.reshape(B, K, J, T, width)[..., :C], d_k[..., :C], d_v[..., :C]


def _steps(pairs: Bool[Array, "B n n"]) -> tuple[Int32[Array, "B*n*n"], Int32[Array, "B"], Int32[Array, ""]]:
    """Every row's list of pairs, in the order of their first blocks; how long each list is; the longest of them.

    A block that sees nothing meets itself, so that its zeros are written.
    """
    B, n, _ = pairs.shape
    flat = (pairs | jnp.eye(n, dtype=bool)).reshape(B, n * n)
    counts = flat.sum(-1, dtype=jnp.int32)
    order = jnp.argsort(~flat, axis=-1, stable=True).astype(jnp.int32)
    order = jnp.take_along_axis(order, jnp.minimum(jnp.arange(n * n), counts[:, None] - 1), axis=-1)
    return ((order // n << _SHIFT) + order % n).reshape(-1), counts, counts.max()


class _Specs:
    """Which block of each array a step needs. `own`: of the block that results are summed for; else the visited one."""

    def __init__(self, size: int, width: int, labels: int, group: int, stride: int) -> None:
        self.size, self.width, self.labels, self.group, self.stride = size, width, labels, group, stride

    def _own(self, steps: Any, b: Any, p: Any) -> Any:
        return steps[b * self.stride + p] >> _SHIFT

    def _visited(self, steps: Any, b: Any, p: Any) -> Any:
        return steps[b * self.stride + p] & ((1 << _SHIFT) - 1)

    def own(self) -> pl.BlockSpec:
        index = lambda b, h, p, *rest: (b, h, self._own(rest[-2], b, p), 0)  # noqa: E731
        return pl.BlockSpec((1, 1, self.size, self.width), index)

    def own_numbers(self) -> pl.BlockSpec:
        index = lambda b, h, p, *rest: (b, h, 0, self._own(rest[-2], b, p))  # noqa: E731
        return pl.BlockSpec((1, 1, 1, self.size), index)

    def own_labels(self) -> pl.BlockSpec:
        index = lambda b, h, p, *rest: (b, 0, self._own(rest[-2], b, p))  # noqa: E731
        return pl.BlockSpec((1, self.labels, self.size), index)

    def visited_keys(self) -> pl.BlockSpec:
        index = lambda b, h, p, *rest: (b, h // self.group, self._visited(rest[-2], b, p), 0)  # noqa: E731
        return pl.BlockSpec((1, 1, self.size, self.width), index)

    def visited_labels(self) -> pl.BlockSpec:
        index = lambda b, h, p, *rest: (b, 0, self._visited(rest[-2], b, p))  # noqa: E731
        return pl.BlockSpec((1, self.labels, self.size), index)

    def visited_queries(self) -> pl.BlockSpec:
        index = lambda b, h, p, j, steps, _: (b, h * self.group + j, self._visited(steps, b, p), 0)  # noqa: E731
        return pl.BlockSpec((1, 1, self.size, self.width), index)

    def visited_numbers(self) -> pl.BlockSpec:
        index = lambda b, h, p, j, steps, _: (b, h * self.group + j, 0, self._visited(steps, b, p))  # noqa: E731
        return pl.BlockSpec((1, 1, 1, self.size), index)


def _parameters(axes: int) -> pltpu.CompilerParams:
    semantics = [pltpu.PARALLEL] * 2 + [pltpu.ARBITRARY] * (axes - 2)
    return pltpu.CompilerParams(dimension_semantics=semantics)


def _step(steps: Any, counts: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The pair of this step, whether it is the first or last of its own block, and whether it is on the list."""
    b, p = pl.program_id(0), pl.program_id(2)
    stride = steps.shape[0] // counts.shape[0]
    at, end = b * stride + p, counts[b] - 1
    own = steps[at] >> _SHIFT
    first = (p == 0) | (steps[jnp.maximum(at - 1, 0)] >> _SHIFT != own)
    last = (p == end) | (steps[jnp.minimum(at + 1, steps.shape[0] - 1)] >> _SHIFT != own)
    return own, steps[at] & ((1 << _SHIFT) - 1), first, last, p <= end


def _mask(query_labels: Any, key_labels: Any, query_block: Any, key_block: Any) -> Bool[Array, "s t"]:
    size = query_labels.shape[-1]
    query = [query_labels[0, i : i + 1, :] for i in range(query_labels.shape[1])]
    key = [_column(key_labels[0, i : i + 1, :]) for i in range(key_labels.shape[1])]
    query_index = query_block * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    key_index = key_block * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    return visible(query, key, query_index, key_index)


def _column(row: Int32[Array, "1 s"]) -> Int32[Array, "s 1"]:
    """Mosaic transposes whole registers only, so the row is written LANES times first."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def _forward_kernel(
    steps: Any, counts: Any, q: Any, k: Any, v: Any, query_labels: Any, key_labels: Any,
    out: Any, lse: Any, top: Any, total: Any, sums: Any,
) -> None:  # fmt: skip
    query_block, key_block, first, last, listed = _step(steps, counts)

    @pl.when(listed & first)
    def _() -> None:
        top[...] = jnp.full_like(top, NEGATIVE)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(listed)
    def _() -> None:
        mask = _mask(query_labels, key_labels, query_block, key_block)
        scores = jnp.where(mask, dot(k[0, 0], q[0, 0], (1, 1)), NEGATIVE)
        new_top = jnp.maximum(top[...], scores.max(0, keepdims=True))
        weights = jnp.where(mask, jnp.exp(scores - new_top), 0.0)
        shrink = jnp.exp(top[...] - new_top)
        top[...] = new_top
        total[...] = total[...] * shrink + weights.sum(0, keepdims=True)
        sums[...] = sums[...] * shrink + dot(v[0, 0], weights.astype(v.dtype), (0, 0))

    @pl.when(listed & last)
    def _() -> None:
        empty = total[...] == 0
        safe = jnp.where(empty, 1.0, total[...])
        out[0, 0] = (sums[...] / safe).T.astype(out.dtype)
        lse[0, 0] = jnp.where(empty, -NEGATIVE, top[...] + jnp.log(safe))


def _weights_and_gradients(
    q: Any, k: Any, v: Any, d_out: Any, lse: Any, deltas: Any, mask: Bool[Array, "s t"]
) -> tuple[Float32[Array, "s t"], Float32[Array, "s t"]]:
    """The weights of a pair of blocks, and the gradients of their scores."""
    weights = jnp.exp(jnp.where(mask, dot(k[0, 0], q[0, 0], (1, 1)), NEGATIVE) - lse[0, 0])
    return weights, weights * (dot(v[0, 0], d_out[0, 0], (1, 1)) - deltas[0, 0])


def _queries_kernel(
    steps: Any, counts: Any, q: Any, k: Any, v: Any, d_out: Any, lse: Any, deltas: Any, query_labels: Any,
    key_labels: Any, d_q: Any, sums: Any,
) -> None:  # fmt: skip
    query_block, key_block, first, last, listed = _step(steps, counts)

    @pl.when(listed & first)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    @pl.when(listed)
    def _() -> None:
        mask = _mask(query_labels, key_labels, query_block, key_block)
        _, d_scores = _weights_and_gradients(q, k, v, d_out, lse, deltas, mask)
        sums[...] += dot(k[0, 0], d_scores.astype(k.dtype), (0, 0))

    @pl.when(listed & last)
    def _() -> None:
        d_q[0, 0] = sums[...].T.astype(d_q.dtype)


def _keys_kernel(
    steps: Any, counts: Any, q: Any, k: Any, v: Any, d_out: Any, lse: Any, deltas: Any, query_labels: Any,
    key_labels: Any, d_k: Any, d_v: Any, k_sums: Any, v_sums: Any,
) -> None:  # fmt: skip
    key_block, query_block, first, last, listed = _step(steps, counts)
    head, heads = pl.program_id(3), pl.num_programs(3)

    @pl.when(listed & first & (head == 0))
    def _() -> None:
        k_sums[...] = jnp.zeros_like(k_sums)
        v_sums[...] = jnp.zeros_like(v_sums)

    @pl.when(listed)
    def _() -> None:
        mask = _mask(query_labels, key_labels, query_block, key_block)
        weights, d_scores = _weights_and_gradients(q, k, v, d_out, lse, deltas, mask)
        v_sums[...] += dot(weights.astype(d_out.dtype), d_out[0, 0], (1, 0))
        k_sums[...] += dot(d_scores.astype(q.dtype), q[0, 0], (1, 0))

    @pl.when(listed & last & (head == heads - 1))
    def _() -> None:
        d_k[0, 0] = k_sums[...].astype(d_k.dtype)
        d_v[0, 0] = v_sums[...].astype(d_v.dtype)
