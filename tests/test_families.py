"""Sampler and learner on every family of models: one program each, and the same numbers in both."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vl import FAMILIES, tiny_config

from vero_jax.config import ActorConfig, MeshConfig, OptimConfig, RolloutConfig, SamplingConfig
from vero_jax.data.geometry import mrope_positions
from vero_jax.learning.programs import TrainablePolicy, to_host
from vero_jax.learning.update import Learner
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.sampling.engine import Engine
from vero_jax.types import Example, Group, Prompt

PICTURES = [[(1, 6, 10)], [], [(1, 4, 4), (1, 2, 6)], [(2, 4, 6)], [(1, 2, 2)]]
"""Grids of each prompt: one picture, text only, two pictures, a video of two frames, one token."""


def make_prompt(number: int, grids: list[tuple[int, int, int]], family: str) -> Prompt:
    config = tiny_config(family=family)
    rng = np.random.default_rng(number)
    ids = rng.integers(6, 80, 5).tolist()
    rows = [grid for frames, *side in grids for grid in [(1, *side)] * frames]
    for _, height, width in rows:
        ids += [92] + [90] * (height * width // 4) + [93] + rng.integers(6, 80, 2).tolist()
    token_ids, array = np.asarray(ids, np.int32), np.asarray(rows, np.int32).reshape(-1, 3)
    positions, image_index = mrope_positions(token_ids, array, image_token_id=90, video_token_id=91)
    elements = 0 if config.vision is None else config.vision.patch_elements
    patches = rng.integers(0, 256, (int(array.prod(axis=1).sum()), elements), dtype=np.uint8)
    example = Example(f"p{number}", "", "", (), (), "", "", {})
    return Prompt(example, token_ids, positions, image_index, patches, array)


@functools.cache
def policy(
    family: str, mesh_sizes: tuple[int, int, int] = (1, 1, 1)
) -> tuple[ModelDef, Any, Engine, jax.sharding.Mesh]:
    model_def = ModelDef(tiny_config(family=family))
    mesh = make_mesh(MeshConfig(*mesh_sizes), jax.devices()[: int(np.prod(mesh_sizes))])
    params = model_def.init_params(3)
    table = np.random.default_rng(1).normal(0, 0.5, params["language"]["embed"]["embedding"].shape)
    params["language"]["embed"]["embedding"] = jnp.asarray(table, jnp.float32)
    params = jax.device_put(params, model_def.shardings(mesh))
    rollout = RolloutConfig(concurrent_responses=8, prompt_buckets=(48,), patch_buckets=(64,), vocab_block=32)
    return model_def, params, Engine(model_def, rollout, mesh, stop_ids=[5], banned_ids=[90, 91, 92, 93]), mesh


def prompts(family: str) -> list[Prompt]:
    seeing = tiny_config(family=family).vision is not None
    return [make_prompt(number, grids if seeing else [], family) for number, grids in enumerate(PICTURES)]


def sample(family: str, mesh_sizes: tuple[int, int, int] = (1, 1, 1)) -> list[Group]:
    _, params, engine, _ = policy(family, mesh_sizes)
    found = dict(
        engine.generate(
            params, prompts(family), n=3, sampling=SamplingConfig(), seed=0, step=0, max_new_tokens=9
        )
    )  # fmt: skip
    return [found[index] for index in range(len(found))]


def learner(family: str, mesh_sizes: tuple[int, int, int] = (1, 1, 1)) -> Learner:
    model_def, _, _, mesh = policy(family, mesh_sizes)
    actor = ActorConfig(row_length=192, row_patches=192)
    trainable = TrainablePolicy.of_model(model_def, mesh, attention_block=64, vocab_block=32)
    return Learner(trainable, actor, OptimConfig(), mesh, max_response_length=9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_learner_gives_the_sampled_tokens_the_samplers_logprobs(family: str) -> None:
    groups = sample(family)
    _, params, _, _ = policy(family)
    learned = learner(family)
    plan = learned.pack(groups, keep_all=True)
    assert any(len(row) > 1 for row in plan.contents), "several groups must share a row"
    values = {}
    for index in range(plan.micro_batches):
        rows, _ = learned.programs.put_rows(plan.micro_batch(index))
        forward = TrainablePolicy.of_model(policy(family)[0], learned.mesh, attention_block=64, vocab_block=32).forward
        values[index] = to_host(jax.jit(forward)(params, rows)[0])
    for place in plan.places():
        row = values[place.row // plan.rows_per_micro_batch][place.row % plan.rows_per_micro_batch]
        response = groups[place.group].responses[place.response]
        np.testing.assert_allclose(row[place.start : place.start + place.length], response.logprobs, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_do_not_depend_on_the_mesh(family: str) -> None:
    for ours, sharded in zip(sample(family), sample(family, (2, 2, 2)), strict=True):
        for one, other in zip(ours.responses, sharded.responses, strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen2_5_vl"])
def test_pictures_matter(family: str) -> None:
    _, params, engine, _ = policy(family)
    changed = [
        Prompt(p.example, p.token_ids, p.positions, p.image_index, 255 - p.patches, p.grids) for p in prompts(family)
    ]
    greedy = SamplingConfig(temperature=0.0)
    before, after = (
        dict(engine.generate(params, batch, n=1, sampling=greedy, seed=0, step=0, max_new_tokens=9))
        for batch in (prompts(family), changed)
    )
    for index, grids in enumerate(PICTURES):
        one, other = before[index].responses[0], after[index].responses[0]
        assert (len(grids) > 0) == (one.logprobs[0] != other.logprobs[0])
