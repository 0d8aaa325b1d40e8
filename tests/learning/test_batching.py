"""Bins under a cap, balanced parts, masks and prompt padding against the reference's vectors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.learning.golden import cases, load
from vero_jax.errors import UserError
from vero_jax.learning.batching import (
    balanced_parts,
    dynamic_batches,
    equal_slices,
    first_fit_decreasing,
    fit_prompt,
    response_mask,
    sequence_length_metrics,
)

golden = pytest.mark.golden_rl


@golden
@pytest.mark.parametrize(("hp", "file"), cases("dynamic_batching"))
def test_dynamic_batches_never_exceed_the_cap(hp, file):
    z = load(file)
    lengths, cap = z["in_seq_len"], hp["max_token_len"]
    batches = dynamic_batches(lengths, cap, multiple_of=4)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    loads = [int(lengths[batch].sum()) for batch in batches]
    assert max(loads) <= cap
    filled = sum(load > 0 for load in loads)
    assert int(z["out_lower_bound"]) <= filled <= int(z["out_lower_bound"]) * 11 / 9 + 1
    assert len(batches) % 4 == 0
    assert dynamic_batches(lengths, cap, multiple_of=4) == batches


@golden
@pytest.mark.parametrize(("hp", "file"), cases("balance_batch"))
def test_balanced_parts_are_as_even_as_the_reference(hp, file):
    z = load(file)
    lengths, k = z["in_seq_len"], hp["k_partitions"]
    theirs = [np.flatnonzero(z["out_assignment"] == part) for part in range(k)]
    ours = balanced_parts(lengths, k)
    assert {len(part) for part in ours} == {len(lengths) // k}
    assert sorted(i for part in ours for i in part) == list(range(len(lengths)))
    expected = dict(zip(z["out_metric_names"].tolist(), z["out_metric_values"].tolist(), strict=True))
    assert sequence_length_metrics(lengths, theirs) == expected
    np.testing.assert_array_equal(np.concatenate(theirs), z["out_order"])
    spread = sequence_length_metrics(lengths, ours)
    allowed = expected["global_seqlen/balanced_max"] - expected["global_seqlen/balanced_min"]
    difference = spread["global_seqlen/balanced_max"] - spread["global_seqlen/balanced_min"]
    assert difference <= allowed + 1e-4 * expected["global_seqlen/mean"]


@golden
@pytest.mark.parametrize(("hp", "file"), cases("response_mask"))
def test_response_mask_matches_reference(hp, file):
    z = load(file)
    np.testing.assert_array_equal(response_mask(z["in_response_ids"], hp["eos"]), z["out_mask"])


@golden
@pytest.mark.parametrize(("hp", "file"), cases("prompt_padding"))
def test_prompt_padding_matches_reference(hp, file):
    z = load(file)
    ids, mask = fit_prompt(
        z["in_input_ids"], np.ones_like(z["in_input_ids"]), hp["max_length"], hp["pad_token_id"], hp["truncation"]
    )
    np.testing.assert_array_equal(ids, z["out_input_ids"])
    np.testing.assert_array_equal(mask, z["out_attention_mask"])


def test_short_prompts_are_padded_on_the_left_and_long_ones_refused():
    ids, mask = fit_prompt(np.array([[3, 4]]), np.ones((1, 2), int), 4, 9, "error")
    assert ids.tolist() == [[9, 9, 3, 4]]
    assert mask.tolist() == [[0, 0, 1, 1]]
    with pytest.raises(UserError, match="5 tokens is longer than 4"):
        fit_prompt(np.ones((1, 5), int), np.ones((1, 5), int), 4, 0, "error")


def test_every_cap_counts():
    assert first_fit_decreasing([(5, 1), (5, 9), (4, 2)], (10, 10)) == [[0, 1], [2]]
    assert first_fit_decreasing([(5, 1), (5, 9), (4, 1)], (10, 9)) == [[1], [0, 2]]
    with pytest.raises(UserError, match="larger than the limit"):
        first_fit_decreasing([(11, 1)], (10, 10))


@pytest.mark.parametrize(("count", "size"), [(256, 128), (24, 16), (5, 5), (3, 8), (130, 128), (1, 1)])
def test_slices_cover_all_and_differ_by_at_most_one(count, size):
    slices = equal_slices(count, size)
    lengths = [s.stop - s.start for s in slices]
    assert sum(lengths) == count
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(slices) == -(-count // size)


def test_unequal_parts_are_refused():
    with pytest.raises(UserError, match="5 items"):
        balanced_parts(np.arange(5), 2)
