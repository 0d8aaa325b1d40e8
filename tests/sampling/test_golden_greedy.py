"""Greedy answers and their log-probabilities against recorded ones of Hugging Face's generate."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import golden_dir

from vero_jax.checkpoints.weights import load_params
from vero_jax.config import MeshConfig, RolloutConfig, SamplingConfig
from vero_jax.data.hf_batch import VisualTokens, prompts_from_batch
from vero_jax.models.config import ModelConfig
from vero_jax.models.hf_config import SUPPORTED
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.sampling.engine import Engine
from vero_jax.types import Prompt

pytestmark = pytest.mark.golden_model

FOLDERS = [
    path.parent
    for path in sorted(golden_dir("model").glob("*/config.json"))
    if json.loads(path.read_text())["model_type"] in SUPPORTED
]
PIXELS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


def recorded(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The left-padded batch of the recorded run, and what came out of it."""
    io = np.load(folder / "io.npz")
    source = json.loads((folder / "meta.json").read_text())["gen_pixels_from"]
    batch = {key: io[f"gen.{key}"] for key in ("input_ids", "attention_mask")}
    batch |= {key: io[f"{source}.{key}"] for key in PIXELS if f"{source}.{key}" in io.files}
    return batch, {key: io[f"gen.{key}"] for key in ("tokens", "logprobs", "position_ids")}


def padded_right(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same rows with their padding behind them."""
    order = np.argsort(1 - batch["attention_mask"], axis=1, kind="stable")
    return batch | {key: np.take_along_axis(batch[key], order, axis=1) for key in ("input_ids", "attention_mask")}


def visual_tokens(config: ModelConfig) -> VisualTokens:
    seconds = 0.0 if config.vision is None else config.vision.tokens_per_second
    return VisualTokens(config.image_token_id, config.video_token_id, config.patch_layout.merge_size, seconds)


def prompts_of(batch: dict[str, np.ndarray], config: ModelConfig, padding: str) -> list[Prompt]:
    if padding != "none":
        return prompts_from_batch(padded_right(batch) if padding == "right" else batch, visual_tokens(config))
    singles, videos = [], 0
    for prompt in prompts_from_batch(batch, visual_tokens(config)):
        single = _as_batch(prompt, config)
        if "second_per_grid_ts" in batch:
            count = len(single.get("video_grid_thw", ()))
            single["second_per_grid_ts"] = batch["second_per_grid_ts"][videos : videos + count]
            videos += count
        singles += prompts_from_batch(single, visual_tokens(config))
    return singles


def _as_batch(prompt: Prompt, config: ModelConfig) -> dict[str, np.ndarray]:
    """One row without padding, its images and its videos apart."""
    visual = [token for token in prompt.token_ids if token in (config.image_token_id, config.video_token_id)]
    parts: dict[str, list[np.ndarray]] = {}
    patch = 0
    for grid in prompt.grids:
        kind = PIXELS[:2] if visual[patch // 4] == config.image_token_id else PIXELS[2:4]
        parts.setdefault(kind[0], []).append(prompt.patches[patch : patch + grid.prod()])
        parts.setdefault(kind[1], []).append(grid[None])
        patch += int(grid.prod())
    return {"input_ids": prompt.token_ids[None]} | {key: np.concatenate(part) for key, part in parts.items()}


@functools.cache
def engine(folder: Path, config: ModelConfig) -> Engine:
    rollout = RolloutConfig(concurrent_responses=3, prompt_buckets=(128,), patch_buckets=(384,), vocab_block=128)
    return Engine(ModelDef(config), rollout, make_mesh(MeshConfig(), jax.devices()[:1]), stop_ids=[])


@functools.cache
def params(folder: Path, config: ModelConfig) -> Any:
    return load_params(folder, ModelDef(config))


@pytest.mark.parametrize("padding", ["left", "right", "none"])
@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_greedy_generation_equals_the_recorded_one(folder, padding):
    config = ModelConfig.from_folder(folder)
    batch, gen = recorded(folder)
    prompts = prompts_of(batch, config, padding)
    for row, prompt in enumerate(prompts):
        real = batch["attention_mask"][row].astype(bool)
        np.testing.assert_array_equal(prompt.positions, gen["position_ids"][:, row, real].T)
    got = engine(folder, config).generate(
        params(folder, config), prompts, n=2, sampling=SamplingConfig(temperature=0.0), seed=0, step=0,
        max_new_tokens=gen["tokens"].shape[1],
    )  # fmt: skip
    count = 0
    for index, group in got:
        count += 1
        for response in group.responses:
            np.testing.assert_array_equal(response.token_ids, gen["tokens"][index])
            np.testing.assert_allclose(response.logprobs, gen["logprobs"][index], atol=1.5e-4)
    assert count == len(prompts)


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_decoding_without_the_images_advance_would_be_seen(folder, monkeypatch):
    """The first response token stands where the prompt's positions end, not at the number of its tokens."""
    config = ModelConfig.from_folder(folder)
    batch, gen = recorded(folder)
    prompts = prompts_of(batch, config, "left")
    monkeypatch.setattr(Prompt, "next_position", property(lambda prompt: len(prompt.token_ids)))
    got = dict(engine(folder, config).generate(
        params(folder, config), prompts, n=1, sampling=SamplingConfig(temperature=0.0), seed=0, step=0,
        max_new_tokens=gen["tokens"].shape[1],
    ))  # fmt: skip
    assert any(
        not np.array_equal(got[row].responses[0].token_ids, gen["tokens"][row])
        or np.abs(got[row].responses[0].logprobs - gen["logprobs"][row]).max() > 1e-3
        for row in range(len(prompts))
    )
