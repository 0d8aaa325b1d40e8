"""The pieces both towers share: named parameters, linear maps, norms, and the scan over stacked layers.

A module holds its parameters in `param_dtype` and casts them where they are used, to the type of what comes in. A
*stacked* module holds the parameters of all layers of its kind in one, with a leading axis L; `scan_layers` runs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class ParamFactory:
    """Makes parameters with their logical axis names (metadata `axes`), stacked `layers` times when that is set."""

    rngs: nnx.Rngs
    dtype: Any
    layers: int | None = None

    def stacked(self, layers: int) -> ParamFactory:
        return dataclasses.replace(self, layers=layers)

    def normal(self, shape: tuple[int, ...], axes: Axes, std: float) -> nnx.Param:
        """Normal with the given standard deviation."""
        shape, axes = self._stack(shape, axes)
        value = std * jax.random.normal(self.rngs.params(), shape, jnp.float32)
        return nnx.Param(value.astype(self.dtype), axes=axes)

    def fixed(self, value: np.ndarray, axes: Axes) -> nnx.Param:
        """The same values for every seed; not for stacked modules."""
        return nnx.Param(jnp.asarray(value, self.dtype), axes=axes)

    def constant(self, shape: tuple[int, ...], axes: Axes, value: float) -> nnx.Param:
        shape, axes = self._stack(shape, axes)
        return nnx.Param(jnp.full(shape, value, self.dtype), axes=axes)

    def _stack(self, shape: tuple[int, ...], axes: Axes) -> tuple[tuple[int, ...], Axes]:
        if self.layers is None:
            return shape, axes
        return (self.layers, *shape), ("layers", *axes)


class Linear(nnx.Module):
    """y = x W + b, W of shape (in, out): the transpose of torch's layout, so that no transpose runs on the device."""

    def __init__(self, make: ParamFactory, size: tuple[int, int], axes: Axes, *, bias: bool, gain: float = 1.0) -> None:
        self.kernel = make.normal(size, axes, gain * size[0] ** -0.5)
        self.bias = make.constant(size[1:], axes[1:], 0.0) if bias else None

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, rounded to x's type before the weight: two roundings in bfloat16, as Qwen3 has them."""

    def __init__(self, make: ParamFactory, size: int, eps: float) -> None:
        self.scale = make.constant((size,), (None,), 1.0)
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Mean and variance in float32, one rounding at the end (Ba et al. 2016)."""

    def __init__(self, make: ParamFactory, size: int, eps: float) -> None:
        self.scale = make.constant((size,), (None,), 1.0)
        self.bias = make.constant((size,), (None,), 0.0)
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        wide = wide * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return wide.astype(x.dtype)


def scan_layers(
    stack: nnx.Module,
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    inputs: Any = None,
    *,
    remat: bool = False,
) -> tuple[Any, Any]:
    """`jax.lax.scan` over a stacked module: one layer is traced, whatever their number.

    Args:
        stack: a module whose parameters all have a leading axis L.
        step: (module of one layer, carry, one slice of inputs) -> (carry, output).
        carry: what goes from layer to layer.
        inputs: a pytree whose leaves have a leading axis L, or None.
        remat: keep only the carry of each layer for the backward pass and compute the rest again.

    Returns:
        the last carry, and the outputs stacked along a leading axis L.
    """
    graph, state = nnx.split(stack)

    def body(carry: Any, layer: tuple[Any, Any]) -> tuple[Any, Any]:
        params, slice_ = layer
        return step(nnx.merge(graph, params), carry, slice_)

    if remat:
        # Inside a scan the loop itself keeps XLA from merging the two computations; see jax.checkpoint.
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, carry, (nnx.to_pure_dict(state), inputs))
