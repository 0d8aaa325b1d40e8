"""Calls: buckets, padding, order; keys: what they depend on and what they do not."""

from __future__ import annotations

import numpy as np
from sampling_cases import CONFIG, make_prompt

from vero_jax.sampling.inputs import plan_calls, sample_keys


def test_calls_hold_every_prompt_once_sorted_by_size():
    prompts = [make_prompt(seed, grids=[(1, 4, 4)] * (seed % 3), text=3) for seed in range(8)]
    keys = sample_keys(prompts, 2, seed=0, step=0)
    calls = list(plan_calls(prompts, keys, groups=3, prompt_buckets=(24, 8, 16), patch_buckets=(16, 32)))
    assert [call.indices for call in calls] == [(0, 3, 6), (1, 4, 7), (2, 5)]
    # Three words, then two marks, four visual tokens and three words per image.
    assert [call.token_ids.shape for call in calls] == [(3, 8), (3, 16), (3, 24)]
    assert calls[0].patches is None
    assert [call.patches.shape for call in calls[1:]] == [(3, n, CONFIG.vision.patch_elements) for n in (16, 32)]
    last = calls[2]
    np.testing.assert_array_equal(last.lengths, [21, 21, 1])
    np.testing.assert_array_equal(last.keys[:2], keys[[2, 5]])
    np.testing.assert_array_equal((last.segments > 0).sum(1), [32, 32, 0])
    np.testing.assert_array_equal(last.image_index[0].max(), 7)
    np.testing.assert_array_equal(last.token_ids[1, :21], prompts[5].token_ids)
    assert last.next_positions[0] == prompts[2].next_position


def test_keys_depend_on_seed_step_prompt_and_sample_only():
    prompts = [make_prompt(seed, grids=[]) for seed in range(4)]
    keys = sample_keys(prompts, 3, seed=1, step=2)
    assert len({tuple(key) for key in keys.reshape(-1, 2)}) == 12
    np.testing.assert_array_equal(sample_keys(prompts[::-1], 5, seed=1, step=2)[::-1, :3], keys)
    for other in (sample_keys(prompts, 3, seed=2, step=2), sample_keys(prompts, 3, seed=1, step=3)):
        assert not (other == keys).all(-1).any()


def test_a_repeated_prompt_has_keys_of_its_own():
    keys = sample_keys([make_prompt(0), make_prompt(0)], 2, seed=0, step=0)
    assert not (keys[0] == keys[1]).all(-1).any()
