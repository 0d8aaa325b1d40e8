"""The pieces both towers share: named parameters, linear maps, norms, and the scan over stacked layers.

A module holds its parameters in `param_dtype` and casts them where they are used, to the type of what comes in. A
*stacked* module holds the parameters of all layers of its kind in one, with a leading axis L; `scan_layers` runs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters beside some linear maps (Hu et al. 2021, arXiv:2106.09685): y = x W + (alpha / rank) (x A) B.

    Attributes:
        targets: names of the maps as Hugging Face has them, such as "q_proj"; see `LORA_TARGETS`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear maps of the language model that can have an adapter."""


@dataclasses.dataclass(frozen=True)
class ParamFactory:
    """Makes parameters with their logical axis names (metadata `axes`), stacked `layers` times when that is set."""

    rngs: nnx.Rngs
    dtype: Any
    layers: int | None = None
    lora: LoRA | None = None

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

    def uniform(self, shape: tuple[int, ...], axes: Axes, bound: float) -> nnx.Param:
        """Uniform between -bound and bound."""
        shape, axes = self._stack(shape, axes)
        value = jax.random.uniform(self.rngs.params(), shape, jnp.float32, -bound, bound)
        return nnx.Param(value.astype(self.dtype), axes=axes)

    def constant(self, shape: tuple[int, ...], axes: Axes, value: float) -> nnx.Param:
        shape, axes = self._stack(shape, axes)
        return nnx.Param(jnp.full(shape, value, self.dtype), axes=axes)

    def _stack(self, shape: tuple[int, ...], axes: Axes) -> tuple[tuple[int, ...], Axes]:
        if self.layers is None:
            return shape, axes
        return (self.layers, *shape), ("layers", *axes)


_KEPT = "kept"


Remat = Literal["none", "products", "layers"]
"""What a layer keeps for its backward pass; see `scan_layers`."""


def keep(x: Array) -> Array:
    """Marks what a layer's backward pass reads again; what has no mark it computes again. See `scan_layers`."""
    return checkpoint_name(x, _KEPT)


def rounded_once(function: Callable[[Array], Array], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """function(x) in float32, rounded to x's type: torch computes activations so, whose formulas have several steps."""
    return function(x.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def affine(
    x: Float[Array, "... in"], kernel: Float[Array, "in out"], bias: Float[Array, "out"] | None
) -> Float[Array, "... out"]:
    """x W + b, rounded once, after the sum.

    Its derivative is written out so that the gradient of W comes out as (in, out): JAX's rule makes (out, in) and
    transposes it back, for which XLA:CPU writes its operands once more, turned around (measured: 6 % of a forward and
    backward pass of a small policy).
    """
    y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)


def _affine_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple[Array, Array, Array | None]]:
    return affine(x, kernel, bias), (x, kernel, bias)


def _affine_backward(kept: tuple[Array, Array, Array | None], d_y: Array) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = kept
    rows = tuple(range(x.ndim - 1))
    d_bias = None if bias is None else d_y.sum(rows, dtype=jnp.float32).astype(bias.dtype)
    contracted = ((rows, rows), ((), ()))
    # XLA:CPU writes the first factor once more, turned around, so that is the narrower one.
    if kernel.shape[0] > kernel.shape[1]:
        d_kernel = jax.lax.dot_general(d_y, x, contracted).T
    else:
        d_kernel = jax.lax.dot_general(x, d_y, contracted)
    return d_y @ kernel.T, d_kernel, d_bias


affine.defvjp(_affine_forward, _affine_backward)


class Linear(nnx.Module):
    """y = x W + b, W of shape (in, out): the transpose of torch's layout, so that no transpose runs on the device.

    A map whose `target` is among the adapted ones adds a low-rank term, which starts at zero; see `LoRA`.
    """

    def __init__(
        self,
        make: ParamFactory,
        size: tuple[int, int],
        axes: Axes,
        *,
        bias: bool,
        gain: float = 1.0,
        target: str | None = None,
    ) -> None:
        self.kernel = make.normal(size, axes, gain * size[0] ** -0.5)
        self.bias = make.constant(size[1:], axes[1:], 0.0) if bias else None
        lora = make.lora if make.lora is not None and target in make.lora.targets else None
        # Adapters are kept in float32 beside a bfloat16 base: their updates are too small for its steps.
        make = dataclasses.replace(make, dtype=jnp.float32)
        self.lora_a = make.uniform((size[0], lora.rank), (axes[0], None), size[0] ** -0.5) if lora else None
        self.lora_b = make.constant((lora.rank, size[1]), (None, axes[1]), 0.0) if lora else None
        self.lora_scale = lora.scale if lora else 0.0

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        y = affine(x, self.kernel[...].astype(x.dtype), bias)
        if self.lora_a is not None and self.lora_b is not None:
            low_rank = (x @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
            y = y + low_rank * self.lora_scale
        return keep(y)


class GatedMLP(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(
        self,
        make: ParamFactory,
        size: tuple[int, int],
        axes: Axes,
        *,
        bias: bool,
        gain: float,
        targets: tuple[str | None, str | None, str | None] = (None, None, None),
    ) -> None:
        self.gate = Linear(make, size, axes, bias=bias, target=targets[0])
        self.up = Linear(make, size, axes, bias=bias, target=targets[1])
        self.down = Linear(make, size[::-1], axes[::-1], bias=bias, gain=gain, target=targets[2])

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(rounded_once(jax.nn.silu, self.gate(x)) * self.up(x))


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
    remat: Remat = "products",
    span: slice = slice(None),
) -> tuple[Any, Any]:
    """`jax.lax.scan` over a stacked module: one layer is traced, whatever their number.

    For the backward pass each layer keeps by default what is marked by `keep`: the outputs of linear maps and of
    attention. Norms, activations and rotations are computed again from those, which is faster than to write and to
    read them, and takes less memory.

    Args:
        stack: a module whose parameters all have a leading axis L.
        step: (module of one layer, carry, one slice of inputs) -> (carry, output).
        carry: what goes from layer to layer.
        inputs: a pytree whose leaves have a leading axis L, or None.
        remat: what a layer keeps: "none" keeps all that its backward pass reads, "products" what is marked by `keep`,
            "layers" its carry alone.
        span: which of the stacked layers to run; a part of them is a copy.

    Returns:
        the last carry, and the outputs stacked along a leading axis L.
    """
    graph, state = nnx.split(stack)

    def body(carry: Any, layer: tuple[Any, Any]) -> tuple[Any, Any]:
        params, slice_ = layer
        return step(nnx.merge(graph, params), carry, slice_)

    if remat != "none":
        policy = None if remat == "layers" else jax.checkpoint_policies.save_only_these_names(_KEPT)
        # Inside a scan the loop itself keeps XLA from merging the two computations; see jax.checkpoint.
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    params = nnx.to_pure_dict(state)
    if span != slice(None):
        params = jax.tree.map(lambda leaf: leaf[span], params)
    return jax.lax.scan(body, carry, (params, inputs))
