"""Sampler and learner agree on what was drawn, and the compiled update holds no array that grows with a square."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.learning.policies import random_groups, tiny_model
from vero_jax.config import ActorConfig, MeshConfig, OptimConfig, RolloutConfig, SamplingConfig
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.update import Learner
from vero_jax.parallel.mesh import make_mesh
from vero_jax.rollout import rollout
from vero_jax.sampling.engine import Engine

TINY = tiny_model()
ROLLOUT = RolloutConfig(
    concurrent_responses=10, prompt_buckets=(24, 40), patch_buckets=(32,), prompt_page=16, response_page=8,
    vocab_block=48, attention_block=16,
)  # fmt: skip


def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def learner(model_def, temperature=1.0, row_length=160, **actor) -> Learner:
    policy = TrainablePolicy.of_model(model_def, mesh(), temperature=temperature, attention_block=32, vocab_block=48)
    config = ActorConfig(row_length=row_length, row_patches=128, mini_batch_prompts=8, clip_ratio_low=0.2, **actor)
    return Learner(policy, config, OptimConfig(lr=1e-3, warmup_steps=0), mesh(), max_response_length=30)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_of_sampler_and_learner_agree(dtype):
    """float32: to 1e-4. bfloat16: mean of exp|difference| below 1.01."""
    model_def = dataclasses.replace(TINY, dtype=dtype)
    params = model_def.init_params(0)
    prompts = [group.prompt for group in random_groups(8)]
    engine = Engine(model_def, ROLLOUT, mesh(), stop_ids=[5], banned_ids=[96, 97, 98, 99])
    sampling = SamplingConfig(temperature=0.8, top_p=0.95)
    drawn = dict(engine.generate(params, prompts, n=4, sampling=sampling, seed=0, step=0, max_new_tokens=30))
    groups = [drawn[index] for index in range(8)]
    found = learner(model_def, temperature=0.8).logprobs(params, groups)
    pairs = [
        (response.logprobs, values)
        for group, parts in zip(groups, found, strict=True)
        for response, values in zip(group.responses, parts, strict=True)
    ]
    difference = np.abs(np.concatenate([a - b for a, b in pairs]))
    assert len(difference) > 200
    assert difference.max() < 1e-4 if dtype == "float32" else np.exp(difference).mean() < 1.01


@pytest.mark.parametrize("remat", ["none", "products", "layers"])
def test_the_compiled_update_holds_no_array_of_tokens_by_tokens_or_by_vocabulary(remat):
    model_def = dataclasses.replace(TINY, remat=remat)
    by = learner(model_def, row_length=448)
    params = model_def.init_params(0)
    groups = random_groups(8, longest=30)
    plan = by.pack(groups)
    _, T, _ = plan.shape
    assert T >= 224
    state = by.init_state(params)
    text = by.programs.accumulate.lower(state.params, by.programs.zeros(), by._batch(plan, 0)).compile().as_text()
    vocab = model_def.config.text.vocab_size
    for columns in (T, vocab):
        assert f"{T},{columns}]" not in text and f"{columns},{T}]" not in text, columns


@pytest.mark.slow
def test_the_three_ways_to_keep_activations_give_the_same_gradient():
    params, groups = TINY.init_params(0), random_groups(5)

    def gradient(remat: str) -> list[np.ndarray]:
        by = learner(dataclasses.replace(TINY, remat=remat))
        plan, total = by.pack(groups), by.programs.zeros()
        for index in range(plan.micro_batches):
            total, *_ = by.programs.accumulate(params, total, by._batch(plan, index))
        return jax.tree.leaves(jax.tree.map(np.asarray, total))

    want = gradient("none")
    largest = max(np.abs(leaf).max() for leaf in want)
    for remat in ("products", "layers"):
        for a, b in zip(gradient(remat), want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=1e-4)


class NoRewards:
    """Scores nothing."""

    def score_groups(self, groups):
        for index, items in groups:
            yield index, [None for _ in items]


@pytest.mark.parametrize("oversize", ["error", "drop"])
def test_prompts_that_fit_no_bucket_stop_the_run_or_are_counted(oversize, monkeypatch):
    monkeypatch.setattr("vero_jax.rollout.reward_items", lambda prompt, responses, truth: list(responses))
    groups = random_groups(6)
    longest = max(len(group.prompt.token_ids) for group in groups)
    settings = dataclasses.replace(ROLLOUT, prompt_buckets=(longest - 1,), patch_buckets=(16,), oversize=oversize)
    engine = Engine(TINY, settings, mesh(), stop_ids=[5])
    prompts = [group.prompt for group in groups]
    fits = [len(p.token_ids) < longest and len(p.patches) <= 16 for p in prompts]
    assert 0 < sum(fits) < len(fits)

    def run():
        return rollout(
            engine, NoRewards(), TINY.init_params(0), prompts, n=2, sampling=SamplingConfig(), seed=0, step=1,
            max_new_tokens=3,
        )  # fmt: skip

    if oversize == "error":
        with pytest.raises(ValueError, match=r"more than the largest of rollout\.(prompt|patch)_buckets"):
            run()
        return
    rolled = run()
    assert [group.prompt for group in rolled.groups] == [p for p, fit in zip(prompts, fits, strict=True) if fit]
    assert sum(rolled.left_out.values()) == len(fits) - sum(fits) and set(rolled.left_out) <= {"tokens", "patches"}
    assert rolled.sampler["rollout/useful_share"] > 0
