"""Attention against a plain masked softmax: values, gradients, padding, and no T x T array in the blocked way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vero_jax.models.attention import segment_attention, shared_prefix_attention


def plain(q, k, v, mask):
    """Masked softmax with repeated key-value heads, in float32; queries without keys get zeros."""
    repeat = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, repeat, axis=2), jnp.repeat(v, repeat, axis=2)
    scores = jnp.einsum("bthc,bshc->bhts", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1, where=mask[:, None])
    return jnp.einsum("bhts,bshc->bthc", jnp.where(mask[:, None], weights, 0.0), v)


def row_labels(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A row of groups of random sizes, with padding at the end."""
    groups, branches = np.zeros(length, np.int32), np.zeros(length, np.int32)
    at, group = 0, 0
    while at < length - 12:
        group += 1
        sizes = rng.integers(1, 9, rng.integers(2, 6))
        for branch, size in enumerate(sizes):
            groups[at : at + size], branches[at : at + size] = group, branch
            at = min(at + size, length - 3)
    groups[at:], branches[at:] = 0, 0
    return groups, branches


def row_mask(groups: np.ndarray, branches: np.ndarray) -> np.ndarray:
    """The rule, written as loops."""
    rows, length = groups.shape
    mask = np.zeros((rows, length, length), bool)
    for row in range(rows):
        for i in range(length):
            for j in range(i + 1):
                same = groups[row, i] == groups[row, j] > 0
                mask[row, i, j] = same and branches[row, j] in (0, branches[row, i])
    return mask


def tensors(seed: int, rows: int, length: int, heads: int, kv_heads: int, size: int):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [(rows, length, heads, size), (rows, length, kv_heads, size), (rows, length, kv_heads, size)]
    q, k, v = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False))
    return q, k, v, jax.random.normal(keys[3], shapes[0])


@pytest.mark.parametrize("block,heads,kv_heads", [(8, 4, 2), (16, 3, 3), (64, 4, 1), (256, 4, 2)])
def test_shared_prefix_equals_plain(block, heads, kv_heads):
    rng = np.random.default_rng(0)
    groups, branches = (np.stack(x) for x in zip(*[row_labels(rng, 75) for _ in range(2)], strict=True))
    q, k, v, weight = tensors(1, 2, 75, heads, kv_heads, 8)
    mask = jnp.asarray(row_mask(groups, branches))

    def ours(q, k, v):
        return shared_prefix_attention(q, k, v, jnp.asarray(groups), jnp.asarray(branches), block)

    np.testing.assert_allclose(ours(q, k, v), plain(q, k, v, mask), atol=1e-5)
    got = jax.grad(lambda *x: (ours(*x) * weight).sum(), (0, 1, 2))(q, k, v)
    want = jax.grad(lambda *x: (plain(*x, mask) * weight).sum(), (0, 1, 2))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.asarray(ours(q, k, v))[groups == 0].any()


@pytest.mark.parametrize("block", [8, 128])
def test_segments_equal_plain(block):
    segments = np.array([[1] * 10 + [2] * 3 + [3] * 20 + [0] * 7, [1] * 40], np.int32)
    q, k, v, weight = tensors(2, 2, 40, 4, 4, 8)
    mask = jnp.asarray((segments[:, :, None] == segments[:, None]) & (segments > 0)[:, :, None])

    def ours(q, k, v):
        return segment_attention(q, k, v, jnp.asarray(segments), block)

    np.testing.assert_allclose(ours(q, k, v), plain(q, k, v, mask), atol=1e-5)
    got = jax.grad(lambda *x: (ours(*x) * weight).sum(), (0, 1, 2))(q, k, v)
    want = jax.grad(lambda *x: (plain(*x, mask) * weight).sum(), (0, 1, 2))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_empty_row_gives_zeros_and_no_nan():
    q, k, v, _ = tensors(3, 1, 32, 2, 1, 4)
    nothing = jnp.zeros((1, 32), jnp.int32)
    for block in (8, 32):
        out, grads = jax.value_and_grad(
            lambda q, block=block: shared_prefix_attention(q, k, v, nothing, nothing, block).sum()
        )(q)
        assert out == 0 and not np.asarray(grads).any()


def test_bfloat16_keeps_its_type_and_is_close():
    rng = np.random.default_rng(4)
    groups, branches = (jnp.asarray(x)[None] for x in row_labels(rng, 64))
    q, k, v, _ = tensors(5, 1, 64, 4, 2, 16)
    exact = shared_prefix_attention(q, k, v, groups, branches, 16)
    rough = shared_prefix_attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), groups, branches, 16)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.05)


def _largest_array(jaxpr) -> int:
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(variable.aval.shape)) for variable in equation.outvars]
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(parameter, "eqns"):
                sizes.append(_largest_array(parameter))
            elif hasattr(parameter, "jaxpr"):
                sizes.append(_largest_array(parameter.jaxpr))
    return max(sizes)


def test_no_array_is_tokens_by_tokens():
    length = 2048
    q, k, v, _ = tensors(6, 1, length, 2, 1, 4)
    labels = jnp.ones((1, length), jnp.int32)

    def loss(q, k, v):
        return shared_prefix_attention(q, k, v, labels, labels, 128).sum()

    assert _largest_array(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, v).jaxpr) < length * length // 8
