"""The cold start: its loss, its independence of packing, and that it learns."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from tests.learning.policies import random_groups, tiny_model
from vero_jax.config import ActorConfig, ColdStartConfig, MeshConfig, OptimConfig
from vero_jax.errors import UserError
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.supervised import SupervisedLearner
from vero_jax.learning.update import Learner
from vero_jax.parallel.mesh import make_mesh

TINY = tiny_model()


@functools.cache
def learner(row_length=256):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return SupervisedLearner(
        TrainablePolicy.of_model(TINY, mesh, attention_block=64, vocab_block=128),
        ColdStartConfig(steps=20, lr=3e-3, warmup_steps=0),
        OptimConfig(),
        mesh,
        row_length=row_length,
        row_patches=128,
    )


def pairs(count=6):
    return [(group.prompt, group.responses[0].token_ids) for group in random_groups(count, seed=2)]


@pytest.fixture(scope="module")
def params():
    return TINY.init_params(0)


def test_loss_is_the_mean_over_solution_tokens_whatever_the_rows(params):
    found = [learner(length).loss(params, pairs()) for length in (64, 256)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    state, metrics = learner().step(learner().init_state(params), pairs(), 1)
    np.testing.assert_allclose(metrics["cold_start/loss"], found[0], rtol=1e-5)
    assert metrics["cold_start/tokens"] == sum(len(ids) for _, ids in pairs())
    assert int(state.step) == 1


def test_it_learns_the_solutions(params):
    teacher = learner()
    state = teacher.init_state(params)
    losses = []
    for step in range(1, 21):
        state, metrics = teacher.step(state, pairs(), step)
        losses.append(metrics["cold_start/loss"])
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["cold_start/lr"] < 1e-4


def test_empty_solutions_are_refused(params):
    with pytest.raises(UserError, match="empty solution"):
        learner().loss(params, [(pairs()[0][0], np.zeros(0, np.int32))])


def test_its_state_has_the_shape_of_reinforcement():
    actor = ActorConfig(row_length=256, row_patches=128)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    other = Learner(TrainablePolicy.of_model(TINY, mesh), actor, OptimConfig(), mesh, max_response_length=8)
    ours, theirs = learner().abstract_state(), other.abstract_state()
    assert jax.tree.map(lambda x: x.shape, ours) == jax.tree.map(lambda x: x.shape, theirs)
