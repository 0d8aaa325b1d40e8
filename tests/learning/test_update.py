"""Whole updates: against the reference's recorded ones, and the same whatever packing, skipping and mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.learning.golden import cases, load
from tests.learning.policies import make_group, random_groups, table_policy, tiny_model
from vero_jax.config import ActorConfig, MeshConfig, OptimConfig
from vero_jax.errors import UserError
from vero_jax.learning.update import Learner
from vero_jax.parallel.mesh import make_mesh
from vero_jax.parallel.sharding import replicated
from vero_jax.parallel.trace_guard import TraceGuard
from vero_jax.types import Score


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def table_learner(params, actor, optim, mesh=None):
    mesh = mesh or one_device()
    shardings = jax.tree.map(lambda _: replicated(mesh), params)
    return Learner(table_policy, actor, optim, mesh, params_like=params, shardings=shardings, max_response_length=64)


@pytest.mark.golden_rl
@pytest.mark.parametrize("rows", ["as the reference", "one row each", "long rows"])
@pytest.mark.parametrize(("hp", "file"), cases("update_step"))
def test_whole_step_matches_reference(hp, file, rows):
    z = load(file)
    width = int(z["in_prompt_width"])
    groups = []
    for ids, attended, mask, advantages in zip(
        z["in_input_ids"], z["in_attention_mask"], z["in_response_mask"], z["in_advantages"], strict=True
    ):
        prompt, response = ids[:width][attended[:width] > 0], ids[width:][mask > 0]
        groups.append(make_group([response], prompt=prompt, advantages=advantages[:1]))
    params = {name: jnp.asarray(z[f"in_param_{name}"]) for name in "EWb"}
    actor = ActorConfig(
        loss_mode=hp["loss_mode"],
        loss_agg_mode=hp["loss_agg_mode"],
        clip_ratio_low=hp["clip_ratio_low"],
        clip_ratio_high=hp["clip_ratio_high"],
        mini_batch_prompts=hp["ppo_mini_batch_size"],
        ppo_epochs=hp["ppo_epochs"],
        row_length={"as the reference": hp["max_token_len"], "one row each": 16, "long rows": 512}[rows],
        on_policy_first=rows == "one row each",
    )
    optim = OptimConfig(lr=0.02, warmup_steps=0, grad_clip=hp["grad_clip"])
    learner = table_learner(params, actor, optim)
    found = learner.logprobs(params, groups)
    for (logprobs,), expected, mask in zip(found, z["out_old_log_prob"], z["in_response_mask"], strict=True):
        np.testing.assert_allclose(logprobs, expected[mask > 0], rtol=1e-5, atol=1e-6)
    state, metrics = learner.step(learner.init_state(params), groups, 1)
    for name in "EWb":
        np.testing.assert_allclose(state.params[name], z[f"out_param_{name}"], rtol=1e-4, atol=1e-5)
    minis = len(z["out_list_actor.grad_norm"])
    assert int(state.updates) == minis
    np.testing.assert_allclose(metrics["actor/grad_norm"], z["out_list_actor.grad_norm"].mean(), rtol=1e-4)
    # The reference lists shares of a mini-batch's loss; over the step they add up to the sum of its mini-batches.
    np.testing.assert_allclose(metrics["actor/pg_loss"], z["out_list_actor.pg_loss"].sum() / minis, atol=1e-5)
    mask = z["in_response_mask"] > 0
    per_sequence = np.where(mask, z["out_entropy"], 0).sum(1) / mask.sum(1)
    np.testing.assert_allclose(metrics["actor/entropy"], per_sequence.mean(), rtol=1e-5)
    assert metrics["actor/lr"] == 0.02


TINY = tiny_model()


def tiny_learner(mesh=None, guard=None, optim=None, freeze_vision=False, **actor):
    defaults = {"row_length": 256, "row_patches": 128, "mini_batch_prompts": 100, "clip_ratio_low": 0.2}
    return Learner.for_model(
        TINY,
        ActorConfig(**{**defaults, **actor}),
        optim or OptimConfig(lr=1e-3, warmup_steps=0),
        mesh or one_device(),
        max_response_length=32,
        attention_block=64,
        vocab_block=50,
        freeze_vision=freeze_vision,
        guard=guard,
    )


def gradient(learner, params, groups):
    """Mini-batch gradient over all micro-batches, and the number of those."""
    plan = learner.pack(groups)
    total = learner.programs.zeros()
    for index in range(plan.micro_batches):
        total, _ = learner.programs.accumulate(params, total, learner._batch(plan, index))
    return total, plan


def assert_same(left, right, tolerance=1e-5):
    left_leaves, right_leaves = jax.tree.leaves(left), jax.tree.leaves(right)
    assert len(left_leaves) == len(right_leaves) > 0
    largest = max(float(np.abs(x).max()) for x in left_leaves)
    for a, b in zip(left_leaves, right_leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance * largest)


@pytest.fixture(scope="module")
def params():
    return TINY.init_params(3)


@pytest.mark.parametrize(
    "actor",
    [
        {},
        {"loss_mode": "vanilla", "loss_agg_mode": "token-mean"},
        {"entropy_coef": 0.01, "loss_agg_mode": "token-mean"},
    ],
    ids=["gspo", "token-mean", "entropy"],
)
def test_gradient_does_not_depend_on_the_rows(params, actor):
    groups = random_groups()
    reference, plan = gradient(tiny_learner(row_length=128, **actor), params, groups)
    alone = [  # one response per row, as other stacks lay them out
        dataclasses.replace(group, responses=(response,), advantages=group.advantages[i : i + 1])
        for group in groups
        for i, response in enumerate(group.responses)
    ]
    layouts = {
        "long rows": (tiny_learner(row_length=512, **actor), groups),
        "split groups": (tiny_learner(row_length=64, **actor), groups),
        "several rows at once": (tiny_learner(row_length=128, rows_per_micro_batch=3, **actor), groups),
        "one response per row": (tiny_learner(row_length=64, **actor), alone),
        "other order": (tiny_learner(row_length=256, **actor), groups[::-1]),
    }
    shapes = {plan.shape}
    for learner, laid_out in layouts.values():
        other, plan = gradient(learner, params, laid_out)
        shapes.add(plan.shape)
        assert_same(reference, other)
    assert len(shapes) > 2


def test_skipping_zero_advantages_changes_nothing_but_the_work(params):
    groups = random_groups()
    groups[1] = dataclasses.replace(groups[1], advantages=np.array([0, 1, 0, -1], np.float32))
    learner = tiny_learner()
    skipped, plan = gradient(learner, params, groups)
    whole = learner.pack(groups, keep_all=True)
    assert (plan.sequences, plan.tokens) == (whole.sequences, whole.tokens)
    assert plan.seen_sequences == whole.seen_sequences - 6
    total = learner.programs.zeros()
    for index in range(whole.micro_batches):
        total, _ = learner.programs.accumulate(params, total, learner._batch(whole, index))
    assert_same(skipped, total)


def test_entropy_and_kl_terms_keep_zero_advantages():
    groups = random_groups()
    assert tiny_learner().pack(groups).seen_sequences < len(groups) * 4
    for term in ({"entropy_coef": 0.1}, {"kl_loss_coef": 0.1}):
        assert tiny_learner(**term).pack(groups).seen_sequences == len(groups) * 4


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_eight_devices_equal_one(params, sizes):
    groups = random_groups(12)
    actor = {"mini_batch_prompts": 6, "clip_ratio_high": 0.2}
    states, metrics = [], []
    for mesh in (one_device(), make_mesh(MeshConfig(*sizes))):
        learner = tiny_learner(mesh, **actor)
        state, found = learner.step(learner.init_state(TINY.init_params(3)), groups, 1)
        states.append(state)
        metrics.append(found)
    assert_same(states[0].params, states[1].params, tolerance=2e-5)
    for name in ("actor/pg_loss", "actor/entropy", "actor/grad_norm", "training/rollout_logprobs_k3"):
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_logprobs_are_those_of_each_response_alone(params):
    groups = random_groups(4)
    found = tiny_learner(row_length=512).logprobs(params, groups)
    for group, logprobs in zip(groups, found, strict=True):
        for i, response in enumerate(group.responses):
            single = dataclasses.replace(group, responses=(response,), advantages=None)
            (alone,) = tiny_learner(row_length=64).logprobs(params, [single])[0]
            np.testing.assert_allclose(logprobs[i], alone, rtol=1e-5, atol=1e-5)


def test_first_mini_batch_is_exactly_on_policy(params):
    learner = tiny_learner()
    _, metrics = learner.step(learner.init_state(params), random_groups(), 1)
    assert metrics["actor/ppo_kl"] == 0
    assert metrics["actor/pg_clipfrac"] == 0
    assert metrics["actor/updates"] == 1


def test_on_policy_shortcut_equals_recomputing(params):
    groups = random_groups(8)
    results = []
    for shortcut in (True, False):
        learner = tiny_learner(mini_batch_prompts=4, on_policy_first=shortcut)
        results.append(learner.step(learner.init_state(params), groups, 1))
    assert_same(results[0][0].params, results[1][0].params, tolerance=1e-5)
    for name in ("actor/entropy", "actor/pg_loss", "training/rollout_probs_diff_mean"):
        np.testing.assert_allclose(results[0][1][name], results[1][1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_several_epochs_move_away_from_the_old_policy(params):
    learner = tiny_learner(ppo_epochs=2)
    state, metrics = learner.step(learner.init_state(params), random_groups(), 1)
    assert int(state.updates) == 2
    assert metrics["actor/ppo_kl"] != 0


def test_frozen_vision_does_not_move_and_has_no_moments(params):
    learner = tiny_learner(freeze_vision=True)
    before = jax.tree.map(np.asarray, params)
    state, _ = learner.step(learner.init_state(params), random_groups(), 1)
    for a, b in zip(jax.tree.leaves(before["vision"]), jax.tree.leaves(state.params["vision"]), strict=True):
        np.testing.assert_array_equal(a, b)
    language = zip(jax.tree.leaves(before["language"]), jax.tree.leaves(state.params["language"]), strict=True)
    assert any(not np.array_equal(a, b) for a, b in language)
    trained, whole = (
        len(jax.tree.leaves(tiny_learner(freeze_vision=f).abstract_state().opt_state)) for f in (True, False)
    )
    assert trained < whole


def test_gradients_that_are_not_finite_are_left_out_and_counted():
    params = {"E": jnp.full((13, 6), jnp.nan), "W": jnp.zeros((6, 13)), "b": jnp.zeros(13)}
    learner = table_learner(params, ActorConfig(row_length=64, row_patches=64), OptimConfig(warmup_steps=0))
    groups = [make_group([[1, 2], [3]], prompt=[4, 5], advantages=[1, -1])]
    state, metrics = learner.step(learner.init_state(params), groups, 1)
    assert (int(state.updates), int(state.skipped)) == (0, 1)
    assert metrics["actor/updates_skipped"] == 1
    np.testing.assert_array_equal(state.params["W"], 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))


def test_nothing_to_learn_from_still_is_an_update(params):
    groups = [dataclasses.replace(group, advantages=np.zeros(4, np.float32)) for group in random_groups(3)]
    learner = tiny_learner()
    state, metrics = learner.step(learner.init_state(params), groups, 1)
    assert int(state.updates) == 1
    assert metrics["actor/grad_norm"] == 0
    assert metrics["actor/pg_loss"] == 0
    assert metrics["rows/skipped_responses"] == 1
    # Only the decoupled weight decay moves the parameters.
    assert_same(jax.tree.map(lambda p: p * (1 - 1e-3 * 0.01), params), state.params, tolerance=1e-6)


def test_empty_and_missing_responses_give_no_nan(params):
    groups = random_groups(3)
    empty = make_group([[], [3, 4], []], prompt=[5, 6], advantages=[0.5, -0.5, 0.1], scores=[0.0, 1.0, 0.0])
    lost = make_group(
        [[1, 2], [3]], prompt=[7], advantages=[1, -1], scores=[1.0, Score(np.nan, np.nan, np.nan, missing="timeout")]
    )
    learner = tiny_learner()
    plan = learner.pack([*groups, empty, lost])
    assert plan.sequences == 3 * 4 + 1 + 1
    state, metrics = learner.step(learner.init_state(params), [*groups, empty, lost], 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(list(metrics.values())).all()


def test_kl_to_the_reference_is_zero_at_the_reference_and_pulls_back(params):
    groups = random_groups(4)
    learner = tiny_learner(kl_loss_coef=1.0)
    with pytest.raises(UserError, match="no reference policy"):
        learner.step(learner.init_state(params), groups, 1)
    _, metrics = learner.step(learner.init_state(params), groups, 1, reference=params)
    assert metrics["actor/kl_loss"] == pytest.approx(0, abs=1e-10)
    other = TINY.init_params(4)
    penalties, mean = learner.response_kl(params, other, groups, "k3")
    assert mean > 0
    assert [len(p) for p in penalties] == [4] * 4
    np.testing.assert_allclose(learner.response_kl(params, params, groups, "k3")[1], 0, atol=1e-6)
    new, old = (learner.logprobs(p, groups) for p in (params, other))
    np.testing.assert_allclose(
        learner.response_kl(params, other, groups, "k1")[0][2][1], (new[2][1] - old[2][1]).sum(), rtol=1e-4
    )


def test_steps_of_the_same_shape_trace_once(params):
    guard = TraceGuard()
    learner = tiny_learner(guard=guard, mini_batch_prompts=4)
    state, _ = learner.step(learner.init_state(params), random_groups(8), 1)
    guard.freeze()
    state, _ = learner.step(state, random_groups(8), 2)
    assert int(state.step) == 2


def test_missing_advantages_are_refused(params):
    with pytest.raises(UserError, match="no advantages"):
        tiny_learner().step(tiny_learner().init_state(params), [make_group([[1]])], 1)


def test_warm_up_starts_at_zero(params):
    learner = tiny_learner(optim=OptimConfig(lr=1.0, warmup_steps=4))
    before = jax.tree.map(np.asarray, params)
    state, metrics = learner.step(learner.init_state(params), random_groups(2), 1)
    assert metrics["actor/lr"] == 0
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
