"""Rows of other trainers become rows in Vero's columns, recognised by their columns alone."""

from __future__ import annotations

import time

import pytest

from vero_jax.data import formats, schema
from vero_jax.types import Example

PICTURE = {"bytes": b"png", "path": None}
MESSAGES = [{"role": "user", "content": "<image>\nHow many cats?"}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nHow many cats?"}]}]


def example_of(row, source: str = "file") -> Example:
    def no_file(path: str) -> bytes:
        raise FileNotFoundError(2, "No such file", path)

    return schema.parse_row(formats.as_vero_row(row, source), "file_0", no_file)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("vero", {"prompt": MESSAGES, "images": [PICTURE], "reward_model": {"ground_truth": "3"}}),
        ("vero", {"prompt": MESSAGES, "image": PICTURE, "reward_model": '{"ground_truth": "3"}', "extra_info": None}),
        ("easyr1", {"problem": "<image>\nHow many cats?", "answer": "3", "images": [PICTURE]}),
        ("easyr1", {"problem": "<image>\nHow many cats?", "solution": "1 + 2 = \\boxed{3}", "image": PICTURE}),
        ("trl", {"prompt": "How many cats?", "image": PICTURE, "solution": "<think>a</think><answer>3</answer>"}),
        ("trl", {"prompt": MESSAGES, "images": [PICTURE], "answer": "3"}),
        ("trl", {"prompt": PARTS, "images": [PICTURE], "ground_truth": "3", "extra_info": {"level": 1}}),
        ("plain", {"question": "How many cats?", "answer": 3, "image": PICTURE}),
    ],
)
def test_every_format_gives_the_same_question(name, row):
    assert formats.recognise(row) == name
    assert formats.columns_problem(row) is None
    example = example_of(row)
    assert example.messages == tuple(MESSAGES)
    assert example.images == (b"png",)
    assert (example.ground_truth, example.reward_type) == ("3", "numeric")
    assert example.extra_info[schema.GUESSED_KEY] is True
    assert (example.id, example.source, example.domain) == ("file_0", "file", "custom")


def test_what_a_row_of_another_format_states_is_used():
    row = {
        "id": 7,
        "problem": "What is it?",
        "answer": "a cat",
        "reward_type": "list_string_match",
        "tolerance": 0.1,
        "ability": "stem",
        "data_source": "zoo",
        "level": 3,
        "images": [],
    }
    example = example_of(row)
    assert (example.id, example.domain, example.source, example.reward_type) == (
        "7",
        "stem",
        "zoo",
        "list_string_match",
    )
    assert example.extra_info["question"] == "What is it?"
    assert (example.extra_info["tolerance"], example.extra_info["level"]) == (0.1, 3)
    assert schema.GUESSED_KEY not in example.extra_info
    assert "problem" not in example.extra_info


def test_a_whole_response_is_kept_as_the_reference_solution_and_a_derivation_is_not():
    response = "<think>1 + 2</think><answer>\\boxed{3}</answer>"
    assert example_of({"prompt": "1 + 2?", "solution": response}).solution == response
    both = example_of({"prompt": "1 + 2?", "answer": "3", "solution": response})
    assert (both.ground_truth, both.solution) == ("3", response)
    derived = example_of({"prompt": "1 + 2?", "solution": "One plus two is \\boxed{3}."})
    assert (derived.ground_truth, derived.solution) == ("3", "")


@pytest.mark.parametrize(
    ("solution", "truth"),
    [
        ("<think>x</think> <answer> B </answer>", "B"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("so \\boxed{1}, no \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("<answer>it is \\boxed{4}</answer> and \\boxed{5}", "4"),
        ("\\boxed{4", "\\boxed{4"),
        ("} \\boxed{4} \\boxed{5", "4"),
        ("\\boxed{a \\boxed{b} c}", "b"),
        ("  just text ", "just text"),
    ],
)
def test_the_truth_of_a_solution(solution, truth):
    assert formats.truth_of_solution(solution) == truth


def test_hostile_texts_take_no_time():
    texts = ["\\boxed{" * 50_000, "[{" * 50_000, "-" * 100_000 + "1", "\\frac" * 30_000 + "x", "1" + ",111" * 30_000]
    started = time.process_time()
    for text in texts:
        for column in ("answer", "solution"):
            example_of({"question": "Which is A. it? " * 5_000, column: text})
    assert time.process_time() - started < 6


def test_the_first_truth_column_that_holds_something_counts():
    assert example_of({"question": "Q?", "answer": None, "solution": "cat"}).ground_truth == "cat"
    assert example_of({"question": "Q?", "answer": ["a", "b"]}).reward_type == "list_string_match"
    with pytest.raises(schema.RowError, match="empty ground truth"):
        example_of({"question": "Q?", "answer": " "})


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["text", "label"], "no known row format ('text', 'label')"),
        ([], "no columns"),
        (["problem", "images"], "none of ground_truth, answer, solution"),
        (["prompt"], "none of ground_truth, answer, solution"),
        (["prompt", "extra_info"], "no column 'reward_model'"),
        (["image", "ability", "reward_model"], "no column 'prompt'"),
    ],
)
def test_columns_that_will_not_do_are_named(columns, says):
    assert says in str(formats.columns_problem(columns))


def test_a_row_of_no_known_format_is_a_broken_row():
    with pytest.raises(schema.RowError) as caught:
        example_of({"text": "x"})
    assert caught.value.reason == "columns of no known format"
    assert "'text'" in caught.value.detail


def test_rows_in_veros_columns_stay_as_they_are():
    row = {"prompt": MESSAGES, "reward_model": {}, "data_source": None, "odd": object()}
    assert formats.as_vero_row(row, "file") is row
