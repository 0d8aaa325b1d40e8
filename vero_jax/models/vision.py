"""The vision towers of Qwen3-VL and Qwen2.5-VL: packed patches in, merged visual tokens and DeepStack features out.

Any number of images shares one buffer. Where a patch lies, how large its image is and which frame it belongs to are
arrays, so one compiled program serves every mixture of images.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, UInt8

from vero_jax.models.attention import segment_attention
from vero_jax.models.config import VisionConfig
from vero_jax.models.inputs import VisionInputs
from vero_jax.models.layers import GatedMLP, LayerNorm, Linear, ParamFactory, Remat, RMSNorm, rounded_once, scan_layers
from vero_jax.models.rope import patch_rotary, rotate
from vero_jax.parallel.sharding import split_tokens

ATTENTION_BLOCK = 512
"""Patches per block of attention: the scores of a block fit a core's fast memory, larger images take several."""
WINDOW_BLOCK = 128
"""The same in towers with windows: two of Qwen2.5-VL's windows of 64 patches, so that a block meets few others."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """What the language model takes from the images of each row, M = P / 4 tokens; padding holds finite noise."""

    embeds: Float[Array, "B M D"]
    """Stand in for the embeddings of the visual tokens."""
    deepstack: Float[Array, "S B M D"]
    """Added to the residual stream at the visual tokens after language layers 0 .. S-1."""


def pixel_table(config: VisionConfig) -> Float32[np.ndarray, "channels 256"]:
    """The normalised value of every byte, per channel: (u8 / 255 - mean) / std, rounded as the image processor does.

    The product with 1/255 is taken in float64 and rounded once, the rest is float32. A device's own arithmetic may fuse
    or reorder these steps, so they are done here and looked up there.
    """
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean = np.asarray(config.image_mean, np.float32)[:, None]
    std = np.asarray(config.image_std, np.float32)[:, None]
    return (scaled - mean) / std


def normalise_patches(patches: UInt8[Array, "B P E"], config: VisionConfig) -> Float32[Array, "B P E"]:
    """Raw pixels to the values that the checkpoint was trained on; E is ordered (channel, frame, row, column)."""
    channel = np.repeat(np.arange(config.in_channels) * 256, config.patch_elements // config.in_channels)
    table = jnp.asarray(pixel_table(config).reshape(-1))
    return jnp.take(table, patches.astype(jnp.int32) + channel.astype(np.int32), axis=0, mode="clip")


def position_sources(coords: Int[Array, "B P 2"], sizes: Int[Array, "B P 2"], side: int) -> Float32[Array, "B P 2"]:
    """Where a patch falls in the learned side x side table: the image's corners meet the table's corners."""
    return coords.astype(jnp.float32) * (side - 1) / jnp.maximum(sizes - 1, 1).astype(jnp.float32)


def interpolate_positions(
    table: Float[Array, "N D"], coords: Int[Array, "B P 2"], sizes: Int[Array, "B P 2"]
) -> Float32[Array, "B P D"]:
    """Bilinear reading of the learned position table, weights and sum in float32."""
    side = round(table.shape[0] ** 0.5)
    source = position_sources(coords, sizes, side)
    low = jnp.clip(jnp.floor(source), 0, side - 1).astype(jnp.int32)
    high = jnp.minimum(low + 1, side - 1)
    share = source - low
    total = jnp.zeros((*coords.shape[:-1], table.shape[1]), jnp.float32)
    for row, row_weight in ((low[..., 0], 1 - share[..., 0]), (high[..., 0], share[..., 0])):
        for column, column_weight in ((low[..., 1], 1 - share[..., 1]), (high[..., 1], share[..., 1])):
            corner = jnp.take(table, row * side + column, axis=0, mode="clip").astype(jnp.float32)
            total += corner * (row_weight * column_weight)[..., None]
    return total


def position_waves(side: int, width: int) -> Float32[np.ndarray, "N D"]:
    """Start of the position table: sines and cosines of row and column (as in MAE, He et al. 2021, appendix A.1).

    Frequencies rise geometrically from a quarter of a wave to four waves across the image; columns of the table that
    are left over (D not a multiple of 4) are 0.
    """
    count = width // 4
    waves = 0.25 * 16.0 ** (np.arange(count) / max(count - 1, 1))
    angles = 2 * np.pi * np.arange(side)[:, None] / max(side - 1, 1) * waves
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = np.zeros((side, side, width), np.float32)
    table[:, :, : 2 * count] = axis[:, None]
    table[:, :, 2 * count : 4 * count] = axis[None]
    return table.reshape(side * side, width)


def block_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The blocks were trained with the tanh approximation (Hendrycks and Gimpel 2016)."""
    return rounded_once(functools.partial(jax.nn.gelu, approximate=True), x)


def merger_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The mergers were trained with the exact (erf) form."""
    return rounded_once(functools.partial(jax.nn.gelu, approximate=False), x)


class VisionAttention(nnx.Module):
    def __init__(self, make: ParamFactory, config: VisionConfig, gain: float) -> None:
        size, axes = (config.hidden_size, config.hidden_size), ("vision_embed", "vision_heads")
        self.q = Linear(make, size, axes, bias=True)
        self.k = Linear(make, size, axes, bias=True)
        self.v = Linear(make, size, axes, bias=True)
        self.out = Linear(make, size, axes[::-1], bias=True, gain=gain)
        self.num_heads = config.num_heads
        self.block = WINDOW_BLOCK if config.window else ATTENTION_BLOCK

    def __call__(
        self,
        x: Float[Array, "B P D"],
        cos: Float32[Array, "B P C"],
        sin: Float32[Array, "B P C"],
        segments: Int[Array, "B P"],
    ) -> Float[Array, "B P D"]:
        heads = (*x.shape[:-1], self.num_heads, -1)
        q, k, v = (project(x).reshape(heads) for project in (self.q, self.k, self.v))
        q, k = (rotate(part.astype(jnp.float32), cos, sin).astype(x.dtype) for part in (q, k))
        return self.out(segment_attention(q, k, v, segments, self.block).reshape(x.shape))


class VisionMLP(nnx.Module):
    def __init__(self, make: ParamFactory, config: VisionConfig, gain: float) -> None:
        axes = ("vision_embed", "vision_ffn")
        self.fc1 = Linear(make, (config.hidden_size, config.ffn_size), axes, bias=True)
        self.fc2 = Linear(make, (config.ffn_size, config.hidden_size), axes[::-1], bias=True, gain=gain)

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        return self.fc2(block_gelu(self.fc1(x)))


def make_norm(make: ParamFactory, config: VisionConfig, size: int) -> LayerNorm | RMSNorm:
    """The tower's kind of norm."""
    return (LayerNorm if config.style == "qwen3_vl" else RMSNorm)(make, size, config.norm_eps)


class VisionBlock(nnx.Module):
    """Pre-norm transformer block; a patch sees the patches of its own segment: a frame of an image, or a window."""

    def __init__(self, make: ParamFactory, config: VisionConfig) -> None:
        gain = (2 * config.depth) ** -0.5  # keeps the residual stream of a new tower of order one (GPT-2's rule)
        self.norm1 = make_norm(make, config, config.hidden_size)
        self.attn = VisionAttention(make, config, gain)
        self.norm2 = make_norm(make, config, config.hidden_size)
        size, axes = (config.hidden_size, config.ffn_size), ("vision_embed", "vision_ffn")
        plain = config.style == "qwen3_vl"
        self.mlp = VisionMLP(make, config, gain) if plain else GatedMLP(make, size, axes, bias=True, gain=gain)

    def __call__(
        self,
        x: Float[Array, "B P D"],
        cos: Float32[Array, "B P C"],
        sin: Float32[Array, "B P C"],
        segments: Int[Array, "B P"],
    ) -> Float[Array, "B P D"]:
        x = split_tokens(x + self.attn(self.norm1(x), cos, sin, segments))
        return split_tokens(x + self.mlp(self.norm2(x)))


class Merger(nnx.Module):
    """Four neighbouring patches become one token of the language model's width.

    The main merger norms each patch; DeepStack's norm the four together.
    """

    def __init__(self, make: ParamFactory, config: VisionConfig, *, norm_after: bool) -> None:
        self.norm_after = norm_after
        self.patches = config.merge_size**2
        width = config.hidden_size * self.patches
        self.norm = make_norm(make, config, width if norm_after else config.hidden_size)
        self.fc1 = Linear(make, (width, width), ("vision_embed", "vision_ffn"), bias=True)
        self.fc2 = Linear(make, (width, config.out_hidden_size), ("vision_ffn", "embed"), bias=True)

    def __call__(self, x: Float[Array, "B P Dv"]) -> Float[Array, "B M D"]:
        merged = (x.shape[0], x.shape[1] // self.patches, -1)
        x = self.norm(x.reshape(merged)) if self.norm_after else self.norm(x).reshape(merged)
        return self.fc2(merger_gelu(self.fc1(x)))


class PositionTable(nnx.Module):
    def __init__(self, make: ParamFactory, config: VisionConfig) -> None:
        # Waves as large as the patches' own embeddings: with small random entries a new tower sees what is in a picture
        # long before it sees where, and a policy that cannot tell two things apart does not learn to read scenes.
        side = round(config.num_positions**0.5)
        self.embedding = make.fixed(position_waves(side, config.hidden_size), ("positions", "vision_embed"))


class VisionTower(nnx.Module):
    """Patch embedding, learned (Qwen3-VL) and rotary positions, blocks, mergers."""

    def __init__(self, make: ParamFactory, config: VisionConfig) -> None:
        self.config = config
        self.patch_embed = Linear(
            make,
            (config.patch_elements, config.hidden_size),
            ("patch", "vision_embed"),
            bias=config.style == "qwen3_vl",
        )
        self.pos_embed = PositionTable(make, config) if config.num_positions else None
        self.blocks = VisionBlock(make.stacked(config.depth), config)
        self.merger = Merger(make, config, norm_after=False)
        taps = len(config.deepstack_layers)
        self.deepstack = Merger(make.stacked(taps), config, norm_after=True) if taps else None

    def run_blocks(
        self, vision: VisionInputs, dtype: jnp.dtype, *, remat: Remat = "products"
    ) -> tuple[Float[Array, "B P Dv"], Float[Array, "S B P Dv"]]:
        """The last block's output, and the outputs of the blocks that DeepStack taps, in the order of the config."""
        config = self.config
        if bool(config.window) != (vision.windows is not None):
            raise ValueError(f"a tower with window {config.window} needs VisionInputs made with its own patch_layout")
        patches = vision.patches
        if patches.dtype == jnp.uint8:
            patches = normalise_patches(patches, config)
        x = self.patch_embed(patches.astype(dtype))
        if self.pos_embed is not None:
            x = x + interpolate_positions(self.pos_embed.embedding[...], vision.coords, vision.sizes).astype(dtype)
        cos, sin = patch_rotary(vision.coords, config.head_dim)
        # Every block writes its output to one slot of a buffer; those that are not tapped write to the last one,
        # which nobody reads. The write is in place, so the taps cost their own memory and no branch.
        taps = len(config.deepstack_layers)
        slots = np.full(config.depth, taps, np.int32)
        slots[list(config.deepstack_layers)] = np.arange(taps)

        # Which blocks see whole frames is data to the loop, too: one traced block serves both kinds.
        whole = np.ones(config.depth, bool)
        if config.window:
            whole[:] = False
            whole[list(config.full_attention_layers)] = True

        def step(
            block: VisionBlock, carry: tuple[Array, Array], inputs: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            (x, buffer), (slot, whole) = carry, inputs
            segments = vision.segments
            if vision.windows is not None:
                segments = jnp.where(whole, segments, vision.windows)
            x = block(x, cos, sin, segments)
            return (x, jax.lax.dynamic_update_index_in_dim(buffer, x, slot, 0) if taps else buffer), None

        x = split_tokens(x)
        carry = (x, jnp.zeros((taps + 1 if taps else 0, *x.shape), x.dtype))
        (x, buffer), _ = scan_layers(self.blocks, step, carry, (jnp.asarray(slots), jnp.asarray(whole)), remat=remat)
        return x, buffer[:taps]

    def __call__(self, vision: VisionInputs, dtype: jnp.dtype, *, remat: Remat = "products") -> ImageFeatures:
        """Encodes the images of each row; features come in the order of the patches.

        Args:
            vision: packed patches; P must be a multiple of merge_size ** 2.
            dtype: of the activations.
            remat: what a block keeps for the backward pass.
        """
        x, tapped = self.run_blocks(vision, dtype, remat=remat)
        embeds = self.merger(x)
        if self.deepstack is None:
            return ImageFeatures(embeds, jnp.zeros((0, *embeds.shape), embeds.dtype))
        _, deepstack = scan_layers(self.deepstack, lambda merge, _, tap: (None, merge(tap)), None, tapped, remat=remat)
        return ImageFeatures(embeds, deepstack)
