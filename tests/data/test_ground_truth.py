"""Ground truths by reward type: what no answer could score with is a problem, what is merely odd is kept."""

from __future__ import annotations

import json

import pytest

from vero_jax.data import ground_truth, schema
from vero_jax.data.ground_truth import guess_reward_type, option_letters, stated_boxes
from vero_jax.rewards.router import score_response
from vero_jax.rewards.settings import RewardSettings

BOX = '[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]'
INSTRUCTIONS = '{"instructions": [{"class": "CommaChecker", "args": null}]}'
GOOD = {
    "string_match": ["cat", "5", "."],
    "search": ["53200"],
    "counting": ["2", "two"],
    "multiple_choice": ["A", "(B)", "Answer: C."],
    "numeric": ["78.5", "1,234", "-3", "50%", "$12", "1e-3", r"\frac{1}{2}", r"2 \sqrt { 221 }", r"$\pi$"],
    "number_list": ["1, 4, 2", "[3, 1, 2]"],
    "list_string_match": ["['a', \"b's\"]", '["a"]', "('a', 'b')"],
    "web_action": ['{"ACTION": "TYPE", "MARK": -1, "VALUE": "None"}', "{'action': 'CLICK', 'MARK': 4}"],
    "grounding": [BOX, '[{"bbox_2d": [1.5, 2, "3", 4]}, {"label": "no box"}]', f"```json\n{BOX}\n```", f"It is {BOX}."],
    "clicking": [BOX],
    "instruction_following": [INSTRUCTIONS, json.dumps(INSTRUCTIONS)],
    "instruction_following_llm_judge": [INSTRUCTIONS],
    "llm_judge": ["A red bus.", ""],
    "magic": ["anything"],
}
ODD = {
    "multiple_choice": "a cat",
    "numeric": "12 cm",
    "number_list": "1, 1, 2",
    "list_string_match": "body butter",
    "counting": "several",
    "web_action": '{"MARK": 4}',
    "instruction_following_llm_judge": "A red bus.",
}
BAD = {
    "string_match": ["", " \n"],
    "numeric": ["five", "yes", "x"],
    "number_list": ["a, b"],
    "list_string_match": ["[]", "['', ' ']"],
    "web_action": ["Click Element: 4", "[1]", '{"MARK": -1, "VALUE": null}', '{"x": 1}'],
    "grounding": [
        "[]", "[[1, 2, 3, 4]]", '{"bbox_2d": [1, 2, 3, 4]}', '[{"bbox_2d": [1, 2, 3]}]',
        '[{"bbox_2d": [1, 2, NaN, 4]}]',
        '[{"bbox_2d": null}]', "[" * 2000,
    ],
    "clicking": ['[{"point_2d": [1, 2]}]'],
    "instruction_following": ['{"functions": ["x"]}', '{"instructions": [{"class": " "}]}', "No commas."],
    "instruction_following_llm_judge": [""],
}  # fmt: skip


def test_every_reward_type_is_covered():
    assert set(GOOD) - {"magic"} == set(schema.REWARD_TYPES)


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in GOOD.items() for text in texts])
def test_usual_truths_have_neither_problem_nor_doubt(kind, text):
    assert ground_truth.ground_truth_problem(kind, text) is None
    assert ground_truth.ground_truth_doubt(kind, text) is None


@pytest.mark.parametrize(("kind", "text"), list(ODD.items()))
def test_odd_truths_are_doubted_but_no_problem(kind, text):
    assert ground_truth.ground_truth_problem(kind, text) is None
    assert ground_truth.ground_truth_doubt(kind, text)


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in BAD.items() for text in texts])
def test_truths_that_nothing_can_match_are_a_problem(kind, text):
    assert ground_truth.ground_truth_problem(kind, text)


@pytest.mark.parametrize("kind", ["numeric", "number_list", "web_action", "list_string_match"])
def test_no_answer_scores_with_a_problem_truth_and_its_own_text_scores_with_a_good_one(kind):
    def accuracy(truth: str) -> float:
        text = f"<think>I look.</think><answer>\\boxed{{{truth}}}</answer>"
        return score_response(text, truth, kind, {}, settings=RewardSettings()).accuracy

    if kind != "list_string_match":
        assert all(accuracy(text) == 1 for text in GOOD[kind])
    assert all(accuracy(text) == 0 for text in BAD[kind])


@pytest.mark.parametrize(
    ("question", "truth", "kind"),
    [
        ("Which?\nA. cat\nB. dog", "B", "multiple_choice"),
        ("Which? (A) cat (B) dog", "(A)", "multiple_choice"),
        ("Which?\nA. cat\nB. dog", "C", "string_match"),
        ("What is the vitamin?", "C", "string_match"),
        ("How many?", "12", "numeric"),
        ("How much?", "$1,234.50", "numeric"),
        ("How long?", r"2 \sqrt { 221 }", "numeric"),
        ("Postal code?", "02139", "string_match"),
        ("Where?", "12 cm", "string_match"),
        ("Order?", "1, 2, 3", "string_match"),
        ("Order?", "[3, 1, 2]", "number_list"),
        ("Numbers?", "[1, 1]", "string_match"),
        ("What?", "['cat', 'kitten']", "list_string_match"),
        ("What?", "[not a list", "string_match"),
        ("Where is it?", BOX, "grounding"),
        ('Answer as [{"point_2d": [x, y]}].', BOX, "clicking"),
        ("Write.", INSTRUCTIONS, "instruction_following"),
        ("Act.", '{"ACTION": "CLICK"}', "web_action"),
        ("What?", '{"a": 1}', "string_match"),
        ("Who?", "Toronto", "string_match"),
    ],
)
def test_a_missing_reward_type_is_guessed_by_the_written_rule(question, truth, kind):
    assert guess_reward_type(question, truth) == kind
    assert ground_truth.ground_truth_problem(kind, truth) is None


def test_options_need_an_a_and_a_mark_after_the_letter():
    assert option_letters("Which?\nA) x\nB) y") == {"A", "B"}
    assert option_letters("A:cat B:dog") == {"A", "B"}
    assert not option_letters("Which of A, B or C?")
    assert not option_letters("Who is B. Obama?")


def test_boxes_are_read_as_numbers():
    assert stated_boxes('[{"bbox_2d": [1, "2", 3.5, 4]}, {"bbox_2d": [1]}]') == [(1.0, 2.0, 3.5, 4.0)]
