"""Attention in three shapes: over rows of groups, inside vision segments, and of one new token per response.

Every function takes queries and keys that are normalised and rotated already, scales the scores by C**-0.5, and takes
the softmax in float32. Axes: B rows, T tokens in a row, P patches, G groups, N responses per group, R response
tokens, S prompt tokens, H query heads, K key-value heads, C head dimension. Query head h reads key-value head
h // (H / K); queries are reshaped to [K, H / K] and keys are never repeated.

Long rows go block by block in the manner of FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithms 1 and 2): an
online softmax over key blocks, a backward pass that computes the scores again, and no array of T x T elements. Which
pairs of blocks can see each other is worked out first, so a row pays only for those: nothing after the query, no
other group, and no other branch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from vero_jax.models.layers import keep

Labels = Any
"""Tuple of Int32['B T'] arrays, the first of which is 0 at padding."""
Visible = Callable[[Labels, Labels, Int32[Array, "t"], Int32[Array, "s"]], Bool[Array, "B t s"]]
"""Says which keys a query sees, from the labels of both and their indices in the row."""

_NEGATIVE = -1e30
"""Stands for minus infinity: exp gives 0, and the difference of two is 0 and not NaN."""


def shared_prefix_attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    groups: Int32[Array, "B T"],
    branches: Int32[Array, "B T"],
    block: int,
) -> Float[Array, "B T H C"]:
    """Attention over rows `[prefix | branch 1 | ... | branch n]`, several groups to a row.

    A query sees a key of its own group at an earlier or its own index, if the key is in the prefix (branch 0) or in
    the query's own branch. Group 0 is padding: it sees nothing, is seen by nothing, and gets zeros.

    Args:
      block: tokens per block. Rows of at most so many tokens are one dense block.
    """
    return _attend(q, k, v, (groups, branches), _sees_in_row, _block_sees_in_row, block)


def segment_attention(
    q: Float[Array, "B P H C"],
    k: Float[Array, "B P K C"],
    v: Float[Array, "B P K C"],
    segments: Int32[Array, "B P"],
    block: int,
) -> Float[Array, "B P H C"]:
    """Full attention inside each segment (a frame of an image). Segment 0 is padding and gets zeros."""
    return _attend(q, k, v, (segments,), _sees_in_segment, _block_sees_in_segment, block)


def decode_attention(
    q: Float[Array, "G N H C"],
    k: Float[Array, "G N K C"],
    v: Float[Array, "G N K C"],
    prompt_k: Float[Array, "G K S C"],
    prompt_v: Float[Array, "G K S C"],
    prompt_length: Int32[Array, "G"],
    past_k: Float[Array, "G N K R C"],
    past_v: Float[Array, "G N K R C"],
    step: Int32[Array, ""],
) -> Float[Array, "G N H C"]:
    """Attention of one new token of every response: over the group's prompt, its own earlier tokens, and itself.

    The prompt's keys are read once for all queries of a group: one product with N * H / K rows per group and
    key-value head. The parts are merged by their log-sum-exp. Heads stand before tokens in the stores (unlike the
    other functions here), because a batched matrix product then reads them as they lie.

    Args:
      q, k, v: the new token of each response.
      prompt_length: valid tokens of each prompt (the rest of S is padding).
      past_k, past_v: the responses' earlier tokens; entries at `step` and after are ignored.
      step: how many earlier tokens there are, the same for all responses.
    """
    G, N, H, C = q.shape
    K, S = prompt_k.shape[1:3]
    R = past_k.shape[3]
    J = H // K
    q = (q * C**-0.5).reshape(G, N, K, J, C)

    rows = q.transpose(0, 2, 1, 3, 4).reshape(G, K, N * J, C)
    s_prompt = jnp.einsum("gkmc,gksc->gkms", rows, prompt_k, preferred_element_type=jnp.float32)
    s_prompt = jnp.where(jnp.arange(S) < prompt_length[:, None, None, None], s_prompt, _NEGATIVE)
    s_past = jnp.einsum("gnkjc,gnkrc->gnkjr", q, past_k, preferred_element_type=jnp.float32)
    s_past = jnp.where(jnp.arange(R) < step, s_past, _NEGATIVE)
    s_self = jnp.einsum("gnkjc,gnkc->gnkj", q, k, preferred_element_type=jnp.float32)

    # One shift for the three parts: the largest score of each query. s_self is always a real score, so it is finite.
    top_prompt = s_prompt.max(-1).reshape(G, K, N, J).transpose(0, 2, 1, 3)
    top = jnp.maximum(jnp.maximum(top_prompt, s_past.max(-1)), s_self)
    p_prompt = jnp.exp(s_prompt - top.transpose(0, 2, 1, 3).reshape(G, K, N * J, 1))
    p_past = jnp.exp(s_past - top[..., None])
    p_self = jnp.exp(s_self - top)
    total = p_prompt.sum(-1).reshape(G, K, N, J).transpose(0, 2, 1, 3) + p_past.sum(-1) + p_self

    o_prompt = jnp.einsum("gkms,gksc->gkmc", p_prompt.astype(v.dtype), prompt_v, preferred_element_type=jnp.float32)
    o_past = jnp.einsum("gnkjr,gnkrc->gnkjc", p_past.astype(v.dtype), past_v, preferred_element_type=jnp.float32)
    o_self = p_self[..., None] * v.astype(jnp.float32)[:, :, :, None]
    out = o_prompt.reshape(G, K, N, J, C).transpose(0, 2, 1, 3, 4) + o_past + o_self
    return (out / total[..., None]).reshape(G, N, H, C).astype(v.dtype)


def _sees_in_row(query: Labels, key: Labels, query_index: Int32[Array, "t"], key_index: Int32[Array, "s"]) -> Array:
    (q_group, q_branch), (k_group, k_branch) = query, key
    same_group = (q_group[:, :, None] == k_group[:, None]) & (q_group > 0)[:, :, None]
    on_path = (k_branch[:, None] == 0) | (k_branch[:, None] == q_branch[:, :, None])
    return same_group & on_path & (key_index[None, None] <= query_index[None, :, None])


def _block_sees_in_row(low: Labels, high: Labels) -> Bool[Array, "B n n"]:
    """Which key blocks a query block may see; `low` and `high` are each block's extremes of group and branch."""
    (g_low, b_low), (g_high, b_high) = low, high
    index = jnp.arange(g_low.shape[1])
    groups = _overlap(g_low, g_high)
    branches = _overlap(b_low, b_high) | (b_low[:, None] == 0)
    return groups & branches & (index[None] <= index[:, None])


def _sees_in_segment(query: Labels, key: Labels, query_index: Int32[Array, "t"], key_index: Int32[Array, "s"]) -> Array:
    (q_segment,), (k_segment,) = query, key
    return (q_segment[:, :, None] == k_segment[:, None]) & (q_segment > 0)[:, :, None]


def _block_sees_in_segment(low: Labels, high: Labels) -> Bool[Array, "B n n"]:
    return _overlap(low[0], high[0])


def _overlap(low: Int32[Array, "B n"], high: Int32[Array, "B n"]) -> Bool[Array, "B n n"]:
    return (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])


def _attend(
    q: Array, k: Array, v: Array, labels: Labels, visible: Visible, block_visible: Callable[..., Array], block: int
) -> Array:
    """Sorts heads to the front, takes the dense or the blocked way, and sorts them back."""
    B, T, H, C = q.shape
    K = k.shape[2]
    q = (q * C**-0.5).reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    if block >= T:
        out = _dense(q, k, v, labels, visible)
    else:
        padding = -T % block
        widths = ((0, 0),) * 2 + ((0, padding), (0, 0))
        labels = tuple(jnp.pad(label, ((0, 0), (0, padding))) for label in labels)
        table = _block_table(labels, block_visible, block)
        q = jnp.pad(q, ((0, 0), *widths))
        out = _blocked(q, jnp.pad(k, widths), jnp.pad(v, widths), labels, table, visible, block)[..., :T, :]
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, C)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _dense(q: Array, k: Array, v: Array, labels: Labels, visible: Visible) -> Array:
    """The whole row as one block, without table and loops."""
    return _dense_forward(q, k, v, labels, visible)[0]


def _dense_forward(q: Array, k: Array, v: Array, labels: Labels, visible: Visible) -> tuple:
    scores = jnp.where(_row_mask(labels, visible), _scores(q, k), _NEGATIVE)
    top = scores.max(-1)
    weights = jnp.exp(scores - top[..., None])
    # Who sees nothing (padding) has weights of 1 here; a sum of 0 tells the lines below.
    total = jnp.where((labels[0] > 0)[:, None, None], weights.sum(-1), 0.0)
    out, lse = _normalised(_weighted(weights.astype(v.dtype), v), top, total)
    out, lse = keep(out.astype(v.dtype)), keep(lse)
    return out, (q, k, v, labels, out, lse)


def _dense_backward(visible: Visible, kept: tuple, d_out: Array) -> tuple:
    q, k, v, labels, out, lse = kept
    d_q, d_k, d_v = _pair_gradients(q, k, v, _row_mask(labels, visible), lse, d_out, _delta(d_out, out))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_dense.defvjp(_dense_forward, _dense_backward)


def _row_mask(labels: Labels, visible: Visible) -> Bool[Array, "B 1 1 T T"]:
    index = jnp.arange(labels[0].shape[1])
    return visible(labels, labels, index, index)[:, None, None]


def _block_table(labels: Labels, block_visible: Callable[..., Array], block: int) -> dict[str, Array]:
    """For every query block the key blocks it may see, and for every key block the query blocks that may see it.

    Blocks are judged by the extremes of their labels (padding aside), over all rows at once: a few pairs too many
    cost time, and the mask inside the pair keeps the result right.
    """
    B = labels[0].shape[0]
    real = (labels[0] > 0).reshape(B, -1, block)
    low, high = [], []
    for label in labels:
        parts = label.reshape(B, -1, block)
        low.append(jnp.where(real, parts, jnp.iinfo(jnp.int32).max).min(-1))
        high.append(jnp.where(real, parts, -1).max(-1))
    pairs = block_visible(tuple(low), tuple(high)).any(0)

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
    return jnp.where(empty[..., None], 0.0, out / total[..., None]), jnp.where(empty, -_NEGATIVE, top + jnp.log(total))


def _delta(d_out: Array, out: Array) -> Float32[Array, "B K J t"]:
    """Sum over keys of (weight x its gradient), which is the gradient of the softmax's denominator."""
    return jnp.einsum("bkjtc,bkjtc->bkjt", d_out, out, preferred_element_type=jnp.float32)


def _pair_gradients(
    q: Array, k: Array, v: Array, mask: Array, lse: Array, d_out: Array, delta: Array
) -> tuple[Float32[Array, "B K J t C"], Float32[Array, "B K s C"], Float32[Array, "B K s C"]]:
    """What a block of queries and a block of keys add to the gradients of q, k and v."""
    weights = jnp.exp(jnp.where(mask, _scores(q, k), _NEGATIVE) - lse[..., None])
    d_scores = (weights * (_scores(d_out, v) - delta[..., None])).astype(q.dtype)
    return _weighted(d_scores, k), _gathered(d_scores, q), _gathered(weights.astype(v.dtype), d_out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blocked(q: Array, k: Array, v: Array, labels: Labels, table: dict, visible: Visible, block: int) -> Array:
    return _blocked_forward(q, k, v, labels, table, visible, block)[0]


def _blocked_forward(q: Array, k: Array, v: Array, labels: Labels, table: dict, visible: Visible, block: int) -> tuple:
    B, K, J, T, C = q.shape

    def query_block(i: Array) -> tuple[Array, Array]:
        q_i = _take(q, i, block, 3)

        def add_key_block(n: Array, carry: tuple) -> tuple:
            top, total, out = carry
            j = table["keys"][i, n]
            k_j, v_j = _take(k, j, block, 2), _take(v, j, block, 2)
            mask = _pair_mask(labels, i, j, visible, block)
            scores = jnp.where(mask, _scores(q_i, k_j), _NEGATIVE)
            new_top = jnp.maximum(top, scores.max(-1))
            weights = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0.0)
            shrink = jnp.exp(top - new_top)
            out = out * shrink[..., None] + _weighted(weights.astype(v.dtype), v_j)
            return new_top, total * shrink + weights.sum(-1), out

        shape = (B, K, J, block)
        start = (jnp.full(shape, _NEGATIVE), jnp.zeros(shape), jnp.zeros((*shape, C)))
        top, total, out = jax.lax.fori_loop(0, table["n_keys"][i], add_key_block, start)
        out, lse = _normalised(out, top, total)
        return out.astype(v.dtype), lse

    out, lse = jax.lax.map(query_block, jnp.arange(T // block))
    out = out.transpose(1, 2, 3, 0, 4, 5).reshape(B, K, J, T, C)
    lse = lse.transpose(1, 2, 3, 0, 4).reshape(B, K, J, T)
    out, lse = keep(out), keep(lse)
    return out, (q, k, v, labels, table, out, lse)


def _blocked_backward(visible: Visible, block: int, kept: tuple, d_out: Array) -> tuple:
    q, k, v, labels, table, out, lse = kept
    B, K, _, T, C = q.shape
    delta = _delta(d_out, out)

    def key_block(d_q: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
        k_j, v_j = _take(k, j, block, 2), _take(v, j, block, 2)

        def add_query_block(n: Array, carry: tuple) -> tuple:
            d_q, d_k, d_v = carry
            i = table["queries"][j, n]
            q_i, d_i, lse_i, delta_i = (_take(x, i, block, 3) for x in (q, d_out, lse, delta))
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


_blocked.defvjp(_blocked_forward, _blocked_backward)
