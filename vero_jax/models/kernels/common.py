"""What the kernels of both platforms share: products in float32, the rule of who sees whom, and a head's width."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

NEGATIVE = -1e30
"""Stands for minus infinity: exp gives 0, and the difference of two is 0 and not NaN."""


def dot(a: Float[Array, "m n"], b: Float[Array, "x y"], axes: tuple[int, int]) -> Float32[Array, "i j"]:
    """Product over axis axes[0] of `a` and axes[1] of `b`, summed in float32.

    Both platforms would round float32 factors (to bfloat16 on TPU, to TF32 on GPU) unless they are told not to.
    """
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def visible(query: Sequence[Array], key: Sequence[Array], query_index: Array, key_index: Array) -> Bool[Array, "..."]:
    """The rules of `shared_prefix_attention` (two labels) and `segment_attention` (one), for labels that broadcast."""
    same = (query[0] == key[0]) & (query[0] > 0)
    if len(query) == 1:
        return same
    return same & ((key[1] == 0) | (key[1] == query[1])) & (key_index <= query_index)


def widened(size: int, *tensors: Float[Array, "... C"]) -> list[Float[Array, "... size"]]:
    """Puts zeros behind the last axis: they change no product."""
    return [jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, size - x.shape[-1]),)) for x in tensors]


def delta(d_out: Float[Array, "B K J T C"], out: Float[Array, "B K J T C"]) -> Float32[Array, "B K J T"]:
    """Sum over keys of (weight x its gradient), which is the gradient of the softmax's denominator."""
    return jnp.einsum("bkjtc,bkjtc->bkjt", d_out, out, preferred_element_type=jnp.float32)
