"""Rows in every stored form become the same examples; unusable ones say why."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import golden_dir
from vero_jax.data import boxes, schema
from vero_jax.types import Example


def _no_file(path: str) -> bytes:
    raise FileNotFoundError(2, "No such file", path)


def _row(**changes):
    row = {
        "id": "a:1",
        "data_source": "somewhere",
        "prompt": {"role": ["user"], "content": ["<image>\nWhat is it?"]},
        "image": {"bytes": b"png", "path": None},
        "ability": "stem",
        "reward_model": {"style": "rule", "ground_truth": "A"},
        "extra_info": {
            "question": "What is it?",
            "answer": "A",
            "reward_type": "multiple_choice",
            "tolerance": None,
            "index": 3,
        },
    }
    return {**row, **changes}


def parse(row) -> Example:
    return schema.parse_row(row, "config_train_0", _no_file)


USER = {"role": "user", "content": "<image>\nWhat is it?"}


@pytest.mark.parametrize(
    "prompt",
    [
        {"role": ["user"], "content": ["<image>\nWhat is it?"]},
        [USER],
        USER,
        "<image>\nWhat is it?",
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]}],
        {"role": ["user"], "content": [[{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]]},
        None,
        [],
        {"role": ["user"], "content": [""]},
    ],
)
def test_every_form_of_the_prompt_gives_the_same_messages(prompt):
    assert parse(_row(prompt=prompt)).messages == (USER,)


def test_system_messages_stay_in_place():
    messages = [{"role": "system", "content": "Be short."}, USER]
    assert parse(_row(prompt=messages)).messages == tuple(messages)


def test_missing_id_falls_back_to_extra_info_then_to_the_row():
    assert parse(_row(id=None)).id == "config_train_0"
    assert parse(_row(id=None, extra_info={**_row()["extra_info"], "id": "x"})).id == "x"


def test_extra_info_is_kept_with_unknown_keys_and_without_nan():
    extra = {**_row()["extra_info"], "tolerance": float("nan"), "pass_rate": 0.5, "nested": {"a": [1, 2]}}
    got = parse(_row(extra_info=extra, surplus=1)).extra_info
    assert got == {**extra, "tolerance": None}


def test_documented_aliases_of_reward_types_are_understood():
    row = _row(extra_info={**_row()["extra_info"], "reward_type": " Exact_Match "})
    assert parse(row).reward_type == "string_match"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": None}, "no image"),
        ({"image": {"bytes": None, "path": None}}, "no image"),
        ({"image": {"bytes": None, "path": "gone.png"}}, "image file missing"),
        ({"image": None, "images": []}, "no image"),
        ({"prompt": None, "extra_info": {"reward_type": "numeric"}}, "no question"),
        ({"prompt": [{"role": "user", "content": "<image><image>"}]}, "image markers do not match the images"),
        ({"extra_info": {"question": "q"}}, "no reward type"),
        ({"ability": None}, "no ability"),
        ({"reward_model": None}, "empty ground truth"),
        ({"extra_info": {"question": "q", "reward_type": "grounding"}}, "ground truth without boxes"),
        (
            {"extra_info": {"question": "q", "reward_type": "instruction_following"}},
            "ground truth without instructions",
        ),
        ({"extra_info": {"question": "q", "reward_type": "web_action"}}, "ground truth is no action"),
    ],
)
def test_unusable_rows_name_their_reason(changes, reason):
    with pytest.raises(schema.RowError) as caught:
        parse(_row(**changes))
    assert caught.value.reason == reason


def test_instructions_may_be_encoded_twice_or_as_a_python_literal():
    truth = {"instructions": [{"class": "CommaChecker", "args": None}]}
    for text in (json.dumps(truth), json.dumps(json.dumps(truth)), str(truth)):
        assert schema.ground_truth_problem("instruction_following", text) is None


def test_image_files_are_read_beside_the_data(tmp_path):
    (tmp_path / "a.png").write_bytes(b"there")
    row = _row(image=None, images=["a.png"])
    assert schema.parse_row(row, "x", schema.read_beside(tmp_path)).images == (b"there",)


def test_record_round_trip():
    example = parse(_row(extra_info={**_row()["extra_info"], "solution": "<think>ü</think><answer>A</answer>"}))
    record = schema.to_features(example, [(4, 5)])
    assert schema.from_features(record) == example
    as_stored = {key: value.encode() if isinstance(value, str) else value for key, value in record.items()}
    assert schema.from_features(as_stored) == example
    assert example.solution.startswith("<think>")


@pytest.mark.golden_rl
def test_boxes_match_the_reference():
    cases = sorted(golden_dir("rl").glob("bbox_*.npz"))
    assert cases
    for path in cases:
        case = np.load(path)
        setting = json.loads(str(case["hp_json"]))
        rescaled = boxes.rescale_boxes(case["in_bbox"], setting["src"], setting["dst"])
        np.testing.assert_allclose(rescaled, case["out_rescaled"], rtol=1e-12, err_msg=path.name)
        thousandths = boxes.boxes_to_thousandths(case["in_bbox"], setting["src"])
        np.testing.assert_array_equal(thousandths, case["out_norm1000"], err_msg=path.name)


def test_ground_truth_follows_the_resized_image():
    truth = '[{"bbox_2d": [10, 20, 30, 40], "label": "x"}]'
    example = parse(_row(reward_model={"ground_truth": truth}, extra_info={"question": "q", "reward_type": "clicking"}))
    moved = json.loads(boxes.ground_truth_at_size(example, (100, 100), (200, 50)))
    assert moved == [{"bbox_2d": [20, 10, 60, 20], "label": "x"}]
    assert boxes.ground_truth_at_size(example, (100, 100), (100, 100)) == truth
    assert boxes.ground_truth_at_size(parse(_row()), (100, 100), (200, 50)) == "A"
