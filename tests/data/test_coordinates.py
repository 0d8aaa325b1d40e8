"""What a question says about coordinates is what its truth, its reference solution and its reward mean."""

from __future__ import annotations

import json

import pytest

from vero_jax.data.coordinates import SENTENCES, reworded

VERO = (
    "<image>\nWhere is the apple? Output the bounding box(es) in a JSON array format: "
    '[{"bbox_2d": [x_min, y_min, x_max, y_max], "label": "<class name>"}]. '
    "Use absolute pixel coordinates (origin at top-left). For a single object, return one array element."
)


def said(text: str, coordinates: str, kind: str = "grounding") -> str:
    return reworded([{"role": "user", "content": text}], kind, coordinates)[0]["content"]


def test_veros_own_wording_becomes_thousandths_and_nothing_else_changes():
    text = said(VERO, "normalized_1000")
    assert "pixel" not in text and "from 0 to 1000" in text
    before, after = VERO.split("absolute pixel coordinates")
    assert text.startswith(before) and text.endswith(after)


def test_veros_own_wording_stays_for_pixels():
    assert said(VERO, "pixels") == VERO


@pytest.mark.parametrize(
    "phrase",
    [
        "normalized coordinates from 0 to 1000",
        "normalised coordinates (0-1000)",
        "relative coordinates in the range [0, 1000]",
        "coordinates normalized to 0-1000",
        "coordinates scaled between 0 and 1,000",
        "coordinates from 0 to 1000, relative to the width and height of the image",
    ],
)
def test_words_for_thousandths_become_pixels(phrase):
    assert said(f"Give point_2d in {phrase}.", "pixels") == "Give point_2d in absolute pixel coordinates."
    assert said(f"Give point_2d in {phrase}.", "normalized_1000") == f"Give point_2d in {phrase}."


@pytest.mark.parametrize(
    "phrase", ["absolute pixel coordinates", "Pixel coordinates", "absolute coordinates", "coordinates in pixels"]
)
def test_words_for_pixels_become_thousandths(phrase):
    text = said(f"Give bbox_2d in {phrase}.", "normalized_1000")
    assert "0 to 1000" in text and "pixel" not in text.lower()


def test_going_there_and_back_changes_nothing():
    assert said(said(VERO, "normalized_1000"), "pixels") == VERO
    once = said(VERO, "normalized_1000")
    assert said(once, "normalized_1000") == once


@pytest.mark.parametrize("coordinates", SENTENCES)
def test_a_question_for_boxes_that_says_nothing_gets_a_sentence(coordinates):
    text = 'Find it. Answer with [{"point_2d": [x, y]}].'
    assert said(text, coordinates, "clicking") == f"{text} {SENTENCES[coordinates]}"
    assert said("Point at it.", coordinates, "clicking") == "Point at it."  # a form of its own


def test_other_questions_and_other_turns_are_left_alone():
    assert said(VERO, "normalized_1000", "string_match") == VERO
    turns = [
        {"role": "system", "content": "Use pixel coordinates."},
        {"role": "user", "content": "Give bbox_2d in pixel coordinates."},
        {"role": "assistant", "content": "pixel coordinates"},
        {"role": "user", "content": "And now?"},
    ]
    new = reworded(turns, "grounding", "normalized_1000")
    assert [turn["content"] for turn in (new[0], new[2], new[3])] == [
        "Use pixel coordinates.",
        "pixel coordinates",
        "And now?",
    ]
    assert "1000" in new[1]["content"] and turns[1]["content"] == "Give bbox_2d in pixel coordinates."


@pytest.mark.real_data
def test_every_real_question_for_a_place_says_it_in_the_policys_coordinates(shared):
    found = 0
    for split in ("train", "val"):
        lines = (shared / "data/real_mini/formatted" / f"vero_600k_{split}.verl.jsonl").read_text("utf-8").splitlines()
        for row in map(json.loads, lines):
            kind = row["extra_info"]["reward_type"]
            text = row["prompt"][-1]["content"]
            if kind in ("grounding", "clicking"):
                found += 1
                assert "pixel" not in said(text, "normalized_1000", kind).lower()
                assert said(text, "normalized_1000", kind).count("0 to 1000") == 1
                assert said(text, "pixels", kind).count("absolute pixel coordinates") == 1
    assert found > 10
