"""The language model: a Qwen decoder with three-axis rotary positions and DeepStack additions.

It knows nothing of masks and caches: the caller's `attend` does.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vero_jax.models.config import TextConfig
from vero_jax.models.layers import GatedMLP, Linear, ParamFactory, Remat, RMSNorm, scan_layers
from vero_jax.models.moe import SparseMLP
from vero_jax.models.rope import rotate, text_rotary
from vero_jax.parallel.sharding import split_tokens

Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""attend(q 'B T H C', k 'B T K C', v 'B T K C', cache of the layer) -> (out 'B T H C', anything).

q and k are normed and rotated; the scale head_dim ** -0.5 is attend's. Query head h reads key-value head
h // (H / K). The second output is stacked over the layers and need not look like the cache: a decode step
returns only its new keys and values, so that the cache is read but not copied.
"""


def qk_norm_then_rotate(
    norm: RMSNorm | None, x: Float[Array, "B T H C"], cos: Float[Array, "B T C"], sin: Float[Array, "B T C"]
) -> Float[Array, "B T H C"]:
    """Qwen3 norms every head's query and key before it rotates them; Qwen2 has no such norm."""
    return rotate(x if norm is None else norm(x), cos, sin)


class SelfAttention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023), with Qwen3's norms or with Qwen2's biases."""

    def __init__(self, make: ParamFactory, config: TextConfig, gain: float) -> None:
        width, head = config.hidden_size, config.head_dim
        queries, keys = config.num_heads * head, config.num_kv_heads * head
        bias = config.qkv_bias
        self.q = Linear(make, (width, queries), ("embed", "heads"), bias=bias, target="q_proj")
        self.k = Linear(make, (width, keys), ("embed", "kv_heads"), bias=bias, target="k_proj")
        self.v = Linear(make, (width, keys), ("embed", "kv_heads"), bias=bias, target="v_proj")
        self.out = Linear(make, (queries, width), ("heads", "embed"), bias=False, gain=gain, target="o_proj")
        self.q_norm = RMSNorm(make, head, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(make, head, config.rms_norm_eps) if config.qk_norm else None
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


class DecoderLayer(nnx.Module):
    """Pre-norm: attention, then the gated MLP or the experts, each added to the residual stream."""

    def __init__(self, make: ParamFactory, config: TextConfig, *, sparse: bool) -> None:
        gain = (2 * config.num_layers) ** -0.5  # keeps the residual stream of a new model of order one (GPT-2's rule)
        self.attn_norm = RMSNorm(make, config.hidden_size, config.rms_norm_eps)
        self.attn = SelfAttention(make, config, gain)
        self.mlp_norm = RMSNorm(make, config.hidden_size, config.rms_norm_eps)
        targets = ("gate_proj", "up_proj", "down_proj")
        size, axes = (config.hidden_size, config.ffn_size), ("embed", "ffn")
        self.mlp = None if sparse else GatedMLP(make, size, axes, bias=False, gain=gain, targets=targets)
        self.moe = SparseMLP(make, config, gain) if sparse else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T C"],
        sin: Float[Array, "B T C"],
        attend: Attend,
        cache: Any,
        real: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        added, kept = self.attn(self.attn_norm(x), cos, sin, attend, cache)
        x = split_tokens(x + added)
        if self.moe is not None:
            return x + self.moe(self.mlp_norm(x), real), kept
        mlp: Any = self.mlp
        return x + mlp(self.mlp_norm(x)), kept


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


@dataclasses.dataclass(frozen=True)
class LayerRun:
    """Neighbouring layers of one kind, which one scan runs."""

    sparse: bool
    layers: slice
    """Numbers of the layers in the model; `slice(None)` when they are all."""
    span: slice
    """Where they are in the stack of their kind; `slice(None)` when they are all of it."""

    def of(self, inputs: Any) -> Any:
        """The part of these layers of a pytree with a leading axis over all layers."""
        return inputs if self.layers == slice(None) else jax.tree.map(lambda leaf: leaf[self.layers], inputs)


def layer_runs(config: TextConfig) -> list[LayerRun]:
    """The layers in order, cut where their kind changes: one run in every released model."""
    kinds = [config.is_sparse(layer) for layer in range(config.num_layers)]
    runs, start = [], 0
    for sparse, group in itertools.groupby(kinds):
        end = start + len(list(group))
        first = kinds[:start].count(sparse)
        whole = end - start == kinds.count(sparse)
        span = slice(None) if whole else slice(first, first + end - start)
        layers = slice(None) if end - start == config.num_layers else slice(start, end)
        runs.append(LayerRun(sparse, layers, span))
        start = end
    return runs


class LanguageModel(nnx.Module):
    """Layers of one kind are stacked: `layers` holds those with an MLP, `sparse_layers` those with experts."""

    def __init__(self, make: ParamFactory, config: TextConfig) -> None:
        self.config = config
        self.embed = TokenTable(make, config)
        dense, sparse = len(config.dense_layers), len(config.sparse_layers)
        self.layers = DecoderLayer(make.stacked(dense), config, sparse=False) if dense else None
        self.sparse_layers = DecoderLayer(make.stacked(sparse), config, sparse=True) if sparse else None
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
        real: Bool[Array, "B T"] | None = None,
        remat: Remat = "products",
    ) -> tuple[Float[Array, "B T D"], Any]:
        """All layers and the final norm.

        Args:
            x: embedded tokens.
            cache: a pytree whose leaves have a leading layer axis, sliced for `attend`; or None.
            deepstack, image_index: visual features to add behind the first layers, and where; None for text.
            real: tokens whose hidden states somebody reads; experts may leave out the others. None: all.

        Returns:
            hidden states after the final norm, and what `attend` returned, stacked over the layers.
        """
        config = self.config
        cos, sin = text_rotary(
            positions,
            config.head_dim,
            config.rope_theta,
            config.mrope_section,
            interleaved=config.mrope_interleaved,
        )
        cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)

        def step(layer: DecoderLayer, x: Array, inputs: tuple[Array, Any]) -> tuple[Array, Any]:
            number, cache_slice = inputs
            x, kept = layer(x, cos, sin, attend, cache_slice, real)
            if deepstack is not None and image_index is not None and len(deepstack):
                # A branch rather than a second scan over the other layers: two scans would need two slices of the
                # stacked parameters, which XLA copies.
                x = jax.lax.cond(
                    number < len(deepstack),
                    lambda x: add_deepstack(x, deepstack, image_index, number),
                    lambda x: x,
                    x,
                )
            return split_tokens(x), kept

        x, numbers = split_tokens(x), jnp.arange(config.num_layers)
        kept = []
        for run in layer_runs(config):
            stack: Any = self.sparse_layers if run.sparse else self.layers
            x, more = scan_layers(stack, step, x, run.of((numbers, cache)), remat=remat, span=run.span)
            kept.append(more)
        return self.norm(x), kept[0] if len(kept) == 1 else jax.tree.map(lambda *runs: jnp.concatenate(runs), *kept)
