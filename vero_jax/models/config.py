"""The sizes and kinds of a model, as one frozen tree. `hf_config.py` reads it from a checkpoint's config.json.

A `ModelConfig` is hashable, so it can be a static argument of a jitted function.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vero_jax.data.patches import WITHOUT_WINDOWS, PatchLayout
from vero_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The language model: a Qwen decoder, dense or with experts."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """Rotary frequencies that read the time, height and width axis; they add up to half of `head_dim`."""
    mrope_interleaved: bool = True
    """Whether the three axes take turns along the frequencies (Qwen3-VL) or have one run each (Qwen2.5-VL)."""
    qk_norm: bool = True
    """Whether every head's query and key is normed before it is rotated (Qwen3)."""
    qkv_bias: bool = False
    """Whether the maps to queries, keys and values have a bias (Qwen2)."""
    rms_norm_eps: float = 1e-6
    num_experts: int = 0
    experts_per_token: int = 0
    expert_ffn_size: int = 0
    sparse_layers: tuple[int, ...] = ()
    """Layers whose MLP is a mixture of experts; in released models all of them or none."""
    max_position_embeddings: int = 262144
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @property
    def dense_layers(self) -> tuple[int, ...]:
        return tuple(layer for layer in range(self.num_layers) if layer not in self.sparse_layers)

    def is_sparse(self, layer: int) -> bool:
        return layer in self.sparse_layers


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower: a ViT over patches, with a merger in front of the language model."""

    depth: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    out_hidden_size: int
    """Width of a merged visual token; equal to the language model's hidden size."""
    num_positions: int
    """Entries of the learned position table, a square number; 0 where there is none (Qwen2.5-VL)."""
    deepstack_layers: tuple[int, ...]
    """Blocks whose output is also merged and added after the first language layers, in this order."""
    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    in_channels: int = 3
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel; from preprocessor_config.json, as is `image_std`."""
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    norm_eps: float = 1e-6
    style: Literal["qwen3_vl", "qwen2_5_vl"] = "qwen3_vl"
    """Layer norms, a plain MLP and biases everywhere; or RMS norms, a gated MLP and no bias on the patches."""
    window: int = 0
    """Merged tokens along one side of an attention window; 0 where every block sees whole frames."""
    full_attention_layers: tuple[int, ...] = ()
    """Blocks that see whole frames, where there are windows."""
    tokens_per_second: float = 0.0
    """Rotary time positions per second of video; 0 where time is written as text (Qwen3-VL)."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_elements(self) -> int:
        """E: numbers in one patch, ordered (channel, frame, row, column)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def positions_side(self) -> int:
        return math.isqrt(self.num_positions)

    @property
    def patch_layout(self) -> PatchLayout:
        """How the patches of a picture are ordered and labelled in the buffer that the tower reads."""
        return PatchLayout(self.merge_size, self.window)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A policy: a language model, with a vision tower or without. `UserError` when the numbers contradict each other.

    The ids of the visual tokens are None without a tower.
    """

    text: TextConfig
    vision: VisionConfig | None
    image_token_id: int | None
    video_token_id: int | None
    vision_start_token_id: int | None
    vision_end_token_id: int | None
    tie_word_embeddings: bool
    model_type: str = "qwen3_vl"

    def __post_init__(self) -> None:
        rules = [*_text_rules(self.text), *([] if self.vision is None else _vision_rules(self.vision, self.text))]
        for holds, complaint in rules:
            if not holds:
                raise UserError(f"the model config is inconsistent: {complaint}")

    @property
    def patch_layout(self) -> PatchLayout:
        """See `VisionConfig.patch_layout`; without a tower, a layout that nothing uses."""
        return WITHOUT_WINDOWS if self.vision is None else self.vision.patch_layout

    @classmethod
    def from_folder(cls, path: str | Path) -> ModelConfig:
        """Reads config.json and, if there, the image statistics of preprocessor_config.json.

        Raises:
            UserError: a file is missing, broken, incomplete or of an architecture that is not supported.
        """
        from vero_jax.models.hf_config import read_folder

        return read_folder(path)

    @classmethod
    def from_hf(
        cls, raw: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None, where: str = "config.json"
    ) -> ModelConfig:
        """From a parsed config.json in either spelling.

        Args:
            preprocessor: the parsed preprocessor_config.json; without its mean and deviation both are 0.5.
            where: how errors call the file.
        """
        from vero_jax.models.hf_config import read_config

        return read_config(raw, preprocessor, where)


def _text_rules(text: TextConfig) -> list[tuple[bool, str]]:
    return [
        (text.head_dim % 2 == 0, f"text head_dim {text.head_dim} must be even"),
        (
            len(text.mrope_section) == 3 and sum(text.mrope_section) == text.head_dim // 2,
            f"mrope_section {list(text.mrope_section)} must be three numbers that add up to half of head_dim "
            f"{text.head_dim}",
        ),
        (
            text.num_heads % text.num_kv_heads == 0,
            f"num_attention_heads {text.num_heads} must be a multiple of num_key_value_heads {text.num_kv_heads}",
        ),
        (
            not text.sparse_layers or 0 < text.experts_per_token <= text.num_experts,
            f"num_experts_per_tok {text.experts_per_token} must lie between 1 and num_experts {text.num_experts}",
        ),
        (
            not text.sparse_layers or text.expert_ffn_size > 0,
            f"moe_intermediate_size {text.expert_ffn_size} must be positive",
        ),
    ]


def _vision_rules(vision: VisionConfig, text: TextConfig) -> list[tuple[bool, str]]:
    return [
        (
            vision.hidden_size % vision.num_heads == 0 and vision.head_dim % 4 == 0,
            f"vision hidden_size {vision.hidden_size} over {vision.num_heads} heads must give a multiple of 4",
        ),
        (
            vision.positions_side**2 == vision.num_positions,
            f"num_position_embeddings {vision.num_positions} must be a square number",
        ),
        (
            vision.out_hidden_size == text.hidden_size,
            f"vision out_hidden_size {vision.out_hidden_size} must equal the text hidden_size {text.hidden_size}",
        ),
        (
            list(vision.deepstack_layers) == sorted(set(vision.deepstack_layers))
            and all(0 <= layer < vision.depth for layer in vision.deepstack_layers),
            f"deepstack_visual_indexes {list(vision.deepstack_layers)} must rise and lie below the vision depth "
            f"{vision.depth}",
        ),
        (
            len(vision.deepstack_layers) <= text.num_layers,
            f"{len(vision.deepstack_layers)} deepstack_visual_indexes need as many language layers, "
            f"num_hidden_layers is {text.num_layers}",
        ),
        (
            all(0 <= layer < vision.depth for layer in vision.full_attention_layers),
            f"fullatt_block_indexes {list(vision.full_attention_layers)} must lie below the vision depth "
            f"{vision.depth}",
        ),
        (
            len(vision.image_mean) == vision.in_channels == len(vision.image_std),
            f"image_mean and image_std need {vision.in_channels} numbers each",
        ),
    ]
