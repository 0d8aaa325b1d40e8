"""FlashAttention-2 (Dao 2023, arXiv:2307.08691) over pairs of blocks that see each other, for TPUs (Mosaic).

The pairs come through scalar memory, so that the pipeline fetches just the blocks that are needed; the last axis of the
grid is as long as the longest list. Softmax and sums are in float32. Axes: B rows, H query heads, K key-value heads, T
tokens, C head dimension (a multiple of 128), t and s tokens of a query and a key block.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
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
      block: tokens of a block; a multiple of 128 that divides T.
      interpret: run on any platform, slowly.
    """
    B, H, T, C = q.shape
    J = H // k.shape[1]
    pairs, _ = block_pairs(groups, branches, block, causal=causal)
    specs = _Specs(block, C, J, T // block)
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, causal=causal, block=block, blocks=T // block),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, H, T // block, pairs.count.max()),
            in_specs=[specs.query(), specs.key(), specs.key(), specs.query_labels(), specs.key_labels()],
            out_specs=[specs.query(), specs.query(1)],
            scratch_shapes=[pltpu.VMEM((block, n), jnp.float32) for n in (1, 1, C)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, H, T, 1), jnp.float32),
        ],
        compiler_params=_parameters(4),
        interpret=interpret,
    )(*pairs.flat(), q, k, v, *_labels(groups, branches))
    return out, lse[..., 0]


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
    labels, wide = _labels(groups, branches), (lse[..., None], delta[..., None])
    specs = _Specs(block, C, J, blocks)
    options: dict[str, Any] = {"causal": causal, "block": block, "blocks": blocks}
    d_q = pl.pallas_call(
        functools.partial(_query_gradient_kernel, **options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, H, blocks, by_query.count.max()),
            in_specs=[
                specs.query(), specs.key(), specs.key(), specs.query_labels(), specs.key_labels(), specs.query(1),
                specs.query(1), specs.query(),
            ],
            out_specs=specs.query(),
            scratch_shapes=[pltpu.VMEM((block, C), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, jnp.float32),
        compiler_params=_parameters(4),
        interpret=interpret,
    )(*by_query.flat(), q, k, v, *labels, *wide, d_out)  # fmt: skip
    specs = _KeySpecs(block, C, J, blocks)
    d_k, d_v = pl.pallas_call(
        functools.partial(_key_gradient_kernel, **options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, blocks, J, by_key.count.max()),
            in_specs=[
                specs.query(), specs.key(), specs.key(), specs.query_labels(), specs.key_labels(), specs.query(1),
                specs.query(1), specs.query(),
            ],
            out_specs=[specs.key(), specs.key()],
            scratch_shapes=[pltpu.VMEM((block, C), jnp.float32)] * 2,
        ),
        out_shape=[jax.ShapeDtypeStruct(k.shape, jnp.float32)] * 2,
        compiler_params=_parameters(5),
        interpret=interpret,
    )(*by_key.flat(), q, k, v, *labels, *wide, d_out)  # fmt: skip
    return d_q, d_k, d_v


class _Specs:
    """Blocks for grids (row, query head, query block, number of the key block in the list)."""

    def __init__(self, block: int, width: int, heads_per_key: int, blocks: int) -> None:
        self.block, self.width, self.J, self.n = block, width, heads_per_key, blocks

    def _listed(self, b: Any, i: Any, n: Any, blocks: Any) -> Any:
        return blocks[(b * self.n + i) * self.n + n]

    def query(self, width: int | None = None) -> pl.BlockSpec:
        shape = (None, None, self.block, self.width if width is None else width)
        return pl.BlockSpec(shape, lambda b, h, i, n, count, blocks: (b, h, i, 0))

    def key(self) -> pl.BlockSpec:
        shape = (None, None, self.block, self.width)
        return pl.BlockSpec(shape, lambda b, h, i, n, count, blocks: (b, h // self.J, self._listed(b, i, n, blocks), 0))

    def query_labels(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.block, 2), lambda b, h, i, n, count, blocks: (b, i, 0))

    def key_labels(self) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, 2, self.block), lambda b, h, i, n, count, blocks: (b, 0, self._listed(b, i, n, blocks))
        )


class _KeySpecs(_Specs):
    """Blocks for grids (row, key head, key block, query head of it, number of the query block in the list)."""

    def query(self, width: int | None = None) -> pl.BlockSpec:
        shape = (None, None, self.block, self.width if width is None else width)
        return pl.BlockSpec(
            shape, lambda b, h, i, j, n, count, blocks: (b, h * self.J + j, self._listed(b, i, n, blocks), 0)
        )

    def key(self) -> pl.BlockSpec:
        shape = (None, None, self.block, self.width)
        return pl.BlockSpec(shape, lambda b, h, i, j, n, count, blocks: (b, h, i, 0))

    def query_labels(self) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, self.block, 2), lambda b, h, i, j, n, count, blocks: (b, self._listed(b, i, n, blocks), 0)
        )

    def key_labels(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, 2, self.block), lambda b, h, i, j, n, count, blocks: (b, 0, i))


def _parameters(axes: int) -> Any:
    # The last axis adds to what the others share; in the gradient of keys the query heads do too.
    free = 3
    return pltpu.CompilerParams(dimension_semantics=("parallel",) * free + ("arbitrary",) * (axes - free))


def _labels(groups: Array, branches: Array) -> tuple[Int32[Array, "B T 2"], Int32[Array, "B 2 T"]]:
    return jnp.stack([groups, branches], -1), jnp.stack([groups, branches], 1)


def _product(a: Array, b: Array, contract: tuple[int, int]) -> Float32[Array, "x y"]:
    # Float32 factors would be rounded to bfloat16 by default.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _mask(query_labels: Any, key_labels: Any, i: Any, j: Any, *, causal: bool, block: int) -> Array:
    q_labels, k_labels = query_labels[...], key_labels[...]
    q_group, k_group = q_labels[:, 0:1], k_labels[0:1, :]
    seen = (q_group == k_group) & (q_group > 0)
    if not causal:
        return seen
    shape = (block, block)
    rows = i * block + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    columns = j * block + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    q_branch, k_branch = q_labels[:, 1:2], k_labels[1:2, :]
    return seen & ((k_branch == 0) | (k_branch == q_branch)) & (columns <= rows)


def _forward_kernel(
    counts: Any, listed: Any, q: Any, k: Any, v: Any, q_labels: Any, k_labels: Any, out: Any, lse: Any, top: Any,
    total: Any, sums: Any, *, causal: bool, block: int, blocks: int,
) -> None:  # fmt: skip
    b, i, n = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(n == 0)
    def _() -> None:
        top[...] = jnp.full_like(top, NEGATIVE)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(n < counts[b * blocks + i])
    def _() -> None:
        j = listed[(b * blocks + i) * blocks + n]
        seen = _mask(q_labels, k_labels, i, j, causal=causal, block=block)
        scores = jnp.where(seen, _product(q[...], k[...], (1, 1)), NEGATIVE)
        new_top = jnp.maximum(top[...], scores.max(-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - new_top), 0.0)
        shrink = jnp.exp(top[...] - new_top)
        total[...] = total[...] * shrink + weights.sum(-1, keepdims=True)
        sums[...] = sums[...] * shrink + _product(weights.astype(v.dtype), v[...], (1, 0))
        top[...] = new_top

    @pl.when(n == pl.num_programs(3) - 1)
    def _() -> None:
        empty = total[...] == 0
        divisor = jnp.where(empty, 1.0, total[...])
        out[...] = (sums[...] / divisor).astype(out.dtype)
        lse[...] = jnp.where(empty, -NEGATIVE, top[...] + jnp.log(divisor))


def _weights(
    q: Any, k: Any, q_labels: Any, k_labels: Any, lse: Any, i: Any, j: Any, *, causal: bool, block: int
) -> Float32[Array, "t s"]:
    seen = _mask(q_labels, k_labels, i, j, causal=causal, block=block)
    return jnp.exp(jnp.where(seen, _product(q[...], k[...], (1, 1)), NEGATIVE) - lse[...])


def _query_gradient_kernel(
    counts: Any, listed: Any, q: Any, k: Any, v: Any, q_labels: Any, k_labels: Any, lse: Any, delta: Any, d_out: Any,
    d_q: Any, sums: Any, *, causal: bool, block: int, blocks: int,
) -> None:  # fmt: skip
    b, i, n = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(n == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    @pl.when(n < counts[b * blocks + i])
    def _() -> None:
        j = listed[(b * blocks + i) * blocks + n]
        weights = _weights(q, k, q_labels, k_labels, lse, i, j, causal=causal, block=block)
        d_scores = weights * (_product(d_out[...], v[...], (1, 1)) - delta[...])
        sums[...] += _product(d_scores.astype(k.dtype), k[...], (1, 0))

    @pl.when(n == pl.num_programs(3) - 1)
    def _() -> None:
        d_q[...] = sums[...]


def _key_gradient_kernel(
    counts: Any, listed: Any, q: Any, k: Any, v: Any, q_labels: Any, k_labels: Any, lse: Any, delta: Any, d_out: Any,
    d_k: Any, d_v: Any, sums_k: Any, sums_v: Any, *, causal: bool, block: int, blocks: int,
) -> None:  # fmt: skip
    b, i, head, n = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)

    @pl.when((n == 0) & (head == 0))
    def _() -> None:
        sums_k[...] = jnp.zeros_like(sums_k)
        sums_v[...] = jnp.zeros_like(sums_v)

    @pl.when(n < counts[b * blocks + i])
    def _() -> None:
        query = listed[(b * blocks + i) * blocks + n]
        weights = _weights(q, k, q_labels, k_labels, lse, query, i, causal=causal, block=block)
        d_scores = weights * (_product(d_out[...], v[...], (1, 1)) - delta[...])
        sums_v[...] += _product(weights.astype(v.dtype), d_out[...], (0, 0))
        sums_k[...] += _product(d_scores.astype(q.dtype), q[...], (0, 0))

    @pl.when((n == pl.num_programs(4) - 1) & (head == pl.num_programs(3) - 1))
    def _() -> None:
        d_k[...] = sums_k[...]
        d_v[...] = sums_v[...]


__all__ = ["backward", "forward"]
