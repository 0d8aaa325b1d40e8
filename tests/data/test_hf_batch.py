"""Prompts from padded batches: positions and pixels of every recorded case, and batches that contradict themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import golden_dir
from vero_jax.data.hf_batch import VisualTokens, prompts_from_batch
from vero_jax.data.processor import Processor
from vero_jax.errors import UserError

KEYS = (
    "input_ids", "attention_mask", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw",
    "second_per_grid_ts",
)  # fmt: skip
VISUAL = VisualTokens(image_token_id=7, video_token_id=8)


def batches():
    for path in sorted(golden_dir("model").glob("*/meta.json")):
        for name in [*json.loads(path.read_text())["batches"], "gen"]:
            yield pytest.param(path.parent, name, id=f"{path.parent.name}-{name}")


def read_batch(case, name: str) -> dict[str, np.ndarray]:
    data, meta = np.load(case / "io.npz"), json.loads((case / "meta.json").read_text())
    pixels = meta["gen_pixels_from"] if name == "gen" else meta["batches"][name].get("pixels_from", name)
    found = {}
    for key in KEYS:
        for prefix in (name, pixels):
            if f"{prefix}.{key}" in data:
                found.setdefault(key, data[f"{prefix}.{key}"])
    return found


@pytest.mark.golden_model
@pytest.mark.parametrize(("case", "name"), batches())
def test_positions_and_pixels_equal_the_recorded_ones(case, name):
    batch, data = read_batch(case, name), np.load(case / "io.npz")
    processor = Processor.from_folder(case)
    prompts = prompts_from_batch(batch, processor)
    assert len(prompts) == len(batch["input_ids"])
    for row, prompt in enumerate(prompts):
        mask = batch["attention_mask"][row].astype(bool)
        np.testing.assert_array_equal(prompt.token_ids, batch["input_ids"][row][mask])
        np.testing.assert_array_equal(prompt.positions.T, data[f"{name}.position_ids"][:, row][:, mask])
        assert prompt.patches.dtype == np.float32 and len(prompt.patches) == prompt.grids.prod(axis=1).sum()
        assert (prompt.image_index >= 0).sum() * 4 == len(prompt.patches)
        assert prompt.next_position - len(prompt.token_ids) == data[f"{name}.rope_deltas"][row, 0]
    total = sum(len(batch.get(key, ())) for key in ("pixel_values", "pixel_values_videos"))
    assert sum(len(prompt.patches) for prompt in prompts) == total


@pytest.mark.golden_model
def test_patches_of_a_mixed_row_are_in_the_order_of_the_text():
    case = golden_dir("model") / "q25vl_video_tied"
    batch = read_batch(case, "left")
    prompts = prompts_from_batch(batch, Processor.from_folder(case), ids=["a", "b"])
    assert [prompt.example.id for prompt in prompts] == ["a", "b"]
    assert prompts[1].grids.tolist() == [[1, 10, 10], [2, 10, 6]]
    np.testing.assert_array_equal(prompts[1].patches[:100], batch["pixel_values"])
    np.testing.assert_array_equal(prompts[1].patches[100:], batch["pixel_values_videos"][144:])


def two_rows(**changes) -> dict:
    """Two rows with an image of four tokens each, the first one padded on the left."""
    batch = {
        "input_ids": [[0, 1, 7, 7, 7, 7, 2], [1, 7, 7, 7, 7, 2, 3]],
        "attention_mask": [[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]],
        "pixel_values": np.arange(32, dtype=np.float32)[:, None] * np.ones((1, 5), np.float32),
        "image_grid_thw": [[1, 4, 4], [1, 4, 4]],
    }
    return batch | changes


def test_rows_get_their_own_pixels_and_lose_their_padding():
    first, second = prompts_from_batch(two_rows(), VISUAL)
    assert first.token_ids.tolist() == [1, 7, 7, 7, 7, 2] and first.example.id == "row 0"
    assert first.patches[0, 0] == 0 and second.patches[0, 0] == 16
    assert first.positions[-1].tolist() == [3, 3, 3]


def test_images_that_follow_each_other_without_text_are_told_apart():
    batch = two_rows(input_ids=[[7] * 8], attention_mask=None)
    (prompt,) = prompts_from_batch(batch, VISUAL)
    assert prompt.grids.tolist() == [[1, 4, 4], [1, 4, 4]]


def test_a_batch_of_text_needs_no_grids():
    (prompt,) = prompts_from_batch({"input_ids": [[3, 4, 5]]}, VisualTokens(None, None))
    assert prompt.positions[:, 0].tolist() == [0, 1, 2] and len(prompt.patches) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": np.zeros((31, 5))}, r"31 rows of pixel_values, but image_grid_thw .* make 32"),
        ({"pixel_values": None}, r"0 rows of pixel_values, but image_grid_thw"),
        ({"image_grid_thw": [[1, 4, 8]]}, r"row 0 of the batch has 4 image tokens where grid 0 \[1, 4, 8\] needs 8"),
        ({"input_ids": [[0, 1, 2, 2, 2, 2, 2], [1, 7, 7, 7, 7, 2, 3]]}, r"2 image grids, but its 2 rows .* for 1 only"),
        (
            {"input_ids": [[0, 1, 7, 7, 7, 7, 2], [1, 7, 7, 7, 7, 7, 3]]},
            r"row 1 .* 1 image tokens more than the 2 grids",
        ),
        ({"input_ids": [[0, 1, 7, 7, 1, 7, 7], [1, 7, 7, 7, 7, 2, 3]]}, r"row 0 of the batch: text stands between"),
        (
            {"input_ids": [[0, 1, 8, 7, 7, 7, 7], [1, 7, 7, 7, 7, 2, 3]]},
            r"row 0 .* 1 video tokens more than the 0 grids",
        ),
        ({"attention_mask": [[1, 1]]}, r"input_ids has shape \(2, 7\) and attention_mask \(1, 2\)"),
        ({"second_per_grid_ts": [1.0]}, r"second_per_grid_ts has 1 entries for 0 videos"),
    ],
)
def test_batches_that_contradict_themselves_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        prompts_from_batch(two_rows(**changes), VISUAL)
