"""A whole policy with experts on one device and on eight: one update, and what is sampled."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning.policies import IMAGE_TOKEN, random_groups, tiny_model

from vero_jax.config import ActorConfig, MeshConfig, OptimConfig, RolloutConfig, SamplingConfig
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.sampling.engine import Engine

ALONE = {"data": 1}
SPREAD = {"data": 1, "expert": 4, "fsdp": 2}
WITH_TENSOR = {"data": 1, "expert": 2, "fsdp": 2, "tensor": 2}


@functools.cache
def model(remat="products", **types: str) -> ModelDef:
    """Two layers of eight experts, three for a token."""
    dense = tiny_model()
    text = dataclasses.replace(
        dense.config.text, num_experts=8, experts_per_token=3, expert_ffn_size=16, sparse_layers=(0, 1)
    )
    return ModelDef(dataclasses.replace(dense.config, text=text, model_type="qwen3_vl_moe"), remat=remat, **types)


def mesh_of(sizes):
    mesh = MeshConfig(**sizes)
    return make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.expert * mesh.tensor])


@functools.cache
def params():
    tree = model().init_params(3)
    table = np.random.default_rng(1).normal(0, 0.2, tree["language"]["embed"]["embedding"].shape)
    tree["language"]["embed"]["embedding"] = jnp.asarray(table, jnp.float32)
    return tree


def update(sizes, remat="products"):
    """Parameters after one update, and its metrics."""
    mesh = mesh_of(sizes)
    policy = TrainablePolicy.of_model(model(remat), mesh, attention_block=64, vocab_block=128)
    actor = ActorConfig(
        row_length=128, row_patches=128, row_rungs=1, mini_batch_prompts=100, clip_ratio_low=0.2, clip_ratio_high=0.2
    )
    # A large eps: Adam's first step is otherwise the sign of a gradient, also of one that is nothing but noise.
    optim = OptimConfig(lr=0.1, warmup_steps=0, eps=1e-2)
    learner = Learner(policy, actor, optim, mesh, max_response_length=32)
    state = learner.init_state(jax.device_put(params(), model().shardings(mesh)))
    state, metrics = learner.step(state, random_groups(9), 1)
    return jax.tree.map(np.asarray, state.params), metrics


@pytest.fixture(scope="module")
def alone():
    return update(ALONE)


@pytest.mark.parametrize(
    ("sizes", "remat"),
    [(SPREAD, "products"), pytest.param(WITH_TENSOR, "layers", marks=pytest.mark.slow)],
    ids=["expert4 fsdp2", "expert2 fsdp2 tensor2"],
)
def test_an_update_is_that_of_one_device(alone, sizes, remat):
    got, metrics = update(sizes, remat)
    for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy"):
        np.testing.assert_allclose(metrics[name], alone[1][name], rtol=1e-5, atol=1e-6, err_msg=name)
    before = params()
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), alone[0], before)
    experts = moved["language"]["sparse_layers"]["moe"]
    assert min(experts["gate"], experts["up"], experts["down"], experts["router"]["kernel"]) > 1e-3
    for ours, want in zip(jax.tree.leaves(got), jax.tree.leaves(alone[0]), strict=True):
        np.testing.assert_allclose(ours, want, atol=1e-5)


@functools.cache
def samples(**sizes: int):
    mesh = mesh_of(sizes)
    # Prompts of more than 16 tokens are read in chunks.
    rollout = RolloutConfig(
        concurrent_responses=16, prompt_buckets=(16, 64), patch_buckets=(64,), prompt_page=16, response_page=8,
        prefill_chunk=16, attention_block=16, vocab_block=64,
    )  # fmt: skip
    engine = Engine(model(), rollout, mesh, stop_ids=[2], banned_ids=[IMAGE_TOKEN])
    prompts = [group.prompt for group in random_groups(9)]
    assert {len(prompt.token_ids) > 16 for prompt in prompts} == {True, False}
    placed = jax.device_put(params(), model().shardings(mesh))
    found = dict(engine.generate(placed, prompts, n=3, sampling=SamplingConfig(), seed=1, step=0, max_new_tokens=12))
    return engine, [response for index in range(len(prompts)) for response in found[index].responses]


@pytest.mark.parametrize(
    "sizes",
    [SPREAD, pytest.param(WITH_TENSOR, marks=pytest.mark.slow)],
    ids=["expert4 fsdp2", "expert2 fsdp2 tensor2"],
)
def test_samples_are_those_of_one_device(sizes):
    _, want = samples(**ALONE)
    _, got = samples(**sizes)
    assert len({tuple(response.token_ids) for response in want}) > 20
    for ours, one in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours.token_ids, one.token_ids)
        np.testing.assert_allclose(ours.logprobs, one.logprobs, atol=1e-5)


def test_sampling_gathers_all_weights_but_the_experts():
    engine, _ = samples(**SPREAD)
    trained = model().shardings(engine.mesh)["language"]["sparse_layers"]
    sampling = engine._sampling_shardings()["language"]["sparse_layers"]
    assert tuple(trained["moe"]["gate"].spec) == (None, "expert", "fsdp", None)
    assert tuple(sampling["moe"]["gate"].spec) == (None, "expert", None, None)
    assert tuple(trained["attn"]["q"]["kernel"].spec) == (None, ("fsdp", "expert"), None)
    assert set(sampling["attn"]["q"]["kernel"].spec) == {None}
