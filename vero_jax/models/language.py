"""The language model: a Qwen3 decoder with three-axis rotary positions and DeepStack additions.

It knows nothing of masks and caches: the caller's `attend` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vero_jax.models.config import TextConfig
from vero_jax.models.layers import Linear, ParamFactory, RMSNorm, scan_layers
from vero_jax.models.rope import rotate, text_rotary

Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""attend(q 'B T H C', k 'B T K C', v 'B T K C', cache of the layer) -> (out 'B T H C', anything).

q and k are normed and rotated; the scale head_dim ** -0.5 is attend's. Query head h reads key-value head
h // (H / K). The second output is stacked over the layers and need not look like the cache: a decode step
returns only its new keys and values, so that the cache is read but not copied.
"""


def qk_norm_then_rotate(
    norm: RMSNorm, x: Float[Array, "B T H C"], cos: Float[Array, "B T C"], sin: Float[Array, "B T C"]
) -> Float[Array, "B T H C"]:
    """Qwen3 norms every head's query and key before it rotates them."""
    return rotate(norm(x), cos, sin)


class SelfAttention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023) without biases, with normed queries and keys."""

    def __init__(self, make: ParamFactory, config: TextConfig, gain: float) -> None:
        width, head = config.hidden_size, config.head_dim
        queries, keys = config.num_heads * head, config.num_kv_heads * head
        self.q = Linear(make, (width, queries), ("embed", "heads"), bias=False)
        self.k = Linear(make, (width, keys), ("embed", "kv_heads"), bias=False)
        self.v = Linear(make, (width, keys), ("embed", "kv_heads"), bias=False)
        self.out = Linear(make, (queries, width), ("heads", "embed"), bias=False, gain=gain)
        self.q_norm = RMSNorm(make, head, config.rms_norm_eps)
        self.k_norm = RMSNorm(make, head, config.rms_norm_eps)
        self.head_dim = head

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T C"],
        sin: Float[Array, "B T C"],
        attend: Attend,
        cache: Any,
    ) -> tuple[Float[Array, "B T D"], Any]:
        heads = (*x.shape[:-1], -1, self.head_dim)
        q = qk_norm_then_rotate(self.q_norm, self.q(x).reshape(heads), cos, sin)
        k = qk_norm_then_rotate(self.k_norm, self.k(x).reshape(heads), cos, sin)
        out, kept = attend(q, k, self.v(x).reshape(heads), cache)
        return self.out(out.astype(x.dtype).reshape(*x.shape[:-1], -1)), kept


class GatedMLP(nnx.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, make: ParamFactory, config: TextConfig, gain: float) -> None:
        size, axes = (config.hidden_size, config.ffn_size), ("embed", "ffn")
        self.gate = Linear(make, size, axes, bias=False)
        self.up = Linear(make, size, axes, bias=False)
        self.down = Linear(make, size[::-1], axes[::-1], bias=False, gain=gain)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nnx.Module):
    """Pre-norm: attention, then the gated MLP, each added to the residual stream."""

    def __init__(self, make: ParamFactory, config: TextConfig) -> None:
        gain = (2 * config.num_layers) ** -0.5  # keeps the residual stream of a new model of order one (GPT-2's rule)
        self.attn_norm = RMSNorm(make, config.hidden_size, config.rms_norm_eps)
        self.attn = SelfAttention(make, config, gain)
        self.mlp_norm = RMSNorm(make, config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(make, config, gain)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T C"],
        sin: Float[Array, "B T C"],
        attend: Attend,
        cache: Any,
    ) -> tuple[Float[Array, "B T D"], Any]:
        added, kept = self.attn(self.attn_norm(x), cos, sin, attend, cache)
        x = x + added
        return x + self.mlp(self.mlp_norm(x)), kept


class TokenTable(nnx.Module):
    """V x D: token embeddings, or the output head when it is not the same table."""

    def __init__(self, make: ParamFactory, config: TextConfig) -> None:
        # 1 / sqrt(D): 0.02 at D = 2560, as Qwen's own; a narrow model learns in half the steps with it.
        std = config.hidden_size**-0.5
        self.embedding = make.normal((config.vocab_size, config.hidden_size), ("vocab", "embed"), std)


def visual_rows(
    features: Float[Array, "B M D"], image_index: Int[Array, "B T"], otherwise: Float[Array, "B T D"] | float
) -> Float[Array, "B T D"]:
    """The row's merged visual token where image_index is >= 0, `otherwise` elsewhere."""
    rows = jnp.take_along_axis(features, jnp.maximum(image_index, 0)[..., None], axis=1, mode="clip")
    return jnp.where((image_index >= 0)[..., None], rows, otherwise)


def add_deepstack(
    x: Float[Array, "B T D"], deepstack: Float[Array, "S B M D"], image_index: Int[Array, "B T"], layer: Int[Array, ""]
) -> Float[Array, "B T D"]:
    """Adds tap number `layer` at the visual tokens of the residual stream behind that layer (Meng et al. 2024)."""
    tap = jax.lax.dynamic_index_in_dim(deepstack, jnp.minimum(layer, len(deepstack) - 1), 0, keepdims=False)
    return x + visual_rows(tap, image_index, 0.0).astype(x.dtype)


class LanguageModel(nnx.Module):
    def __init__(self, make: ParamFactory, config: TextConfig) -> None:
        self.config = config
        self.embed = TokenTable(make, config)
        self.layers = DecoderLayer(make.stacked(config.num_layers), config)
        self.norm = RMSNorm(make, config.hidden_size, config.rms_norm_eps)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T 3"],
        attend: Attend,
        cache: Any = None,
        deepstack: Float[Array, "S B M D"] | None = None,
        image_index: Int[Array, "B T"] | None = None,
        *,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """All layers and the final norm.

        Args:
            x: embedded tokens.
            cache: a pytree whose leaves have a leading layer axis, sliced for `attend`; or None.
            deepstack, image_index: visual features to add behind the first layers, and where; None for text.

        Returns:
            hidden states after the final norm, and what `attend` returned, stacked over the layers.
        """
        config = self.config
        cos, sin = text_rotary(positions, config.head_dim, config.rope_theta, config.mrope_section)
        cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)

        def step(layer: DecoderLayer, x: Array, inputs: tuple[Array, Any]) -> tuple[Array, Any]:
            number, cache_slice = inputs
            x, kept = layer(x, cos, sin, attend, cache_slice)
            if deepstack is not None and image_index is not None and len(deepstack):
                # A branch rather than a second scan over the other layers: two scans would need two slices of the
                # stacked parameters, which XLA copies.
                x = jax.lax.cond(
                    number < len(deepstack),
                    lambda x: add_deepstack(x, deepstack, image_index, number),
                    lambda x: x,
                    x,
                )
            return x, kept

        numbers = jnp.arange(config.num_layers)
        x, kept = scan_layers(self.layers, step, x, (numbers, cache), remat=remat)
        return self.norm(x), kept
