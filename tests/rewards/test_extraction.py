"""Answer tags, boxes and the format score."""

from __future__ import annotations

import pytest

from vero_jax.rewards.extraction import answer_text, boxed_answer, find_boxes, format_score

GOOD = "<think>look</think>\n<answer>\\boxed{7}</answer>"


def test_the_answer_is_the_first_pair_of_tags() -> None:
    assert answer_text("<answer> a </answer><answer>b</answer>") == "a"
    assert answer_text(" no tags ") == "no tags"
    assert answer_text("<answer>open") == "<answer>open"


def test_boxes_count_braces_and_lose_one_text_command() -> None:
    assert find_boxes("\\boxed{\\frac{1}{2}} and \\boxed {\\text{ red }}") == ["\\frac{1}{2}", "red"]
    assert find_boxes("\\boxed{a\\boxed{b}}") == ["a\\boxed{b}"]
    assert find_boxes("\\boxed{1} \\boxed{open") == ["1"]
    assert find_boxes("\\fbox{1} \\Boxed{2} boxed{3}") == []


def test_the_last_good_box_wins_then_brackets_then_the_text() -> None:
    assert boxed_answer("\\boxed{1} \\boxed{2}") == "2"
    assert boxed_answer("see \\boxed[3]") == "3"
    assert boxed_answer("just 4") == "just 4"


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (GOOD, 1.0),
        (" " + GOOD, 0.0),
        ("<think>  </think><answer>\\boxed{7}</answer>", 0.0),
        ("<think>an <answer> here</think><answer>\\boxed{7}</answer>", 0.0),
        ("<think>look</think><answer>7</answer>", 0.5),
        ("<think>look</think><answer>\\boxed{7}\\boxed{8}</answer>", 0.5),
        ("<think>look</think> so <answer>\\boxed{7}</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format_of_a_boxed_type(response: str, score: float) -> None:
    assert format_score(response, "numeric") == score


def test_other_types_want_no_box() -> None:
    plain = "<think>look</think><answer>a calm lake</answer>"
    assert format_score(plain, "llm_judge") == 1.0
    assert format_score(plain.replace("calm", "\\boxed{a} \\boxed{b}"), "grounding") == 0.5
