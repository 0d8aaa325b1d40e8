"""Where tokens, images and targets come to lie in rows, and what the limits do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.learning.policies import IMAGE_TOKEN, make_group, random_groups
from vero_jax.data.geometry import patch_geometry
from vero_jax.errors import UserError
from vero_jax.learning.packing import pack_rows, row_shapes
from vero_jax.types import Score


def pack(groups, *, row_length=256, row_patches=256, rungs=4, **options):
    return pack_rows(groups, shapes=row_shapes(row_length, row_patches, rungs), **options)


def test_a_group_is_one_prefix_and_its_branches():
    group = make_group([[11, 12, 13], [21], [31, 32]], prompt=[1, 2, 3, 4], advantages=[1, -1, 2])
    rows, signals = pack([group]).micro_batch(0)
    tokens = rows.tokens
    assert tokens.token_ids[0, :11].tolist() == [1, 2, 3, 4, 11, 12, 13, 21, 31, 32, 0]
    assert tokens.groups[0, :11].tolist() == [1] * 10 + [0]
    assert tokens.branches[0, :11].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 0]
    assert tokens.positions[0, :10, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 4, 5]
    assert (tokens.positions[..., 0] == tokens.positions[..., 2]).all()
    # The prompt's last token predicts the first token of every branch.
    assert rows.sources[0, :6].tolist() == [3, 4, 5, 3, 3, 8]
    assert rows.targets[0, :6].tolist() == [11, 12, 13, 21, 31, 32]
    assert rows.responses.mask[0].sum() == 6
    assert rows.responses.ids[0, :6].tolist() == [0, 0, 0, 1, 2, 2]
    assert signals.advantages[0, :6].tolist() == [1, 1, 1, -1, 2, 2]
    np.testing.assert_array_equal(signals.sampler[0, :3], group.responses[0].logprobs)
    assert rows.vision is None


def test_images_of_several_groups_share_a_row():
    groups = [group for group in random_groups(6, seed=3) if len(group.prompt.patches)]
    plan = pack(groups, row_length=384)
    assert plan.micro_batches == 1
    rows, _ = plan.micro_batch(0)
    patch = merged = frames = start = 0
    for group in groups:
        prompt = group.prompt
        count, length = len(prompt.patches), len(prompt.token_ids)
        coords, sizes, segments = patch_geometry(prompt.grids)
        here = slice(patch, patch + count)
        np.testing.assert_array_equal(rows.vision.patches[0, here], prompt.patches)
        np.testing.assert_array_equal(rows.vision.coords[0, here], coords)
        np.testing.assert_array_equal(rows.vision.sizes[0, here], sizes)
        np.testing.assert_array_equal(rows.vision.segments[0, here], segments + frames)
        index = rows.tokens.image_index[0, start : start + length]
        np.testing.assert_array_equal(index >= 0, prompt.token_ids == IMAGE_TOKEN)
        assert index[index >= 0].tolist() == list(range(merged, merged + count // 4))
        patch, merged, frames = patch + count, merged + count // 4, frames + len(prompt.grids)
        start += length + sum(len(r.token_ids) for r in group.responses)
    assert (rows.vision.segments[0, patch:] == 0).all()


def response_counts(plan):
    return np.array([len(members) for row in plan.contents for _, members in row])


@pytest.mark.parametrize("row_length", [40, 64, 100, 128, 200, 256, 1000])
def test_every_response_is_in_one_row_and_no_row_overflows(row_length):
    groups = random_groups(9, seed=5)
    plan = pack(groups, row_length=row_length, row_patches=48, rows_per_micro_batch=2, skip_zero_advantage=False)
    seen = sorted((place.group, place.response) for place in plan.places())
    assert seen == [(g, r) for g in range(9) for r in range(4)]
    assert plan.row_length <= row_length
    places = {}
    for place in plan.places():
        places.setdefault(place.row, []).append(place)
    for index in range(plan.micro_batches):
        rows, signals = plan.micro_batch(index)
        assert rows.tokens.token_ids.shape == (2, plan.row_length)
        assert (np.diff(rows.responses.ids, axis=1) >= 0).all()
        for b in range(2):
            for place in places.get(index * 2 + b, []):
                inside = slice(place.start, place.start + place.length)
                response = groups[place.group].responses[place.response]
                np.testing.assert_array_equal(rows.targets[b, inside], response.token_ids)
                np.testing.assert_array_equal(signals.sampler[b, inside], response.logprobs)
                assert (rows.responses.mask[b, inside] == 1).all()
                assert (rows.responses.ids[b, inside] == place.number).all()
                # What predicts a token is the token before it in the same group and branch, or the prefix's last.
                source = rows.sources[b, inside]
                assert (rows.tokens.token_ids[b, source[1:]] == response.token_ids[:-1]).all()
                assert rows.tokens.token_ids[b, source[0]] == groups[place.group].prompt.token_ids[-1]
                assert rows.tokens.branches[b, source[0]] == 0
    total = sum(plan.micro_batch(i)[0].responses.mask.sum() for i in range(plan.micro_batches))
    assert total == plan.tokens == plan.seen_tokens


def test_a_group_too_long_for_a_row_repeats_its_prefix():
    group = make_group([[1] * 30] * 4, prompt=[5] * 20, advantages=[1, 2, 3, 4])
    plan = pack([group], row_length=90)
    assert list(plan.contents) == [((0, (0, 1)),), ((0, (2, 3)),)]
    assert plan.filled_tokens() == 2 * 20 + 4 * 30


def test_limits_are_refused_with_the_question_named():
    with pytest.raises(UserError, match=r"'q0': a prompt of 3 tokens with a response of 10 .*row_length=12"):
        pack([make_group([[1] * 10])], row_length=12)
    group = make_group([[1]], prompt=[99] * 4, grids=[(1, 4, 4)])
    with pytest.raises(UserError, match=r"16 vision patches do not fit actor.row_patches=8"):
        pack([group], row_patches=8)
    assert pack([group], row_patches=16).row_patches == 16


def test_rows_take_the_length_that_pads_least():
    groups = [make_group([[1] * 20] * 5, prompt=[2] * 20, advantages=[1] * 5)] * 8  # 120 tokens each
    assert pack(groups, row_length=1024).row_length == 1024
    assert pack(groups[:4], row_length=1024).row_length == 512
    assert pack(groups[:1], row_length=1024).row_length == 128


@pytest.mark.parametrize("rows_per_micro_batch", [1, 3])
def test_of_all_shapes_the_one_with_the_least_work_is_taken(rows_per_micro_batch):
    shapes = row_shapes(512, 256, 3)

    def work(plan):
        return plan.micro_batches * rows_per_micro_batch * (plan.row_length + 0.3 * plan.row_patches)

    options = {"rows_per_micro_batch": rows_per_micro_batch, "patch_cost": 0.3, "oversize": "drop"}
    for seed in range(6):
        groups = random_groups(4 + 3 * seed, seed=seed, longest=40)
        plan = pack_rows(groups, shapes=shapes, **options)
        alone = [pack_rows(groups, shapes=[shape], **options) for shape in shapes]
        assert work(plan) <= min(work(other) for other in alone if other.seen_tokens == plan.seen_tokens)
        assert (plan.row_length, plan.row_patches) in shapes


def test_the_table_of_shapes_is_short():
    assert [shape.tokens for shape in row_shapes(36864, 65536, 3)][::3] == [36864, 18432, 9216]
    assert {shape.patches for shape in row_shapes(36864, 65536, 1)} == {0, 32768, 65536}
    assert {shape.patches for shape in row_shapes(4096, 65536, 1)} == {0, 8192, 16384}  # a token for four patches
    assert len(row_shapes(128, 0, 5)) == 1 and len(row_shapes(4096, 4096, 3)) == 9


def test_rows_are_filled_evenly():
    """So that no device of a micro-batch waits for another: rows of like fill are computed together."""
    for seed in range(5):
        groups = random_groups(24, seed=seed, longest=40)
        plan = pack_rows(groups, shapes=row_shapes(512, 512, 1), rows_per_micro_batch=4, skip_zero_advantage=False)
        filled = np.zeros(len(plan.contents))
        for place in plan.places():
            filled[place.row] += place.length
        for number, row in enumerate(plan.contents):
            filled[number] += sum(len(groups[g].prompt.token_ids) for g, _ in row)
        assert filled.sum() == plan.filled_tokens() and (filled <= 512).all()
        by_batch = filled.reshape(-1, 4)
        assert (by_batch.min(1) > 0.8 * by_batch.max(1)).all()


def test_what_fits_no_row_is_dropped_and_counted_if_the_setting_says_so():
    groups = [
        make_group([[1] * 300, [2] * 5], advantages=[1, -1]),
        make_group([[1], [2]], prompt=[99] * 4, grids=[(1, 4, 4)], advantages=[1, -1]),
        make_group([[3], [4]], advantages=[1, -1]),
    ]
    plan = pack(groups, row_patches=8, oversize="drop")
    assert plan.dropped == {"tokens": 1, "patches": 2}
    assert (plan.sequences, plan.tokens) == (3, 7)  # as if they had never been there
    assert sorted((p.group, p.response) for p in plan.places()) == [(0, 1), (2, 0), (2, 1)]


def test_what_counts_and_what_is_computed():
    groups = [
        make_group([[1, 2], [3], [4]], advantages=[1, 0, -1]),
        make_group([[1, 2], [3]], advantages=[0, 0]),
        make_group([[], [3]], advantages=[1, -1], stop_reasons=["stop", "length"]),
        make_group([[1], [2, 3]], advantages=[1, 0], scores=[1.0, Score(np.nan, np.nan, np.nan, missing="died")]),
    ]
    plan = pack(groups)
    assert (plan.sequences, plan.tokens) == (3 + 2 + 1 + 1, 4 + 3 + 1 + 1)
    assert sorted((p.group, p.response) for p in plan.places()) == [(0, 0), (0, 2), (2, 1), (3, 0)]
    assert pack(groups, skip_zero_advantage=False).seen_sequences == plan.sequences
    assert pack(groups, mask_truncated=True).sequences == plan.sequences - 1


def test_packing_is_deterministic_and_ignores_nothing():
    groups = random_groups(12, seed=9)
    first, second = pack(groups), pack(list(groups))
    assert first.contents == second.contents
    empty = pack([])
    assert (empty.micro_batches, empty.tokens) == (0, 0)
    unscored = dataclasses.replace(groups[0], advantages=None)
    assert response_counts(pack([unscored])).sum() == 4
