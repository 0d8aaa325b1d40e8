"""What is trained and what is frozen: gradients, moments, buffers, snapshots, and what a patch counts as work."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.learning.policies import IMAGE_TOKEN, random_groups, tiny_model
from vero_jax.config import ActorConfig, MeshConfig, OptimConfig, RolloutConfig, SamplingConfig
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner, actor_objective
from vero_jax.models.layers import LORA_TARGETS, LoRA
from vero_jax.models.lora import is_lora
from vero_jax.parallel.mesh import make_mesh
from vero_jax.sampling.engine import Engine

TINY = tiny_model()
ADAPTED = dataclasses.replace(TINY, lora=LoRA(4, 8.0, LORA_TARGETS))


@functools.cache
def learner(kind, devices=1, kl=0.0):
    """Of the tiny model: "all" of it, its "language" alone, or "adapters"."""
    mesh = make_mesh(MeshConfig(*((2, 2, 2) if devices == 8 else (1, 1, 1))), jax.devices()[:devices])
    policy = TrainablePolicy.of_model(
        ADAPTED if kind == "adapters" else TINY,
        mesh,
        attention_block=64,
        vocab_block=128,
        freeze_vision=kind == "language",
    )
    actor = ActorConfig(row_length=256, row_patches=128, mini_batch_prompts=100, clip_ratio_low=0.2, kl_loss_coef=kl)
    optim = OptimConfig(lr=1e-2, warmup_steps=0, weight_decay=0.1)
    return Learner(policy, actor, optim, mesh, max_response_length=32)


def params_of(kind, devices=1):
    """New parameters where the learner wants them; adapters are not zero."""
    model_def = ADAPTED if kind == "adapters" else TINY
    flat = flatten_dict(model_def.init_params(0))
    rng = np.random.default_rng(0)
    for path, leaf in flat.items():
        if path[-1] == "lora_b":
            flat[path] = jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype)
    return jax.device_put(unflatten_dict(flat), model_def.shardings(learner(kind, devices).mesh))


def trains(kind, path):
    return {"all": True, "language": path[0] != "vision", "adapters": is_lora(path)}[kind]


def gradient(kind, groups):
    made, params = learner(kind), params_of(kind)
    plan = made.pack(groups)
    total = made.programs.zeros()
    for index in range(plan.micro_batches):
        total, *_ = made.programs.accumulate(params, total, made._batch(plan, index))
    return flatten_dict(total)


def pointers(params):
    return {path: leaf.unsafe_buffer_pointer() for path, leaf in flatten_dict(params).items()}


@pytest.mark.parametrize("kind", ["all", "language", "adapters"])
def test_an_update_moves_what_is_trained_and_leaves_every_other_buffer_where_it_is(kind):
    made, params = learner(kind), params_of(kind)
    before, places = {p: np.asarray(x).copy() for p, x in flatten_dict(params).items()}, pointers(params)
    state = made.init_state(params)
    assert all((pointers(state.params)[path] == place) != trains(kind, path) for path, place in places.items())
    for step in (1, 2):
        state, metrics = made.step(state, random_groups(), step)
    assert metrics["actor/updates"] == 1 and metrics["actor/grad_norm"] > 0
    for path, leaf in flatten_dict(state.params).items():
        if trains(kind, path):
            assert not np.array_equal(leaf, before[path]), path
        else:
            assert leaf.unsafe_buffer_pointer() == places[path], path
            np.testing.assert_array_equal(leaf, before[path])
    # The caller's own parameters are not used up.
    jax.tree.map(np.testing.assert_array_equal, flatten_dict(params), before)


@pytest.mark.parametrize("kind", ["all", "language", "adapters"])
def test_gradients_and_moments_are_those_of_what_is_trained_only(kind):
    wanted = {path for path in flatten_dict(params_of(kind)) if trains(kind, path)}
    assert set(gradient(kind, random_groups())) == wanted
    state = learner(kind).init_state(params_of(kind))
    for moments in (state.opt_state[0].mu, state.opt_state[0].nu):
        assert set(flatten_dict(moments)) == wanted
    sizes = {path: leaf.size for path, leaf in flatten_dict(params_of(kind)).items()}
    policy = TrainablePolicy.of_model(
        ADAPTED if kind == "adapters" else TINY, learner(kind).mesh, freeze_vision=kind == "language"
    )
    assert policy.num_trained == sum(sizes[path] for path in wanted)


def test_gradients_of_the_language_model_are_the_same_whether_the_tower_is_trained():
    found, whole = gradient("language", random_groups()), gradient("all", random_groups())
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, whole[path], rtol=1e-4, atol=1e-6 * float(jnp.abs(whole[path]).max()) + 1e-12)


def test_gradients_of_adapters_are_those_of_the_weights_they_add_to():
    """W + s A B: dA = s G Bᵀ and dB = s Aᵀ G, with G the gradient of the weight."""
    made, params = learner("adapters"), flatten_dict(params_of("adapters"))
    groups = random_groups(3)
    found = gradient("adapters", groups)
    batch = made._batch(made.pack(groups), 0)
    assert made.pack(groups).micro_batches == 1
    path = ("language", "layers", "mlp", "down")
    forward = TrainablePolicy.of_model(ADAPTED, made.mesh, attention_block=64, vocab_block=128).forward

    def loss(kernel):
        tree = unflatten_dict({**params, (*path, "kernel"): kernel})
        return actor_objective(*forward(tree, batch.rows), batch, made.actor)[0]

    weight = jax.jit(jax.grad(loss))(params[(*path, "kernel")])
    a, b = params[(*path, "lora_a")], params[(*path, "lora_b")]
    for name, expected in (
        ("lora_a", 2.0 * jnp.einsum("lio,lro->lir", weight, b)),
        ("lora_b", 2.0 * jnp.einsum("lir,lio->lro", a, weight)),
    ):
        np.testing.assert_allclose(
            found[(*path, name)], expected, rtol=1e-3, atol=1e-5 * float(jnp.abs(expected).max())
        )


def test_text_alone_leaves_a_frozen_tower_bit_equal():
    made, params = learner("language"), params_of("language")
    before = jax.tree.map(lambda leaf: np.asarray(leaf).copy(), params["vision"])
    state, _ = made.step(made.init_state(params), random_groups(images=False), 1)
    jax.tree.map(np.testing.assert_array_equal, before, state.params["vision"])


def test_text_alone_gives_the_tower_zero_gradients_rather_than_none():
    found = gradient("all", random_groups(images=False))
    tower = {path: leaf for path, leaf in found.items() if path[0] == "vision"}
    assert set(tower) == {path for path in flatten_dict(TINY.abstract_params()) if path[0] == "vision"}
    assert not any(np.any(leaf) for leaf in tower.values())
    assert any(np.any(leaf) for path, leaf in found.items() if path[0] == "language")


@pytest.mark.parametrize("kind", ["all", "adapters"])
def test_a_snapshot_outlives_updates_and_shares_what_is_frozen(kind):
    made = learner(kind)
    state = made.init_state(params_of(kind))
    snapshot = made.programs.snapshot(state.params)
    kept, places = {p: np.asarray(x).copy() for p, x in flatten_dict(snapshot).items()}, pointers(state.params)
    for path, place in pointers(snapshot).items():
        assert (place == places[path]) != trains(kind, path), path
    state, _ = made.step(state, random_groups(), 1)
    jax.tree.map(np.testing.assert_array_equal, flatten_dict(snapshot), kept)
    part = made.programs.trained_part(snapshot)
    assert set(flatten_dict(part)) == {path for path in kept if trains(kind, path)}
    again = made.programs.completed(part, state.params)
    assert pointers(again) == pointers(snapshot)


def test_a_reference_shares_the_base_and_its_kl_grows_from_zero():
    made = learner("adapters", kl=1.0)
    state = made.init_state(params_of("adapters"))
    reference = made.programs.snapshot(state.params)
    losses = []
    for step in (1, 2):
        state, metrics = made.step(state, random_groups(), step, reference=reference)
        losses.append(metrics["actor/kl_loss"])
    assert losses[0] == pytest.approx(0, abs=1e-10) and losses[1] > 1e-6


def test_adapters_learn_the_same_on_eight_devices():
    found = []
    for devices in (1, 8):
        made = learner("adapters", devices)
        state, metrics = made.step(made.init_state(params_of("adapters", devices)), random_groups(12), 1)
        found.append((state, metrics))
    (one, before), (eight, after) = found
    for path, leaf in flatten_dict(one.opt_state[0].mu).items():
        other = flatten_dict(eight.opt_state[0].mu)[path]
        np.testing.assert_allclose(other, leaf, rtol=1e-3, atol=1e-5 * float(jnp.abs(leaf).max()))
    for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4, atol=1e-6)


def test_a_state_is_described_as_it_is_made():
    """A checkpoint is restored onto the description."""
    for kind in ("all", "adapters"):
        made = learner(kind, 8)
        state, described = made.init_state(params_of(kind, 8)), made.abstract_state()
        assert jax.tree.structure(state) == jax.tree.structure(described)
        for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(described), strict=True):
            assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_sampler_and_learner_agree_on_adapted_weights():
    made, params = learner("adapters"), params_of("adapters")
    rollout = RolloutConfig(concurrent_responses=8, prompt_buckets=(64,), patch_buckets=(64,), vocab_block=64)
    engine = Engine(ADAPTED, rollout, made.mesh, stop_ids=[2], banned_ids=[IMAGE_TOKEN])
    prompts = [group.prompt for group in random_groups(6)]
    sampling = SamplingConfig(temperature=1.0)
    groups = [g for _, g in engine.generate(params, prompts, n=3, sampling=sampling, seed=1, step=0, max_new_tokens=12)]
    difference, moved = [], []
    untrained = {p: jnp.zeros_like(x) if p[-1] == "lora_b" else x for p, x in flatten_dict(params).items()}
    base = made.logprobs(unflatten_dict(untrained), groups)
    for group, learned, plain in zip(groups, made.logprobs(params, groups), base, strict=True):
        for response, ours, without in zip(group.responses, learned, plain, strict=True):
            difference.append(np.abs(ours - response.logprobs).max())
            moved.append(np.abs(without - response.logprobs).max())
    assert max(difference) < 2e-5
    assert max(moved) > 1e-2  # the adapters do matter


def with_experts(sparse_layers):
    config = TINY.config
    text = dataclasses.replace(
        config.text, num_experts=8, experts_per_token=2, expert_ffn_size=16, sparse_layers=sparse_layers
    )
    return dataclasses.replace(TINY, config=dataclasses.replace(config, text=text))


def sizes_of(model_def):
    """Numbers in the vision tower, and in the language model without its table."""
    sizes = {path: leaf.size for path, leaf in flatten_dict(model_def.abstract_params()).items()}
    table = sizes["language", "embed", "embedding"]
    of = lambda name: sum(size for path, size in sizes.items() if path[0] == name)  # noqa: E731
    return of("vision"), of("language") - table


def test_the_work_of_a_patch_counts_the_experts_that_a_token_meets():
    mesh = learner("all").mesh
    model_def = with_experts((0, 1))
    experts = 2 * 8 * 3 * 32 * 16  # layers x experts x maps x width x ffn
    vision, language = sizes_of(model_def)
    per_token = language - experts + experts * 2 / 8
    assert TrainablePolicy.of_model(model_def, mesh).patch_cost == pytest.approx(vision / per_token)
    vision, language = sizes_of(TINY)
    assert TrainablePolicy.of_model(TINY, mesh).patch_cost == pytest.approx(vision / language)


def test_a_patch_costs_nothing_without_a_tower():
    text_only = dataclasses.replace(
        TINY,
        config=dataclasses.replace(TINY.config, vision=None, image_token_id=None, model_type="qwen3"),
    )
    policy = TrainablePolicy.of_model(text_only, learner("all").mesh)
    assert policy.patch_cost == 0 and policy.patch_elements == 0


def test_offloaded_moments_lie_in_host_memory_and_change_nothing():
    results = []
    for offload in (False, True):
        mesh = learner("all").mesh
        made = Learner(
            TrainablePolicy.of_model(TINY, mesh, attention_block=64, vocab_block=128),
            ActorConfig(row_length=256, row_patches=128, mini_batch_prompts=100, clip_ratio_low=0.2),
            OptimConfig(lr=1e-3, warmup_steps=0, offload=offload), mesh, max_response_length=32,
        )  # fmt: skip
        state = made.init_state(TINY.init_params(0))
        for step in (1, 2):
            state, _ = made.step(state, random_groups(6, seed=step), step)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
        assert (kinds == {"pinned_host"}) == offload
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} != {"pinned_host"}
        abstract = jax.tree.leaves(made.abstract_state().opt_state)
        assert [x.sharding for x in jax.tree.leaves(state.opt_state)] == [x.sharding for x in abstract]
        results.append(jax.tree.map(np.asarray, state.params))
    jax.tree.map(np.testing.assert_array_equal, *results)
