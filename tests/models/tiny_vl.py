"""Policies of every family, small enough for every test, and inputs for them."""

from __future__ import annotations

import dataclasses

import numpy as np

from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vero_jax.models.inputs import VisionInputs

FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen3", "qwen2")


def tiny_config(tie: bool = True, family: str = "qwen3_vl") -> ModelConfig:
    """A policy of the family; experts and windows included where it has them."""
    text = TextConfig(
        vocab_size=96,
        hidden_size=24,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_size=40,
        rope_theta=10000.0,
        mrope_section=(2, 1, 1),
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = VisionConfig(
        depth=3,
        hidden_size=16,
        num_heads=2,
        ffn_size=24,
        out_hidden_size=24,
        num_positions=16,
        deepstack_layers=(0, 2),
        patch_size=4,
    )
    if family == "qwen3_vl_moe":
        text = dataclasses.replace(
            text, num_experts=5, experts_per_token=2, expert_ffn_size=9, sparse_layers=tuple(range(text.num_layers))
        )
    if family.startswith("qwen2"):
        text = dataclasses.replace(text, head_dim=6, qk_norm=False, qkv_bias=True, mrope_section=(1, 1, 1))
    if family == "qwen2_5_vl":
        text = dataclasses.replace(text, mrope_interleaved=False)
        vision = dataclasses.replace(
            vision,
            num_positions=0,
            deepstack_layers=(),
            style="qwen2_5_vl",
            window=2,
            full_attention_layers=(1,),
            tokens_per_second=2.0,
        )
    if family in ("qwen3", "qwen2"):
        text = dataclasses.replace(text, mrope_section=(text.head_dim // 2, 0, 0), mrope_interleaved=False)
        return ModelConfig(text, None, None, None, None, None, tie, family)
    return ModelConfig(text, vision, 90, 91, 92, 93, tie, family)


def vision_inputs(
    config: ModelConfig, grids: list[list[tuple[int, int, int]]], patches: int, seed: int = 0
) -> VisionInputs:
    """Random pictures: one list of grids per row, each row padded to a number of patches."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in grids:
        arranged = config.patch_layout.arrange(np.asarray(row, np.int32).reshape(-1, 3))
        pixels = rng.integers(0, 256, (len(arranged.order), config.vision.patch_elements), np.uint8)
        columns = [pixels[arranged.order], arranged.coords, arranged.sizes, arranged.segments]
        if arranged.windows is not None:
            columns.append(arranged.windows)
        padding = patches - len(pixels)
        rows.append([np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in columns])
    return VisionInputs(*(np.stack(column) for column in zip(*rows, strict=True)))
