"""From per-token values to one number: which response a token belongs to, and the four ways to average a loss.

A loss never divides by what happens to stand in a micro-batch. The denominators (`Totals`) are counted once over the
whole mini-batch and handed in, so the sum over micro-batches is exactly the mini-batch's loss, whatever the packing,
the number of devices and the padding. Axes: B rows, U response tokens of a row, S responses of a row.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

AggregationMode = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResponseTokens:
    """Which tokens of a [B, U] array count, and which of the row's responses each belongs to.

    A padded [b, R] matrix of responses is the case of rows that hold one response each, see `of_matrix`.
    """

    mask: Float32[Array, "B U"]
    """1 where the token counts in the loss, 0 at padding. Values elsewhere are arbitrary and never looked at."""
    ids: Int32[Array, "B U"]
    """Number of the token's response inside its row, 0 <= id < count, never falling along the row."""
    count: int = dataclasses.field(metadata={"static": True})
    """S, an upper bound of the responses of a row."""

    @classmethod
    def of_matrix(cls, mask: Array) -> ResponseTokens:
        """The layout of a [b, R] matrix with one response per row."""
        return cls(mask=jnp.asarray(mask, jnp.float32), ids=jnp.zeros(mask.shape, jnp.int32), count=1)

    def keep(self, values: Float[Array, "B U"]) -> Float[Array, "B U"]:
        """The values with zeros at masked tokens; a `where`, because 0 x NaN is NaN."""
        return jnp.where(self.mask > 0, values, 0)

    def sums(self, values: Float[Array, "B U"]) -> Float[Array, "B S"]:
        """Sum over the counted tokens of each response."""
        values = self.keep(values)
        if self.count == 1:
            return values.sum(axis=-1, keepdims=True)
        return jax.vmap(lambda v, i: _segment_sum(v, i, self.count))(values, self.ids)

    def spread(self, values: Float[Array, "B S"]) -> Float[Array, "B U"]:
        """The value of its response at every token; arbitrary at masked tokens."""
        return jax.vmap(lambda v, i: v[i])(values, self.ids)

    def lengths(self) -> Float32[Array, "B S"]:
        """Counted tokens of each response."""
        return self.sums(self.mask)

    def means(self, values: Float[Array, "B U"]) -> Float[Array, "B S"]:
        """Mean over the counted tokens of each response; 0 for an empty one."""
        return self.sums(values) / jnp.maximum(self.lengths(), 1)


def _segment_sum(values: Float[Array, "U"], ids: Int32[Array, "U"], count: int) -> Float[Array, "S"]:
    """Sums runs of equal ids in two levels, because a scatter adds one by one: over 8,192 tokens its float32 rounding
    reaches 6e-5. Ids never fall, so id + block number is different for every piece of a run inside a block."""
    block = max(math.isqrt(len(values)), 1)
    pieces = ids + jnp.arange(len(values)) // block
    piece_count = count + len(values) // block + 1
    owners = jnp.zeros(piece_count, ids.dtype).at[pieces].set(ids)
    return jax.ops.segment_sum(jax.ops.segment_sum(values, pieces, piece_count), owners, count)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Totals:
    """Denominators of a whole mini-batch, padding excluded."""

    sequences: Float32[Array, ""]
    """Responses with at least one counted token."""
    tokens: Float32[Array, ""]
    """Counted response tokens."""
    width: Float32[Array, ""]
    """Longest possible response, the constant divisor of `seq-mean-token-sum-norm`."""

    @classmethod
    def of(cls, sequences: float | Array, tokens: float | Array, width: float | Array) -> Totals:
        """From numbers, which stay on the host: every process of a run may hand them to a jitted function."""
        values: list[Any] = [v if isinstance(v, jax.Array) else np.float32(v) for v in (sequences, tokens, width)]
        return cls(*values)

    @classmethod
    def count(cls, mask: Array, mode: AggregationMode = "token-mean", *, strict_reference: bool = False) -> Totals:
        """Counts a padded [b, R] mask that is a whole mini-batch.

        Args:
          mask: 1 at counted tokens.
          mode: the aggregation, needed by the reference's rules only.
          strict_reference: count empty responses too, and leave `seq-mean-token-sum-norm` undivided by the number of
            responses, as verl does.
        """
        mask = jnp.asarray(mask, jnp.float32)
        filled = (mask.sum(axis=-1) > 0).sum()
        sequences = filled if not strict_reference else 1 if mode == "seq-mean-token-sum-norm" else mask.shape[0]
        return cls.of(sequences, mask.sum(), mask.shape[1])


def token_mean(values: Float[Array, "B U"], tokens: ResponseTokens) -> Float[Array, ""]:
    """Mean over all counted tokens of the arrays given; 0 if there are none."""
    return tokens.keep(values).sum() / jnp.maximum(tokens.mask.sum(), 1)


def aggregate(
    values: Float[Array, "B U"], tokens: ResponseTokens, mode: AggregationMode, totals: Totals
) -> Float[Array, ""]:
    """This micro-batch's share of the mini-batch's aggregated loss.

    | mode | formula over the mini-batch (m responses, n_i tokens, N = sum n_i) | used by |
    |---|---|---|
    | seq-mean-token-mean | 1/m sum_i 1/n_i sum_t x_it | GRPO (arXiv 2402.03300), GSPO |
    | token-mean | 1/N sum_i sum_t x_it | DAPO (arXiv 2503.14476) |
    | seq-mean-token-sum | 1/m sum_i sum_t x_it | |
    | seq-mean-token-sum-norm | 1/(m width) sum_i sum_t x_it | Dr. GRPO (arXiv 2503.20783) |

    Raises:
      ValueError: the mode is unknown.
    """
    sequences = jnp.maximum(totals.sequences, 1)
    if mode == "token-mean":
        return tokens.keep(values).sum() / jnp.maximum(totals.tokens, 1)
    if mode == "seq-mean-token-sum":
        return tokens.keep(values).sum() / sequences
    if mode == "seq-mean-token-mean":
        return tokens.means(values).sum() / sequences
    if mode == "seq-mean-token-sum-norm":
        return tokens.keep(values).sum() / (sequences * jnp.maximum(totals.width, 1))
    raise ValueError(f"unknown aggregation mode {mode!r}")
