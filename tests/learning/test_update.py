"""Whole updates: against the reference's recorded ones, and the same whatever packing, skipping and mesh."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.learning.golden import cases, load
from tests.learning.policies import make_group, random_groups, table_policy, tiny_model
from tests.models.tiny_vl import tiny_config
from vero_jax.config import ActorConfig, MeshConfig, OptimConfig
from vero_jax.errors import UserError
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner
from vero_jax.models.policy import ModelDef
from vero_jax.parallel.mesh import make_mesh
from vero_jax.parallel.sharding import replicated
from vero_jax.parallel.trace_guard import TraceGuard
from vero_jax.types import Score


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def table_learner(params, actor, optim=None, mesh=None, guard=None):
    mesh = mesh or one_device()
    return Learner(
        TrainablePolicy(table_policy, params, jax.tree.map(lambda _: replicated(mesh), params)),
        actor,
        optim or OptimConfig(lr=1e-2, warmup_steps=0),
        mesh,
        max_response_length=64,
        guard=guard,
    )


@pytest.fixture
def table():
    """Parameters of the table policy over 100 ids."""
    rng = np.random.default_rng(0)
    shapes = {"E": (100, 6), "W": (6, 100), "b": (100,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def small(**options):
    return ActorConfig(**{"row_length": 256, "mini_batch_prompts": 100, "clip_ratio_low": 0.2, **options})


def text_groups(count=7, **options):
    return random_groups(count, images=False, **options)


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
        old_logprobs="first_pass" if rows == "one row each" else "recompute",
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


@functools.cache
def tiny_learner(row_length=256, rows_per_micro_batch=1, mesh_sizes=None, freeze_vision=False):
    """A learner of the tiny model; kept, because compiling is what these tests spend their time on."""
    actor = small(row_length=row_length, row_patches=128, rows_per_micro_batch=rows_per_micro_batch)
    mesh = make_mesh(MeshConfig(*mesh_sizes)) if mesh_sizes else one_device()
    policy = TrainablePolicy.of_model(TINY, mesh, attention_block=64, vocab_block=128, freeze_vision=freeze_vision)
    return Learner(policy, actor, OptimConfig(lr=1e-3, warmup_steps=0), mesh, max_response_length=32)


def gradient(learner, params, groups, *, keep_all=False):
    """Gradient of one mini-batch, summed over its micro-batches, and its plan."""
    plan = learner.pack(groups, keep_all=keep_all)
    total = learner.programs.zeros()
    for index in range(plan.micro_batches):
        total, *_ = learner.programs.accumulate(params, total, learner._batch(plan, index))
    return total, plan


def assert_same(left, right, tolerance=1e-5):
    """Equal within `tolerance` of the largest entry of all."""
    left_leaves, right_leaves = jax.tree.leaves(left), jax.tree.leaves(right)
    assert len(left_leaves) == len(right_leaves) > 0
    largest = max(float(np.abs(x).max()) for x in left_leaves)
    for a, b in zip(left_leaves, right_leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance * largest)


@pytest.fixture(scope="module")
def params():
    return TINY.init_params(3)


def one_by_one(groups):
    """Each response with its own copy of the prompt, as other stacks lay them out."""
    return [
        dataclasses.replace(group, responses=(response,), advantages=group.advantages[i : i + 1])
        for group in groups
        for i, response in enumerate(group.responses)
    ]


def test_gradient_of_the_model_does_not_depend_on_the_rows(params):
    groups = random_groups()
    reference, plan = gradient(tiny_learner(row_length=64), params, one_by_one(groups))
    assert all(len(row) == 1 and len(row[0][1]) == 1 for row in plan.contents) or plan.row_length == 64
    shapes = {plan.shape}
    for learner in (tiny_learner(row_length=512), tiny_learner(row_length=64), tiny_learner(128, 3)):
        other, plan = gradient(learner, params, groups)
        shapes.add(plan.shape)
        assert_same(reference, other)
    assert len(shapes) >= 3


@pytest.mark.parametrize(
    "actor",
    [
        {"loss_mode": "gspo"},
        {"loss_mode": "gspo", "loss_agg_mode": "token-mean", "entropy_coef": 0.1},
        {"loss_mode": "vanilla", "loss_agg_mode": "token-mean", "rollout_is": "token"},
        {"loss_mode": "cispo", "loss_agg_mode": "seq-mean-token-sum"},
        {"loss_mode": "geo_mean"},
        {"loss_mode": "gpg", "loss_agg_mode": "seq-mean-token-sum-norm"},
    ],
    ids=lambda actor: "-".join(str(value) for value in actor.values()),
)
def test_gradient_of_every_loss_does_not_depend_on_the_rows(table, actor):
    groups = text_groups()
    found = []
    learners = {length: table_learner(table, small(row_length=length, **actor)) for length in (64, 512)}
    for length, laid_out in ((64, one_by_one(groups)), (512, groups), (512, groups[::-1]), (64, groups)):
        learner = learners[length]
        found.append(gradient(learner, table, laid_out)[0])
    for other in found[1:]:
        assert_same(found[0], other)


def test_skipping_zero_advantages_changes_nothing_but_the_work(params):
    groups = random_groups()
    groups[1] = dataclasses.replace(groups[1], advantages=np.array([0, 1, 0, -1], np.float32))
    skipped, plan = gradient(tiny_learner(), params, groups)
    total, whole = gradient(tiny_learner(), params, groups, keep_all=True)
    assert (plan.sequences, plan.tokens) == (whole.sequences, whole.tokens)
    assert plan.seen_sequences == whole.seen_sequences - 6
    assert_same(skipped, total)


def test_entropy_and_kl_terms_keep_zero_advantages(table):
    groups = text_groups()
    assert table_learner(table, small()).pack(groups).seen_sequences < len(groups) * 4
    for term in ({"entropy_coef": 0.1}, {"kl_loss_coef": 0.1}):
        assert table_learner(table, small(**term)).pack(groups).seen_sequences == len(groups) * 4


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_equal_one(sizes):
    groups = random_groups(12)
    states, metrics = [], []
    for learner in (tiny_learner(), tiny_learner(mesh_sizes=sizes)):
        state, found = learner.step(learner.init_state(TINY.init_params(3)), groups, 1)
        states.append(state)
        metrics.append(found)
    # Adam's first step is lr times the sign of the gradient: where that is rounding noise, so is the parameter.
    assert_same(states[0].opt_state[0].mu, states[1].opt_state[0].mu)
    for name in ("actor/pg_loss", "actor/entropy", "actor/grad_norm", "training/rollout_logprobs_k3"):
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("loss_mode", ["gspo", "clip_cov", "kl_cov"])
def test_eight_devices_make_the_same_step(table, loss_mode):
    states = []
    for mesh in (one_device(), make_mesh(MeshConfig())):
        rows = 8 // mesh.size
        actor = small(mini_batch_prompts=4, loss_mode=loss_mode, row_length=64, rows_per_micro_batch=rows)
        learner = table_learner(table, dataclasses.replace(actor, clip_cov_lb=-1.0, clip_cov_ratio=0.1), mesh=mesh)
        states.append(learner.step(learner.init_state(table), text_groups(8), 1, seed=3))
    assert_same(states[0][0].params, states[1][0].params, tolerance=1e-6)
    for name, value in states[0][1].items():
        # The correlation of random numbers is near 0: its last digits are rounding.
        atol = 5e-5 if name.endswith("corr") else 1e-6
        np.testing.assert_allclose(states[1][1][name], value, rtol=1e-4, atol=atol, err_msg=name)


def test_logprobs_are_those_of_each_response_alone(params):
    groups = random_groups()
    together = tiny_learner(row_length=512).logprobs(params, groups)
    alone = tiny_learner(row_length=64).logprobs(params, one_by_one(groups))
    for found, expected in zip([values for group in together for values in group], alone, strict=True):
        np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-5)


def test_first_mini_batch_is_exactly_on_policy(table):
    learner = table_learner(table, small())
    _, metrics = learner.step(learner.init_state(table), text_groups(), 1)
    assert metrics["actor/ppo_kl"] == 0
    assert metrics["actor/pg_clipfrac"] == 0
    assert metrics["actor/updates"] == 1


def test_on_policy_shortcut_equals_recomputing(table):
    results = []
    for shortcut in ("first_pass", "recompute"):
        learner = table_learner(table, small(mini_batch_prompts=4, old_logprobs=shortcut))
        results.append(learner.step(learner.init_state(table), text_groups(8), 1))
    assert_same(results[0][0].params, results[1][0].params)
    for name, value in results[0][1].items():
        np.testing.assert_allclose(results[1][1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_several_epochs_move_away_from_the_old_policy(table):
    learner = table_learner(table, small(ppo_epochs=2))
    state, metrics = learner.step(learner.init_state(table), text_groups(), 1)
    assert int(state.updates) == 2
    assert metrics["actor/ppo_kl"] != 0


def test_frozen_vision_does_not_move_and_has_no_moments(params):
    before = jax.tree.map(np.asarray, params)
    learner = tiny_learner(freeze_vision=True)
    state, _ = learner.step(learner.init_state(params), random_groups(), 1)
    for a, b in zip(jax.tree.leaves(before["vision"]), jax.tree.leaves(state.params["vision"]), strict=True):
        np.testing.assert_array_equal(a, b)
    language = zip(jax.tree.leaves(before["language"]), jax.tree.leaves(state.params["language"]), strict=True)
    assert any(not np.array_equal(a, b) for a, b in language)
    trained = len(jax.tree.leaves(learner.abstract_state().opt_state))
    assert trained < len(jax.tree.leaves(tiny_learner().abstract_state().opt_state))


def test_gradients_that_are_not_finite_are_left_out_and_counted(table):
    table["E"] = table["E"].at[4].set(jnp.nan)
    learner = table_learner(table, small())
    state, metrics = learner.step(learner.init_state(table), [make_group([[1, 2], [3]], prompt=[4], advantages=[1, -1])], 1)  # fmt: skip # noqa: E501
    assert (int(state.updates), int(state.skipped), int(state.step)) == (0, 1, 1)
    assert metrics["actor/updates_skipped"] == 1
    np.testing.assert_array_equal(state.params["W"], table["W"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))


def test_nothing_to_learn_from_still_is_an_update(table):
    groups = [dataclasses.replace(group, advantages=np.zeros(4, np.float32)) for group in text_groups(3)]
    learner = table_learner(table, small())
    state, metrics = learner.step(learner.init_state(table), groups, 1)
    assert int(state.updates) == 1
    assert metrics["actor/grad_norm"] == metrics["actor/pg_loss"] == 0
    assert metrics["rows/skipped_responses"] == 1
    # Only the decoupled weight decay moves the parameters.
    assert_same(jax.tree.map(lambda p: p * (1 - 1e-2 * 0.01), table), state.params, tolerance=1e-6)


def test_empty_and_missing_responses_give_no_nan(params):
    empty = make_group([[], [3, 4], []], prompt=[5, 6], advantages=[0.5, -0.5, 0.1], scores=[0.0, 1.0, 0.0])
    lost = make_group(
        [[1, 2], [3]], prompt=[7], advantages=[1, -1], scores=[1.0, Score(np.nan, np.nan, np.nan, missing="timeout")]
    )
    groups = [*random_groups(3), empty, lost]
    learner = tiny_learner()
    assert learner.pack(groups).sequences == 3 * 4 + 1 + 1
    state, metrics = learner.step(learner.init_state(params), groups, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(list(metrics.values())).all()


def test_kl_to_the_reference_is_zero_at_the_reference(table):
    groups = text_groups(4)
    learner = table_learner(table, small(kl_loss_coef=1.0))
    with pytest.raises(UserError, match="no reference policy"):
        learner.step(learner.init_state(table), groups, 1)
    _, metrics = learner.step(learner.init_state(table), groups, 1, reference=table)
    assert metrics["actor/kl_loss"] == pytest.approx(0, abs=1e-10)
    other = jax.tree.map(lambda p: p[::-1], table)
    _, metrics = learner.step(learner.init_state(table), groups, 1, reference=other)
    assert metrics["actor/kl_loss"] > 0


def test_kl_of_responses_for_the_reward(table):
    groups = text_groups(4)
    learner = table_learner(table, small())
    other = jax.tree.map(lambda p: p[::-1], table)
    new, old = (learner.logprobs(p, groups) for p in (table, other))
    sums, mean = learner.response_kl(table, other, groups, "k1")
    differences = [[n - o for n, o in zip(*pair, strict=True)] for pair in zip(new, old, strict=True)]
    for found, expected in zip(sums, differences, strict=True):
        np.testing.assert_allclose(found, [d.sum() for d in expected], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, np.mean([d.mean() for group in differences for d in group]), rtol=1e-4)
    assert learner.response_kl(table, table, groups, "k3") == (pytest.approx([pytest.approx(np.zeros(4))] * 4), 0.0)


def test_steps_of_the_same_shape_trace_once(table):
    guard = TraceGuard()
    learner = table_learner(table, small(mini_batch_prompts=4), guard=guard)
    state, _ = learner.step(learner.init_state(table), text_groups(8), 1)
    guard.freeze()
    state, _ = learner.step(state, text_groups(8, seed=1), 2)
    assert int(state.step) == 2


@pytest.mark.slow
def test_nothing_compiles_after_the_warm_up(params, compilations):
    """Thirty steps of mixed images, lengths and numbers of groups; of images, of text alone, and of nothing at all."""
    guard = TraceGuard()
    policy = TrainablePolicy.of_model(TINY, one_device(), attention_block=64, vocab_block=128)
    actor = small(row_length=256, row_patches=256, mini_batch_prompts=5, row_rungs=2)
    learner = Learner(policy, actor, OptimConfig(), one_device(), max_response_length=40, guard=guard)
    rng = np.random.default_rng(0)
    state = learner.warm_up(learner.init_state(params))
    state, _ = learner.step(state, random_groups(2), 1)  # loads what the metrics need
    guard.freeze()
    before = compilations()
    for step in range(2, 32):
        count, longest = int(rng.integers(1, 12)), int(rng.integers(2, 40))
        groups = random_groups(count, seed=step, longest=longest, images=step % 5 > 0)
        if step == 9:
            groups = [dataclasses.replace(group, advantages=np.zeros(4, np.float32)) for group in groups]
        state, metrics = learner.step(state, groups, step)
        assert metrics["training/rollout_probs_diff_valid"] == (step != 9)
    assert compilations() == before


def test_a_tower_with_windows_is_warmed_up_and_planned_like_any_other():
    model_def = ModelDef(tiny_config(family="qwen2_5_vl"))
    policy = TrainablePolicy.of_model(model_def, one_device(), attention_block=64, vocab_block=128)
    actor = small(row_length=64, row_patches=64, row_rungs=1)
    learner = Learner(policy, actor, OptimConfig(), one_device(), max_response_length=8)
    state = learner.warm_up(learner.init_state(model_def.init_params(0)))
    assert (int(state.updates), int(state.step)) == (0, 0)
    shape = max(learner.row_shapes)
    assert shape.patches
    gradients = learner.programs.abstract_gradients()
    lowered = learner.programs.accumulate.lower(
        learner.abstract_state().params, gradients, learner.abstract_batch(shape)
    )
    assert lowered.out_info is not None


def test_responses_that_fit_no_row_are_counted_by_reason(table):
    groups = text_groups(3)
    learner = table_learner(table, small(row_length=64, oversize="drop"))
    long = make_group([[1] * 90, [2], [3, 4]], advantages=[1, -1, 0.5])
    state = learner.init_state(table)
    _, metrics = learner.step(state, [*groups, long], 1)
    assert metrics["rows/dropped_responses"] == metrics["rows/dropped_responses_tokens"] == 1
    _, metrics = table_learner(table, small(oversize="drop")).step(learner.init_state(table), groups, 1)
    assert metrics["rows/dropped_responses"] == 0 and "rows/dropped_responses_tokens" not in metrics


def test_the_warm_up_leaves_the_state_as_it_was(table):
    learner = table_learner(table, small())
    state, _ = learner.step(learner.init_state(table), text_groups(), 1)
    before = jax.tree.map(np.asarray, state)
    jax.tree.map(np.testing.assert_array_equal, before, learner.warm_up(state))


@pytest.mark.parametrize("loss_mode", ["gspo", "vanilla"])
def test_the_samplers_own_old_logprobs_need_no_further_pass(table, loss_mode):
    groups = text_groups(8)
    learner = table_learner(table, small(mini_batch_prompts=4, old_logprobs="sampler", loss_mode=loss_mode))
    passes = []
    learner.programs.logprobs = lambda *_: passes.append(1)
    _, metrics = learner.step(learner.init_state(table), groups, 1)
    assert not passes
    # The sampler of these groups is another policy: the ratio is not 1 and the clip acts in the first update already.
    assert metrics["actor/pg_clipfrac_first"] > 0 and metrics["actor/ppo_kl"] != 0
    assert metrics["training/rollout_probs_diff_valid"] == 1 and metrics["training/rollout_logprobs_k3"] > 0
    exact = table_learner(table, small(mini_batch_prompts=4, loss_mode=loss_mode))
    true = exact.logprobs(table, groups)
    drawn = [
        dataclasses.replace(
            group,
            responses=tuple(dataclasses.replace(r, logprobs=lp) for r, lp in zip(group.responses, lps, strict=True)),
        )
        for group, lps in zip(groups, true, strict=True)
    ]
    fresh = table_learner(table, small(mini_batch_prompts=4, old_logprobs="sampler", loss_mode=loss_mode))
    one, two = (by.step(by.init_state(table), drawn, 1) for by in (fresh, exact))
    assert_same(one[0].params, two[0].params)
    assert one[1]["actor/pg_clipfrac_first"] == two[1]["actor/pg_clipfrac_first"] == 0


def test_missing_advantages_are_refused(table):
    learner = table_learner(table, small())
    with pytest.raises(UserError, match="no advantages"):
        learner.step(learner.init_state(table), [make_group([[1]])], 1)


def test_warm_up_starts_at_zero(table):
    learner = table_learner(table, small(), OptimConfig(lr=1.0, warmup_steps=4))
    state, metrics = learner.step(learner.init_state(table), text_groups(2), 1)
    assert metrics["actor/lr"] == 0
    for name, before in table.items():
        np.testing.assert_array_equal(before, state.params[name])
