"""The output head, a block of the vocabulary at a time: exact log-probabilities and entropies.

Logits are hidden @ head.T / temperature, accumulated in float32, and never exist for the whole vocabulary at once
(but for truncated sampling, see `models.choice`): with 151,936 entries a row of 36,864 tokens would need 22 GB of them.
The learner and the sampler go through the same products, so their log-probabilities differ only by what differs in
the hidden states. Axes: n tokens, D model width, V vocabulary, b entries of a block.

A log-probability is that of the untruncated policy over the whole vocabulary: ids that the sampler may not choose, and
what top-p and its kin cut off, keep their share of the denominator. That is the distribution the loss differentiates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32

from vero_jax.parallel.mesh import ROW_AXES, row_shards

NEGATIVE = -1e30
"""A logit that counts for nothing; finite, so that no difference of two becomes NaN."""

TOKEN_BLOCK = 4096
"""Tokens that are computed at a time, at most: with 16,384 vocabulary entries, 268 MB of logits."""

SMALLEST_TOKEN_BLOCK = 128


def token_block_of(row: int) -> int:
    """Tokens per block for rows of so many: about an eighth of them, because blocks of padding are skipped."""
    return min(max(-(-row // 128) * 16, SMALLEST_TOKEN_BLOCK), TOKEN_BLOCK)


def token_logprobs(
    hidden: Float[Array, "n D"],
    head: Float[Array, "V D"],
    targets: Int32[Array, "n"],
    *,
    counted: Bool[Array, "n"] | None = None,
    temperature: float | Float32[Array, ""],
    block: int,
    token_block: int = TOKEN_BLOCK,
    valid_vocab: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float32[Array, "n"], Float32[Array, "n"]]:
    """Log-probability of each target and entropy of its distribution, differentiable in `hidden` and `head`.

    log p(t) = z_t - log sum_v exp(z_v) and H = -sum_v p_v log p_v with z = hidden @ head.T / temperature. The backward
    pass computes every block again: dz_v = g_logp (1[v = t] - p_v) - g_H p_v (log p_v + H).

    Args:
      hidden: states after the final norm, in the activations' type, to which `head` is rounded.
      targets: ids in [0, valid_vocab).
      counted: the others get zeros and no gradient, and blocks of tokens without any counted one are skipped; None
        counts all.
      temperature: divides the logits; 0 (greedy sampling) counts as 1. No gradient flows to it.
      block: vocabulary entries per block.
      token_block: tokens per block; [token_block, block] float32 is the largest array.
      valid_vocab: rows of `head` from here on are no vocabulary entries and take no part; None uses all.
      mesh: where the arrays lie, n over the row axes and V over the tensor axis, if those divide them: every device
        then computes its own tokens and the blocks of its own entries, and sums travel instead of the head. None: one
        device.
    """
    counted = jnp.ones(targets.shape, bool) if counted is None else counted
    valid = head.shape[0] if valid_vocab is None else valid_vocab
    layout = _Blocks(
        min(block, head.shape[0]), min(token_block, max(len(hidden), 1)), valid, _usable(mesh, hidden, head)
    )
    # Both functions of this module round the head to the activations' type, so sampler and learner agree.
    head, inverse = head.astype(hidden.dtype), inverse_temperature(temperature)
    return _token_logprobs(hidden, head, (targets, counted), inverse, layout)


class _Blocks(NamedTuple):
    """What the computation is compiled with; hashable."""

    vocab: int
    tokens: int
    valid: int
    mesh: Mesh | None

    def local(self, entries: int, tokens: int) -> _Blocks:
        """The same on one device, which has so many vocabulary entries and tokens."""
        return self._replace(vocab=min(self.vocab, entries), tokens=min(self.tokens, max(tokens, 1)))


def _usable(mesh: Mesh | None, hidden: Array, head: Array) -> Mesh | None:
    """The mesh, if there are several devices and it divides tokens and vocabulary."""
    if mesh is None or mesh.size == 1 or head.shape[0] % mesh.shape["tensor"]:
        return None
    return mesh if len(hidden) % row_shards(mesh) == 0 else None


def inverse_temperature(temperature: float | Float32[Array, "..."]) -> Float32[Array, "..."]:
    """What logits are multiplied with; temperature 0 counts as 1."""
    temperature = jnp.asarray(temperature, jnp.float32)
    return 1.0 / jnp.where(temperature > 0, temperature, 1.0)


def over_blocks(body: Callable, carry: Any, vocab: int, block: int) -> Any:
    """Folds `body(carry, number) -> (carry, None)` over the blocks of the vocabulary."""
    if block == vocab:
        return body(carry, jnp.int32(0))[0]
    return jax.lax.scan(body, carry, jnp.arange(-(-vocab // block), dtype=jnp.int32))[0]


def block_logits(
    hidden: Array, head: Array, inverse: Array, i: Array, block: int, valid: int | Array
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
    return jnp.where(counted, _product(hidden, part.T) * inverse, NEGATIVE), entries, counted


def _product(a: Array, b: Array) -> Float32[Array, "x y"]:
    """Matrix product accumulated in float32. Float32 inputs are not rounded first, as TPUs and GPUs do by default."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)


class _Sums(NamedTuple):
    """Of the distribution of each token, over some of the vocabulary."""

    top: Float32[Array, "n"]
    """The largest logit."""
    total: Float32[Array, "n"]
    """Sum of exp(z - top)."""
    moment: Float32[Array, "n"]
    """Sum of exp(z - top) (z - top): relative to the largest logit it does not lose digits to the logits' size."""
    target: Float32[Array, "n"]
    """The target's logit, 0 where it is among the rest of the vocabulary."""

    def relative_to(self, top: Array) -> _Sums:
        """The same with another number in place of the largest logit."""
        shift = self.top - top
        shrink = jnp.exp(shift)
        return _Sums(top, shrink * self.total, shrink * (self.moment + self.total * shift), self.target)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _token_logprobs(
    hidden: Array, head: Array, targets: tuple[Array, Array], inverse: Array, layout: _Blocks
) -> tuple[Array, Array]:
    """`targets` are the ids, and which of the tokens count."""
    return _forward(hidden, head, targets, inverse, layout)[0]


def _forward(hidden: Array, head: Array, targets: tuple[Array, Array], inverse: Array, layout: _Blocks) -> tuple:
    if layout.mesh is None:
        sums = _sums(hidden, head, targets, inverse, jnp.int32(0), layout)
    else:

        def on_device(hidden: Array, head: Array, targets: tuple[Array, Array], inverse: Array) -> _Sums:
            first = jax.lax.axis_index("tensor") * len(head)
            sums = _sums(hidden, head, targets, inverse, first, layout.local(*map(len, (head, hidden))))
            sums = sums.relative_to(jax.lax.pmax(sums.top, "tensor"))
            return _Sums(sums.top, *jax.lax.psum(sums[1:], "tensor"))

        specs = P(ROW_AXES), P("tensor"), P(ROW_AXES), P()
        sums = _sharded(on_device, layout.mesh, specs, P(ROW_AXES))(hidden, head, targets, inverse)
    counted = targets[1]
    total = jnp.where(counted, sums.total, 1.0)
    log_total = jnp.log(total)
    entropy = jnp.where(counted, log_total - sums.moment / total, 0.0)
    # (z - top) is exact where it matters; top + log_total would be rounded at the size of the largest logit.
    logprobs = jnp.where(counted, sums.target - sums.top - log_total, 0.0)
    return (logprobs, entropy), (hidden, head, targets, inverse, sums.top, log_total, entropy)


def _sums(
    hidden: Array, head: Array, targets: tuple[Array, Array], inverse: Array, first: Array, layout: _Blocks
) -> _Sums:
    """Over the vocabulary entries from `first` on, of which `head` has the rows."""

    def of_tokens(_: None, part: tuple[Array, Array]) -> tuple[None, _Sums]:
        hidden, targets = part

        def add_block(sums: _Sums, i: Array) -> tuple[_Sums, None]:
            logits, entries, counted = block_logits(hidden, head, inverse, i, layout.vocab, layout.valid - first)
            sums = sums.relative_to(jnp.maximum(sums.top, logits.max(-1)))
            shifted = logits - sums.top[:, None]
            weights = jnp.exp(shifted)
            hit = (entries + first == targets[:, None]) & counted
            return _Sums(
                sums.top,
                sums.total + weights.sum(-1),
                sums.moment + (weights * shifted).sum(-1),
                sums.target + jnp.where(hit, logits, 0.0).sum(-1),
            ), None

        n = len(hidden)
        start = _Sums(jnp.full(n, NEGATIVE), jnp.zeros(n), jnp.zeros(n), jnp.zeros(n))
        return None, over_blocks(add_block, start, len(head), layout.vocab)

    return _over_tokens(of_tokens, None, (hidden, targets[0]), targets[1], layout.tokens)[1]


def _backward(layout: _Blocks, kept: tuple, cotangents: tuple[Array, Array]) -> tuple:
    hidden, head, (targets, counted), inverse, *rest = kept
    per_token = hidden, targets, *rest, *(jnp.where(counted, x, 0.0) for x in cotangents), counted
    if layout.mesh is None:
        d_hidden, d_head = _gradients(per_token, head, inverse, jnp.int32(0), layout)
    else:

        def on_device(per_token: tuple, head: Array, inverse: Array) -> tuple[Array, Array]:
            first = jax.lax.axis_index("tensor") * len(head)
            here = layout.local(len(head), len(per_token[0]))
            d_hidden, d_head = _gradients(per_token, head, inverse, first, here)
            return jax.lax.psum(d_hidden, "tensor"), jax.lax.psum(d_head, ROW_AXES)

        specs = (P(ROW_AXES),) * len(per_token), P("tensor"), P()
        outs = P(ROW_AXES), P("tensor")
        d_hidden, d_head = _sharded(on_device, layout.mesh, specs, outs)(per_token, head, inverse)
    no_gradient = np.zeros(targets.shape, jax.dtypes.float0)
    return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype), (no_gradient,) * 2, jnp.zeros_like(inverse)


def _gradients(
    per_token: tuple, head: Array, inverse: Array, first: Array, layout: _Blocks
) -> tuple[Float32[Array, "n D"], Float32[Array, "V D"]]:
    """Of `hidden` (its part from these vocabulary entries) and of `head`."""

    def of_tokens(d_head: Array, per_token: tuple) -> tuple[Array, Array]:
        hidden, targets, top, log_total, entropy, d_logprob, d_entropy = per_token

        def add_block(carry: tuple, i: Array) -> tuple[tuple, None]:
            d_hidden, d_head = carry
            logits, entries, counted = block_logits(hidden, head, inverse, i, layout.vocab, layout.valid - first)
            logp = logits - top[:, None] - log_total[:, None]
            slope = d_logprob[:, None] + d_entropy[:, None] * (logp + entropy[:, None])
            hit = (entries + first == targets[:, None]) & counted
            d_logits = (jnp.where(hit, d_logprob[:, None], 0.0) - jnp.exp(logp) * slope) * inverse
            d_logits = d_logits.astype(head.dtype)
            part = jax.lax.dynamic_slice_in_dim(head, entries[0], layout.vocab)
            d_part = jax.lax.dynamic_slice_in_dim(d_head, entries[0], layout.vocab) + _product(d_logits.T, hidden)
            d_head = jax.lax.dynamic_update_slice_in_dim(d_head, d_part, entries[0], 0)
            return (d_hidden + _product(d_logits, part), d_head), None

        start = jnp.zeros(hidden.shape), d_head
        d_hidden, d_head = over_blocks(add_block, start, len(head), layout.vocab)
        return d_head, d_hidden

    counted = per_token[-1]
    d_head, d_hidden = _over_tokens(of_tokens, jnp.zeros(head.shape), per_token[:-1], counted, layout.tokens)
    return d_hidden, d_head


def _over_tokens(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, per_token: Any, counted: Bool[Array, "n"], size: int
) -> tuple[Any, Any]:
    """Folds body(carry, part) -> (carry, results) over the parts of `size` tokens of which at least one counts.

    Returns the last carry and the results of all tokens, zeros where a part was skipped. Zeros fill the last part, and
    add nothing to any gradient.
    """
    n = len(counted)
    if size >= n:
        return body(carry, per_token)

    def cut(x: Array) -> Array:
        return jnp.pad(x, ((0, -n % size), *((0, 0),) * (x.ndim - 1))).reshape(-1, size, *x.shape[1:])

    def add_part(i: Array, both: tuple) -> tuple:
        carry, results = both
        carry, new = body(carry, jax.tree.map(lambda x: x[order[i]], parts))
        return carry, jax.tree.map(lambda x, y: x.at[order[i]].set(y), results, new)

    parts, used = jax.tree.map(cut, per_token), cut(counted).any(-1)
    order = jnp.argsort(~used, stable=True)
    shapes = jax.eval_shape(body, carry, jax.tree.map(lambda x: x[0], parts))[1]
    results = jax.tree.map(lambda x: jnp.zeros((len(used), *x.shape), x.dtype), shapes)
    carry, results = jax.lax.fori_loop(0, used.sum(), add_part, (carry, results))
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], results)


def _sharded(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    # Without the check of replication: the sums over an axis are written out above.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


_token_logprobs.defvjp(_forward, _backward)
