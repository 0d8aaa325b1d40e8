"""Sizes, patch coordinates and rotary positions against transformers' recorded ones, and their edge cases."""

from __future__ import annotations

import functools
import itertools
import json
import types

import numpy as np
import pytest

from tests.conftest import golden_dir
from vero_jax.data import geometry
from vero_jax.errors import UserError


def model_cases():
    return [path.parent for path in sorted(golden_dir("model").glob("*/meta.json"))]


def visual_runs(types):
    """Number of visual tokens and type (1 image, 2 video) of each run of visual tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (types > 0) * types, [0]])))
    runs = [(int(stop - start), int(types[start])) for start, stop in itertools.pairwise(edges)]
    return [run for run in runs if run[1]]


def row_grids(runs, image_grids, video_grids, whole):
    """(grid, number of the video or None) of one row in the order of appearance, taken from the front of two queues.

    whole: whether a video is one run of tokens, and not one for each of its frames.
    """
    grids, frames_left = [], 0
    for _, kind in runs:
        if kind == 1:
            grids.append((image_grids.pop(0), None))
        elif frames_left:
            frames_left -= 1
        else:
            grids.append(video_grids.pop(0))
            frames_left = 0 if whole else grids[-1][0][0] - 1
    return grids


@pytest.mark.golden_model
@pytest.mark.parametrize("case", model_cases(), ids=lambda path: path.name)
def test_positions_equal_the_recorded_ones(case):
    meta = json.loads((case / "meta.json").read_text())
    data = np.load(case / "io.npz")
    ids = meta["special_ids"]
    rate = np.float32(meta["recipe"]["vision"].get("tokens_per_second", 0))
    for batch in meta["batches"]:
        images = data[f"{batch}.image_grid_thw"].tolist() if f"{batch}.image_grid_thw" in data else []
        videos = data[f"{batch}.video_grid_thw"].tolist() if f"{batch}.video_grid_thw" in data else []
        videos = [(grid, number) for number, grid in enumerate(videos)]
        for row, mask in enumerate(data[f"{batch}.attention_mask"].astype(bool)):
            token_ids = data[f"{batch}.input_ids"][row][mask]
            runs = visual_runs(data[f"{batch}.mm_token_type_ids"][row][mask])
            found = row_grids(runs, images, videos, whole=bool(rate))
            grids = np.asarray([grid for grid, _ in found], np.int32).reshape(-1, 3)
            seconds = (
                [1.0 if number is None else data[f"{batch}.second_per_grid_ts"][number] for _, number in found]
                if rate
                else []
            )
            positions, image_index = geometry.mrope_positions(
                token_ids,
                grids,
                image_token_id=ids["<|image_pad|>"],
                video_token_id=ids["<|video_pad|>"],
                time_scales=[rate * second for second in seconds] if rate else None,
            )
            np.testing.assert_array_equal(positions.T, data[f"{batch}.position_ids"][:, row][:, mask])
            delta = int(positions.max()) + 1 - len(token_ids)
            assert delta == data[f"{batch}.rope_deltas"][row, 0]
            assert (image_index >= 0).sum() == geometry.merged_counts(grids).sum()
        assert not images and not videos


@pytest.mark.parity
def test_times_of_qwen2_5_videos_equal_those_of_transformers():
    torch = pytest.importorskip("torch")
    model = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl").Qwen2_5_VLModel
    vision = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    theirs = types.SimpleNamespace(config=types.SimpleNamespace(vision_config=vision))
    theirs.get_vision_position_ids = functools.partial(model.get_vision_position_ids, theirs)
    rng = np.random.default_rng(0)
    for _ in range(60):
        grids = np.stack([rng.integers(1, 40, 2), *(2 * rng.integers(1, 5, (2, 2)))], axis=1)
        seconds = (2 / rng.choice([0.7, 1.9, 2.0, 3.0, 11.988, 24.0, 29.97], 2)).astype(np.float32)
        counts = geometry.merged_counts(grids)
        token_ids = np.asarray([1, *[9] * counts[0], 2, 3, *[9] * counts[1], 4, 5])
        expected, _ = model.get_rope_index(
            theirs,
            torch.from_numpy(token_ids)[None],
            mm_token_type_ids=torch.from_numpy(2 * (token_ids == 9))[None],
            video_grid_thw=torch.from_numpy(grids),
            second_per_grid_ts=torch.from_numpy(seconds),
        )
        positions, _ = geometry.mrope_positions(
            token_ids, grids, image_token_id=8, video_token_id=9, time_scales=np.float32(2) * seconds
        )
        np.testing.assert_array_equal(positions.T, expected[:, 0].numpy())


@pytest.mark.golden_model
def test_grids_equal_the_recorded_ones():
    index = golden_dir("model") / "images" / "images.json"
    if not index.is_file():
        pytest.skip(f"{index} is absent")
    cases = json.loads(index.read_text())["cases"]
    settings = {"q3": (16, 65536, 16777216), "q3small": (16, 4096, 262144), "q25": (14, 3136, 12845056)}
    for name, case in cases.items():
        patch, low, high = settings[name.split("|")[1]]
        width, height = case["size_wh"]
        rows, columns = geometry.smart_resize(height, width, 2 * patch, low, high)
        assert [1, rows // patch, columns // patch] == case["grid_thw"], name


@pytest.mark.parametrize(
    ("size", "expected"),
    [((80, 112), (64, 128)), ((1, 1), (32, 32)), ((33, 6000), (32, 5856)), ((31, 33), (32, 32)), ((5, 900), (32, 448))],
)
def test_sides_round_half_to_even_and_areas_keep_to_the_limits(size, expected):
    assert geometry.smart_resize(*size, 32, 1024, 190_000) == expected


def test_a_thin_image_keeps_one_token_when_the_area_shrinks():
    assert geometry.smart_resize(20, 3000, 32, 1024, 4096) == (32, 768)


@pytest.mark.parametrize(("low", "high"), [(1, 16_777_216), (65_536, 16_777_216), (1024, 1024)])
def test_one_pixel_becomes_at_least_one_token(low, high):
    rows, columns = geometry.smart_resize(1, 1, 32, low, high)
    assert rows == columns >= 32 and rows * columns >= low


def test_a_video_that_outlasts_its_side_reaches_beyond_the_text_that_follows():
    positions, _ = geometry.mrope_positions(
        np.asarray([1, 9, 9, 9, 2]), np.asarray([[3, 2, 2]]), image_token_id=8, video_token_id=9, time_scales=[4.9]
    )
    assert positions.tolist() == [[0, 0, 0], [1, 1, 1], [5, 1, 1], [10, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize("size", [(10, 2001), (2001, 10), (0, 5)])
def test_impossible_shapes_are_refused(size):
    with pytest.raises(ValueError, match="pixels"):
        geometry.smart_resize(*size, 32, 1024, 65536)


@pytest.mark.parametrize(("low", "high"), [(0, 5000), (5000, 4000), (10, 1023)])
def test_unusable_limits_are_named(low, high):
    with pytest.raises(UserError, match=f"folder/x.json.*min_pixels={low}.*max_pixels={high}"):
        geometry.check_pixel_limits(low, high, 32, "folder/x.json")


def test_patches_come_block_by_block_and_frame_by_frame():
    coords, sizes, segments = geometry.patch_geometry(np.asarray([[1, 2, 4], [2, 2, 2]]))
    assert coords.tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3],
        [0, 0], [0, 1], [1, 0], [1, 1],
        [0, 0], [0, 1], [1, 0], [1, 1],
    ]  # fmt: skip
    assert sizes.tolist() == [[2, 4]] * 8 + [[2, 2]] * 8
    assert segments.tolist() == [1] * 8 + [2] * 4 + [3] * 4
    assert coords.dtype == sizes.dtype == segments.dtype == np.int32


def test_every_patch_of_a_frame_has_one_place():
    coords, _, _ = geometry.patch_geometry(np.asarray([[1, 6, 10]]))
    assert sorted(map(tuple, coords.tolist())) == [(row, column) for row in range(6) for column in range(10)]


def test_no_images_give_empty_arrays():
    coords, sizes, segments = geometry.patch_geometry(np.zeros((0, 3), np.int32))
    assert coords.shape == sizes.shape == (0, 2) and segments.shape == (0,)
    positions, image_index = geometry.mrope_positions(np.asarray([5, 6]), np.zeros((0, 3), np.int32), image_token_id=9)
    assert positions.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert image_index.tolist() == [-1, -1]


def test_odd_grids_are_refused():
    with pytest.raises(ValueError, match="multiple of 2"):
        geometry.patch_geometry(np.asarray([[1, 3, 4]]))


@pytest.mark.parametrize("tokens", [[9, 9, 9], [9, 9, 9, 9, 9], [9, 1, 9, 9, 9]])
def test_placeholders_that_do_not_fit_the_grid_are_refused(tokens):
    with pytest.raises(ValueError, match="visual tokens"):
        geometry.mrope_positions(np.asarray(tokens), np.asarray([[1, 4, 4]]), image_token_id=9)
