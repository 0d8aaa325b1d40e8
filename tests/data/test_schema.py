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
    assert parse(_row(extra_info=extra)).extra_info == {**extra, "tolerance": None}


def test_small_extra_columns_go_along_in_extra_info_and_never_replace_it():
    extra = {**_row()["extra_info"], "level": "easy", "hint": None}
    row = _row(extra_info=extra, level="hard", hint="look", score=0.5, flag=True, text="x" * 501, blob=b"x", nested={})
    assert parse(row).extra_info == {**extra, "hint": "look", "score": 0.5, "flag": True}


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
        ({"image": 5}, "image of a wrong type"),
        ({"image": [1, 2]}, "image of a wrong type"),
        ({"image": {"bytes": "no base64!", "path": None}}, "image not readable"),
        ({"image": "https://example.org/a.png"}, "image is a web address"),
        ({"image": "a\0b.png"}, "image file missing"),
        ({"videos": ["a.mp4"]}, "videos are not read"),
        ({"prompt": 5, "extra_info": {"reward_type": "numeric"}}, "no question"),
        ({"reward_model": "A"}, "reward_model is no object"),
        ({"extra_info": ["A"]}, "extra_info is no object"),
        ({"reward_model": {"ground_truth": None}, "extra_info": {}}, "empty ground truth"),
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


def test_a_row_without_a_reward_type_gets_a_guessed_one_and_is_marked():
    choice = _row(prompt="Which?\nA. cat\nB. dog", extra_info={"question": "Which?"})
    for row in (choice, _row(prompt="Which?\nA. cat\nB. dog", extra_info={"reward_type": None})):
        example = parse(row)
        assert example.reward_type == "multiple_choice"
        assert example.extra_info["reward_type_guessed"] is True
    assert "reward_type_guessed" not in parse(_row()).extra_info


def test_an_odd_ground_truth_is_kept_and_marked():
    example = parse(_row(reward_model={"ground_truth": "the cat"}))
    assert example.ground_truth == "the cat"
    assert example.extra_info["ground_truth_doubt"] == "multiple choice without a letter"
    assert "ground_truth_doubt" not in parse(_row()).extra_info


def test_a_row_without_the_column_ability_is_of_the_custom_domain():
    row = _row()
    del row["ability"]
    assert parse(row).domain == schema.CUSTOM_DOMAIN == "custom"


def test_objects_may_be_json_texts():
    row = _row(reward_model='{"ground_truth": "B"}', extra_info='{"reward_type": "string_match", "level": 3}')
    example = parse(row)
    assert (example.ground_truth, example.reward_type) == ("B", "string_match")
    assert example.extra_info["level"] == 3
    assert parse(_row(prompt=json.dumps([USER]))).messages == (USER,)


def test_ground_truths_that_are_no_text_become_text():
    boxes = [{"bbox_2d": [1, 2, 3, 4], "label": "ü"}]
    for truth, text in (
        (5, "5"),
        (1.5, "1.5"),
        (["a", "b"], '["a", "b"]'),
        (boxes, json.dumps(boxes, ensure_ascii=False)),
    ):
        row = _row(reward_model={"ground_truth": truth}, extra_info={"reward_type": "string_match"})
        assert parse(row).ground_truth == text


@pytest.mark.parametrize("stored", [{"images": []}, {}, {"image": []}])
def test_a_row_with_an_empty_list_or_no_image_column_is_a_question_of_text(stored):
    row = {**{key: value for key, value in _row(prompt="What is 1 + 1?").items() if key != "image"}, **stored}
    example = parse(row)
    assert example.images == ()
    assert example.messages == ({"role": "user", "content": "What is 1 + 1?"},)
    assert schema.from_features(schema.to_features(example, [])) == example


def test_text_rows_with_a_marker_are_refused():
    with pytest.raises(schema.RowError, match="1 markers, 0 images"):
        parse(_row(image=[], prompt="<image>What?"))


@pytest.mark.parametrize(
    "stored",
    [
        [b"one", b"two"],
        [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": "b.png"}],
        [{"bytes": "b25l"}, "data:image/png;base64,dHdv"],
        ["one.png", {"path": "two.png"}],
        ["file://one.png", {"type": "image", "image": "two.png"}],
    ],
)
@pytest.mark.parametrize("column", ["image", "images"])
def test_several_images_in_every_stored_form(stored, column):
    row = {key: value for key, value in _row(prompt="<image> or <image>?").items() if key != "image"}
    files = {"one.png": b"one", "two.png": b"two"}
    example = schema.parse_row({**row, column: stored}, "x", files.__getitem__)
    assert example.images == (b"one", b"two")


def test_pictures_inside_the_parts_of_a_message_are_taken_where_no_column_has_them():
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,b25l"}}
    parts = [url, {"type": "image", "image": b"two", "text": None}, {"type": "text", "text": "Same?", "image": None}]
    row = {key: value for key, value in _row().items() if key != "image"}
    example = parse({**row, "prompt": [{"role": "user", "content": parts}]})
    assert example.images == (b"one", b"two")
    assert example.messages[0]["content"] == "<image><image>Same?"


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
