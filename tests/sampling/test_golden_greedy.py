"""Greedy answers and their log-probabilities against recorded ones of Hugging Face's generate."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import golden_dir

from vero_jax.config import MeshConfig, RolloutConfig, SamplingConfig
from vero_jax.models.config import SUPPORTED, ModelConfig
from vero_jax.models.policy import ModelDef
from vero_jax.models.weights import load_params
from vero_jax.parallel.mesh import make_mesh
from vero_jax.sampling.engine import Engine
from vero_jax.types import Example, Prompt

pytestmark = pytest.mark.golden_model

FOLDERS = [
    path.parent
    for path in sorted(golden_dir("model").glob("*/config.json"))
    if json.loads(path.read_text())["model_type"] in SUPPORTED
]


def recorded_prompts(folder: Path, config: ModelConfig) -> tuple[list[Prompt], dict[str, np.ndarray]]:
    """The left-padded prompts of the recorded run, with their normalised patches, and its other arrays."""
    io = np.load(folder / "io.npz")
    gen = {key.removeprefix("gen."): io[key] for key in io.files if key.startswith("gen.")}
    source = json.loads((folder / "meta.json").read_text())["gen_pixels_from"]
    streams = {}
    for token, pixels, grids in (
        (config.image_token_id, "pixel_values", "image_grid_thw"),
        (config.video_token_id, "pixel_values_videos", "video_grid_thw"),
    ):
        if f"{source}.{grids}" in io.files:
            streams[token] = [io[f"{source}.{pixels}"], io[f"{source}.{grids}"].tolist()]
    prompts = []
    for row, (ids, mask) in enumerate(zip(gen["input_ids"], gen["attention_mask"].astype(bool), strict=True)):
        ids = ids[mask]
        image_index, patches, grids, seen = np.full(len(ids), -1, np.int32), [], [], 0
        waiting = dict.fromkeys(streams, 0)
        for place, token in enumerate(ids):
            if token not in streams:
                continue
            if waiting[token] == 0:  # the first token of the next image or video
                values, left = streams[token]
                grid = left.pop(0)
                size = int(np.prod(grid))
                patches.append(values[:size])
                streams[token][0] = values[size:]
                grids.append(grid)
                waiting[token] = size // config.vision.merge_size**2
            waiting[token] -= 1
            image_index[place], seen = seen, seen + 1
        empty = np.zeros((0, config.vision.patch_elements), np.float32)
        prompts.append(
            Prompt(
                example=Example(str(row), "", "", (), (), "", "", {}),
                token_ids=ids.astype(np.int32),
                positions=gen["position_ids"][:, row].T[mask].astype(np.int32),
                image_index=image_index,
                patches=np.concatenate(patches) if patches else empty,
                grids=np.asarray(grids, np.int32).reshape(-1, 3),
            )
        )
    return prompts, gen


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_greedy_generation_equals_the_recorded_one(folder):
    config = ModelConfig.from_folder(folder)
    model_def = ModelDef(config)
    prompts, gen = recorded_prompts(folder, config)
    rollout = RolloutConfig(groups_per_call=3, prompt_buckets=(96,), patch_buckets=(256,), vocab_block=128)
    engine = Engine(model_def, rollout, make_mesh(MeshConfig(), jax.devices()[:1]), stop_ids=[])
    length = gen["tokens"].shape[1]
    got = engine.generate(
        load_params(folder, model_def), prompts, n=2, sampling=SamplingConfig(temperature=0.0), seed=0, step=0,
        max_new_tokens=length,
    )  # fmt: skip
    count = 0
    for index, group in got:
        count += 1
        for response in group.responses:
            np.testing.assert_array_equal(response.token_ids, gen["tokens"][index])
            np.testing.assert_allclose(response.logprobs, gen["logprobs"][index], atol=1.5e-4)
    assert count == len(prompts)
