"""Attention of sampling: one new token of every lane over pages of keys and values, and a chunk of a long prompt.

Keys and values lie in pages of a fixed number of tokens. A page belongs to one *unit*: a prompt, which up to M lanes
read, or one lane. The products run over the pages as they lie, with the queries of their unit brought to them, so that
a page is read once, whatever the number of its readers (and never copied into the order of the lanes). What the pages
of a unit give is merged by log-sum-exp, as are the parts of a lane: its prompt, its full pages, its newest tokens.
The order of keys does not matter, because rotary positions are in them already.

Axes: A shards (each with its own lanes and pages), U units, M lanes that read a unit, X pages, s tokens of a page,
B lanes, K key-value heads, J query heads per key-value head, C head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from vero_jax.models.kernels.common import NEGATIVE


class Part(NamedTuple):
    """Attention over some of the keys, before the division: `out` and `total` are relative to exp(`top`)."""

    top: Float32[Array, "... J"]
    total: Float32[Array, "... J"]
    out: Float32[Array, "... J C"]


class PageTable(NamedTuple):
    """Whose the pages are. A free page has `low` = `high`, so that nobody sees it."""

    unit: Int32[Array, "A X"]
    low: Int32[Array, "A X"]
    high: Int32[Array, "A X"]
    """Places [low, high) of the page hold keys of the unit."""
    used: Int32[Array, ""]
    """No page at or behind this one is in use, in any shard."""


def merge(*parts: Part) -> Float32[Array, "... J C"]:
    """Attention over the keys of all parts; at least one of them must have a key for every query."""
    top = parts[0].top
    for part in parts[1:]:
        top = jnp.maximum(top, part.top)
    shrink = [jnp.exp(part.top - top) for part in parts]
    total = sum(part.total * by for part, by in zip(parts, shrink, strict=True))
    out = sum(part.out * by[..., None] for part, by in zip(parts, shrink, strict=True))
    # A lane that has nothing to see (it is free) has a total of 0.
    return out / jnp.maximum(total, 1e-30)[..., None]


def page_attention(
    q: Float[Array, "A U K M C"],
    k: Float[Array, "A X K s C"],
    v: Float[Array, "A X K s C"],
    table: PageTable,
    chunk: int,
) -> Part:
    """Attention of the queries of each unit over the unit's pages. M counts lanes x query heads of a key-value head.

    Args:
      q: scaled by C**-0.5 already.
      chunk: pages per step; pages behind the last one in use cost nothing, in steps of so many.
    """
    A, X, K, _, C = k.shape
    U, M = q.shape[1], q.shape[3]
    chunk = min(chunk, X)
    one = jax.vmap(_add_pages)

    def step(i: Array, part: Part) -> Part:
        first = jnp.minimum(i * chunk, X - chunk)

        def take(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, first, chunk, 1)

        unit, low, high = take(table.unit), take(table.low), take(table.high)
        # The last step is moved back to end with the pages; those that the step before has counted are left out.
        high = jnp.where(first + jnp.arange(chunk) >= i * chunk, high, low)
        return one(part, q, take(k), take(v), unit, low, high)

    start = Part(
        jnp.full((A, U, K, M), NEGATIVE, jnp.float32),
        jnp.zeros((A, U, K, M), jnp.float32),
        jnp.zeros((A, U, K, M, C), jnp.float32),
    )
    if chunk == X:
        return step(jnp.int32(0), start)
    return jax.lax.fori_loop(0, -(-table.used // chunk), step, start)


def _add_pages(
    part: Part,
    q: Float[Array, "U K M C"],
    k: Float[Array, "X K s C"],
    v: Float[Array, "X K s C"],
    unit: Int32[Array, "X"],
    low: Int32[Array, "X"],
    high: Int32[Array, "X"],
) -> Part:
    """One step of an online softmax over units (Milakov and Gimelshein 2018): some pages of one shard more.

    Sums over the pages of a unit are products with a 0-1 matrix: a scatter runs page by page on most backends.
    """
    U = q.shape[0]
    place = jnp.arange(k.shape[2])
    seen = ((place >= low[:, None]) & (place < high[:, None]))[:, None, None]
    scores = jnp.einsum("xkmc,xksc->xkms", q[unit], k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, scores, NEGATIVE)
    owns = unit == jnp.arange(U)[:, None]
    page_top = jnp.where(owns[:, :, None, None], scores.max(-1), NEGATIVE).max(1)
    top = jnp.maximum(part.top, page_top)
    weights = jnp.where(seen, jnp.exp(scores - top[unit][..., None]), 0.0)
    out = jnp.einsum("xkms,xksc->xkmc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)

    def by_unit(x: Array) -> Array:
        rows = jnp.matmul(owns.astype(jnp.float32), x.reshape(len(x), -1), precision=jax.lax.Precision.HIGHEST)
        return rows.reshape(U, *x.shape[1:])

    shrink = jnp.exp(part.top - top)
    total = part.total * shrink + by_unit(weights.sum(-1))
    return Part(top, total, part.out * shrink[..., None] + by_unit(out))


def recent_attention(
    q: Float[Array, "A B K J C"],
    k: Float[Array, "A B K C"],
    v: Float[Array, "A B K C"],
    recent_k: Float[Array, "A B K s C"],
    recent_v: Float[Array, "A B K s C"],
    first: Int32[Array, "A B"],
    column: Int32[Array, ""],
) -> Part:
    """Attention of each lane's new token over itself (k, v) and over the lane's newest tokens.

    Args:
      q: scaled already.
      first, column: columns [first, column) hold tokens of the lane.
    """
    place = jnp.arange(recent_k.shape[3])
    seen = ((place >= first[..., None]) & (place < column))[:, :, None, None]
    scores = jnp.einsum("abkjc,abksc->abkjs", q, recent_k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, scores, NEGATIVE)
    own = jnp.einsum("abkjc,abkc->abkj", q, k, preferred_element_type=jnp.float32)
    top = jnp.maximum(scores.max(-1), own)
    weights, own = jnp.exp(scores - top[..., None]), jnp.exp(own - top)
    out = jnp.einsum("abkjs,abksc->abkjc", weights.astype(v.dtype), recent_v, preferred_element_type=jnp.float32)
    out += own[..., None] * v.astype(jnp.float32)[:, :, :, None]
    return Part(top, weights.sum(-1) + own, out)


def chunk_attention(
    q: Float[Array, "B t H C"],
    k: Float[Array, "B K S C"],
    v: Float[Array, "B K S C"],
    offset: Int32[Array, ""],
    block: int,
) -> Float[Array, "B t H C"]:
    """Causal attention of tokens [offset, offset + t) of each prompt over its tokens so far. Forward only.

    Args:
      k, v: of the whole prompt; those at offset + t and behind are ignored.
      block: tokens per block; must divide t and S.
    """
    B, t, H, C = q.shape
    K = k.shape[1]
    J = H // K
    q = (q * C**-0.5).reshape(B, t, K, J, C).transpose(0, 2, 3, 1, 4)
    place = jnp.arange(block)

    def query_block(i: Array) -> Array:
        rows = jax.lax.dynamic_slice_in_dim(q, i * block, block, 3).reshape(B, K, J * block, C)
        at = offset + i * block + place

        def add(n: Array, part: Part) -> Part:
            k_n, v_n = (jax.lax.dynamic_slice_in_dim(x, n * block, block, 2) for x in (k, v))
            scores = jnp.einsum("bkxc,bksc->bkxs", rows, k_n, preferred_element_type=jnp.float32)
            seen = (n * block + place)[None, :] <= at[:, None]
            scores = jnp.where(seen, scores.reshape(B, K, J, block, block), NEGATIVE)
            top = jnp.maximum(part.top, scores.max(-1))
            weights, shrink = jnp.exp(scores - top[..., None]), jnp.exp(part.top - top)
            flat = weights.astype(v.dtype).reshape(B, K, J * block, block)
            out = jnp.einsum("bkxs,bksc->bkxc", flat, v_n, preferred_element_type=jnp.float32)
            out = part.out * shrink[..., None] + out.reshape(B, K, J, block, C)
            return Part(top, part.total * shrink + weights.sum(-1), out)

        shape = (B, K, J, block)
        start = Part(jnp.full(shape, NEGATIVE), jnp.zeros(shape), jnp.zeros((*shape, C)))
        # Key 0 is seen by every query, so no total is 0 and no weight of 1 for a masked key survives the first block.
        part = jax.lax.fori_loop(0, (offset + (i + 1) * block + block - 1) // block, add, start)
        return (part.out / part.total[..., None]).astype(v.dtype)

    out = jax.lax.map(query_block, jnp.arange(t // block))  # t/block B K J block C
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(B, t, H, C)
