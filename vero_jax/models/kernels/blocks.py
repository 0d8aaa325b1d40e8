"""Which blocks of a row see each other, and the rule inside a pair of blocks: what both kernels share.

Axes: B rows, T tokens, n blocks of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

NEGATIVE = -1e30
"""Stands for minus infinity: exp gives 0, and the difference of two is 0 and not NaN."""


class Pairs(NamedTuple):
    """For every block the blocks that it has to do with, in rising order; the last one is repeated behind the count."""

    count: Int32[Array, "B n"]
    blocks: Int32[Array, "B n n"]

    def flat(self) -> tuple[Int32[Array, "m"], Int32[Array, "k"]]:
        """As vectors, for scalar memory."""
        return self.count.reshape(-1), self.blocks.reshape(-1)


def block_pairs(
    groups: Int32[Array, "B T"], branches: Int32[Array, "B T"], block: int, *, causal: bool
) -> tuple[Pairs, Pairs]:
    """(key blocks of each query block, query blocks of each key block), judged by the extremes of their labels.

    A few pairs too many cost time, and the rule inside the pair keeps the result right.

    Args:
      causal: the rule of rows with prefixes and branches; else all of a group see each other.
    """
    B = groups.shape[0]
    real = (groups > 0).reshape(B, -1, block)

    def extremes(labels: Array) -> tuple[Array, Array]:
        parts = labels.reshape(B, -1, block)
        return jnp.where(real, parts, jnp.iinfo(jnp.int32).max).min(-1), jnp.where(real, parts, -1).max(-1)

    def overlap(low: Array, high: Array) -> Array:
        return (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])

    group_low, group_high = extremes(groups)
    meets = overlap(group_low, group_high)
    if causal:
        branch_low, branch_high = extremes(branches)
        index = jnp.arange(meets.shape[1])
        meets &= (overlap(branch_low, branch_high) | (branch_low[:, None] == 0)) & (index[None] <= index[:, None])
    return _pairs(meets), _pairs(meets.transpose(0, 2, 1))


def _pairs(meets: Bool[Array, "B n n"]) -> Pairs:
    count = meets.sum(-1, dtype=jnp.int32)
    order = jnp.argsort(~meets, axis=-1, stable=True).astype(jnp.int32)
    places = jnp.minimum(jnp.arange(meets.shape[-1]), jnp.maximum(count - 1, 0)[..., None])
    return Pairs(count, jnp.take_along_axis(order, places, axis=-1))
