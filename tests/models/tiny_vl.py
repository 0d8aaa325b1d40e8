"""A policy small enough for every test, and inputs for it."""

from __future__ import annotations

import numpy as np

from vero_jax.data.geometry import patch_geometry
from vero_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vero_jax.models.inputs import VisionInputs


def tiny_config(tie: bool = True) -> ModelConfig:
    return ModelConfig(
        text=TextConfig(
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
        ),
        vision=VisionConfig(
            depth=3,
            hidden_size=16,
            num_heads=2,
            ffn_size=24,
            out_hidden_size=24,
            num_positions=16,
            deepstack_layers=(0, 2),
            patch_size=4,
        ),
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
        tie_word_embeddings=tie,
    )


def vision_inputs(
    config: ModelConfig, grids: list[list[tuple[int, int, int]]], patches: int, seed: int = 0
) -> VisionInputs:
    """Random pictures: one list of grids per row, each row padded to a number of patches."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in grids:
        geometry = patch_geometry(np.asarray(row, np.int32).reshape(-1, 3))
        pixels = rng.integers(0, 256, (len(geometry[2]), config.vision.patch_elements), np.uint8)
        padding = patches - len(pixels)
        rows.append([np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in (pixels, *geometry)])
    return VisionInputs(*(np.stack(column) for column in zip(*rows, strict=True)))
