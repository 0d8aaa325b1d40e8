"""Gradients over random layouts of rows, and the types that masters, moments and gradients have."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.learning.policies import random_groups, table_policy, tiny_model
from vero_jax.config import ActorConfig, MeshConfig, OptimConfig
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner
from vero_jax.parallel.mesh import make_mesh
from vero_jax.parallel.sharding import replicated


def gradient(learner, params, groups):
    """Gradient of one mini-batch as one vector, and the shape of its rows with the number of its micro-batches."""
    plan = learner.pack(groups)
    total = learner.programs.zeros()
    for index in range(plan.micro_batches):
        total, *_ = learner.programs.accumulate(params, total, learner._batch(plan, index))
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(total)])
    return flat, (plan.shape, plan.micro_batches)


@pytest.mark.parametrize("loss_mode", ["gspo", "vanilla"])
def test_random_layouts_give_the_same_gradient(loss_mode):
    """Norm of the difference over the norm, over row lengths, rows of a micro-batch, orders and split groups."""
    mesh, rng = make_mesh(MeshConfig(), jax.devices()[:1]), np.random.default_rng(0)
    shapes = {"E": (100, 6), "W": (6, 100), "b": (100,)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    policy = TrainablePolicy(table_policy, params, jax.tree.map(lambda _: replicated(mesh), params))
    groups = random_groups(11, images=False, seed=4)
    found, layouts = [], set()
    for trial in range(12):
        actor = ActorConfig(
            loss_mode=loss_mode,
            clip_ratio_low=0.2,
            mini_batch_prompts=100,
            row_length=int(rng.choice([48, 64, 96, 160, 320, 512])),
            rows_per_micro_batch=int(rng.integers(1, 5)),
            row_rungs=int(rng.integers(1, 4)),
        )
        learner = Learner(policy, actor, OptimConfig(), mesh, max_response_length=32)
        laid_out = [groups[i] for i in rng.permutation(len(groups))]
        if trial % 3 == 2:  # every response with a prefix of its own
            laid_out = [
                dataclasses.replace(group, responses=(response,), advantages=group.advantages[i : i + 1])
                for group in laid_out
                for i, response in enumerate(group.responses)
            ]
        vector, layout = gradient(learner, params, laid_out)
        found.append(vector)
        layouts.add(layout)
    assert len(layouts) >= 6
    size = np.linalg.norm(found[0])
    assert size > 0
    assert max(np.linalg.norm(other - found[0]) for other in found[1:]) <= 1e-5 * size


@pytest.mark.slow
def test_masters_moments_and_gradients_are_float32_beside_bfloat16_activations():
    """The gradient of many micro-batches is their sum in float32, which bfloat16 sums would miss by far."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model_def = dataclasses.replace(tiny_model(), dtype="bfloat16")
    policy = TrainablePolicy.of_model(model_def, mesh, attention_block=64, vocab_block=128)
    actor = ActorConfig(row_length=128, row_patches=128, row_rungs=1, mini_batch_prompts=100, clip_ratio_low=0.2)
    learner = Learner(policy, actor, OptimConfig(lr=1e-3, warmup_steps=0), mesh, max_response_length=32)
    params, groups = model_def.init_params(0), random_groups(8)
    plan = learner.pack(groups)
    assert plan.micro_batches >= 3
    parts = [
        learner.programs.accumulate(params, learner.programs.zeros(), learner._batch(plan, index))[0]
        for index in range(plan.micro_batches)
    ]
    total = learner.programs.zeros()
    for index in range(plan.micro_batches):
        total, *_ = learner.programs.accumulate(params, total, learner._batch(plan, index))
    for leaf, *pieces in zip(jax.tree.leaves(total), *map(jax.tree.leaves, parts), strict=True):
        assert leaf.dtype == jnp.float32
        exact = sum(np.asarray(piece, np.float64) for piece in pieces)
        largest = max(float(np.abs(piece).max()) for piece in pieces)
        np.testing.assert_allclose(leaf, exact, rtol=1e-6, atol=1e-6 * largest)
    state, _ = learner.step(learner.init_state(params), groups, 1)
    kept = [*jax.tree.leaves(state.params), *jax.tree.leaves((state.opt_state[0].mu, state.opt_state[0].nu))]
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}
