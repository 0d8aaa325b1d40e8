"""Buckets and padded rows; keys: what they depend on and what they do not."""

from __future__ import annotations

import numpy as np
from sampling_cases import CONFIG, make_prompt

from vero_jax.sampling.inputs import Buckets, pad_prompts, sample_keys, token_inputs, vision_inputs


def test_a_prompt_goes_to_the_smallest_bucket_that_holds_it():
    buckets = Buckets((8, 16, 24), (16, 32))
    # Three words, then two marks, four visual tokens and three words per image.
    prompts = [make_prompt(seed, grids=[(1, 4, 4)] * seed, text=3) for seed in range(3)]
    assert [buckets.of(0, prompt) for prompt in prompts] == [(8, 0), (16, 16), (24, 32)]


def test_padded_rows_hold_the_prompts_and_nothing_else():
    prompts = [make_prompt(seed, grids=[(1, 4, 4)] * count, text=3) for seed, count in enumerate((2, 0, 1))]
    padded = pad_prompts([*prompts, None], 24, 32)
    assert padded.token_ids.shape == (4, 24) and padded.patches.shape == (4, 32, CONFIG.vision.patch_elements)
    np.testing.assert_array_equal(padded.lengths, [21, 3, 12, 1])
    np.testing.assert_array_equal((padded.segments > 0).sum(1), [32, 0, 16, 0])
    np.testing.assert_array_equal(padded.image_index.max(1), [7, -1, 3, -1])
    np.testing.assert_array_equal(padded.token_ids[2, :12], prompts[2].token_ids)
    np.testing.assert_array_equal(padded.next_positions[:3], [prompt.next_position for prompt in prompts])
    np.testing.assert_array_equal(token_inputs(padded).groups.sum(1), padded.lengths)
    text = pad_prompts([prompts[1]], 8, 0)
    assert text.patches is None and vision_inputs(text) is None


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
