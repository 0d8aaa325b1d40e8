"""Answers in canonical form: kind, value, and why an answer is dropped."""

from __future__ import annotations

import time

import pytest

from vero_jax.curation import answers, quantities, variants
from vero_jax.curation.answers import AnswerSettings, applies_to, canonical

CHOICES = "Which animal is it?\nA. cat\nB. dog\nC. Cannot be determined"


@pytest.mark.parametrize(
    ("answer", "kind", "value"),
    [
        ("$222.14", "numeric", "222.14"),
        ("1,234", "numeric", "1234"),
        ("3/4", "numeric", "0.75"),
        ("1.2e-3", "numeric", "0.0012"),
        ("about 5 cm", "numeric", "5"),
        ("45%", "numeric", "45"),
        ("x = 5", "numeric", "5"),
        ("(B) cat", "multiple_choice", "B"),
        ("Option C", "multiple_choice", "C"),
        ("option (c): a dog", "multiple_choice", "C"),
        ("(D)", "multiple_choice", "D"),
        ("Jacobites", "string", "Jacobites"),
        ("week 2", "string", "week 2"),
        ("North America.", "string", "North America"),
        ("U.S.", "string", "U.S."),
        ("'Seagull'", "string", "Seagull"),
        ("The answer is Paris.", "string", "Paris"),
        ("  New \n York ", "string", "New York"),
        ("B", "string", "B"),
        ("J. Smith", "string", "J. Smith"),
        ("C++", "string", "C++"),
        ("A+", "string", "A+"),
        ("and/or", "string", "and/or"),
        ("A-B", "string", "A-B"),
        ("H2O", "string", "H2O"),
        ("Na", "string", "Na"),
        ("none", "string", "none"),
        ("undefined", "string", "undefined"),
        ("21/05/2018", "string", "21/05/2018"),
        ("3:4", "string", "3:4"),
        ("(3, 4)", "string", "(3, 4)"),
        ("red and blue", "string", "red and blue"),
        ("00725", "string", "00725"),
        ("猫", "string", "猫"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]', "clicking", '[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]'),
    ],
)
def test_an_answer_without_options_finds_its_kind(answer: str, kind: str, value: str) -> None:
    found = canonical(answer)
    assert (found.kind, found.value) == (kind, value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("10-20", quantities.MULTI_VALUE),
        ("3 and 5", quantities.MULTI_VALUE),
        ("2.5 x 10^6", quantities.POSITIVE_EXPONENT),
        ("5 million", quantities.SCALE_WORD),
        ("1,23", quantities.COMMA),
        ("x+1", answers.SYMBOLIC),
        ("2x", answers.SYMBOLIC),
        ("y = 2x + 1", answers.SYMBOLIC),
        ("a^2+b^2", answers.SYMBOLIC),
        ("x < 5", answers.SYMBOLIC),
        ("sin(x)", answers.SYMBOLIC),
        ("\\sqrt{2}", answers.SYMBOLIC),
        ("2\\pi", answers.SYMBOLIC),
        ("5π", answers.SYMBOLIC),
        ("\\frac{a}{b}", answers.SYMBOLIC),
        ("E=mc^2", answers.SYMBOLIC),
        ("cannot be determined", answers.UNANSWERABLE),
        ("Cannot be determined from the given information.", answers.UNANSWERABLE),
        ("can't tell", answers.UNANSWERABLE),
        ("N/A", answers.UNANSWERABLE),
        ("unanswerable", answers.UNANSWERABLE),
        ("unknown", answers.UNANSWERABLE),
        ("Not enough information", answers.UNANSWERABLE),
        ("I don't know", answers.UNANSWERABLE),
        ("It is not visible", answers.UNANSWERABLE),
        ("", answers.EMPTY),
        ("   ", answers.EMPTY),
        ("!!!", answers.EMPTY),
        ("one two three four five six seven eight nine ten eleven twelve thirteen", answers.TOO_LONG),
    ],
)
def test_an_answer_that_cannot_be_compared_is_dropped_with_its_reason(answer: str, reason: str) -> None:
    found = canonical(answer)
    assert (found.kind, found.value, found.reason) == ("none", "", reason)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), ("B.", "B"), ("(B)", "B"), ("B. dog", "B"), ("(b) Dog", "B"), ("dog", "B"),
        ("Dog.", "B"), ("Option B", "B"), ("The answer is B", "B"), ("Answer: dog", "B"),
        ("Cannot be determined", "C"), ("c", "C"),
    ],
)  # fmt: skip
def test_an_option_becomes_its_letter(answer: str, letter: str) -> None:
    found = canonical(answer, CHOICES)
    assert (found.kind, found.value) == ("multiple_choice", letter)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("D", answers.NOT_AN_OPTION),
        ("horse", answers.NOT_AN_OPTION),
        ("B. cat", answers.OPTION_DISAGREES),
        ("A and B", answers.SEVERAL_OPTIONS),
        ("A, C", answers.SEVERAL_OPTIONS),
    ],
)
def test_an_answer_that_is_no_single_option_is_dropped(answer: str, reason: str) -> None:
    assert canonical(answer, CHOICES).reason == reason and canonical(answer, CHOICES).kind == "none"


def test_a_number_finds_its_option_in_another_spelling_and_its_sign_counts() -> None:
    assert canonical("5", "How long? A. 5 cm B. 6 cm").value == "A"
    assert canonical("0.5", "How much? A. 1/2 B. 1/4").value == "A"
    assert canonical("-5", "Which? A. 5 B. -5").value == "B"


def test_two_options_of_the_same_text_settle_nothing() -> None:
    assert canonical("cat", "Which?\nA. cat\nB. Cat").reason == answers.NOT_AN_OPTION


def test_a_lone_letter_is_an_option_where_the_row_says_so() -> None:
    assert canonical("b", reward_type="multiple_choice").value == "B"
    assert canonical("B. dog", reward_type="multiple_choice").value == "B"
    assert canonical("B").kind == "string"


def test_percent_is_the_number_before_the_sign_or_a_fraction_of_one_by_a_setting() -> None:
    fraction = AnswerSettings(percent="fraction")
    assert canonical("45%").value == "45"
    assert canonical("45%", settings=fraction).value == "0.45"
    assert canonical("$222.14", settings=fraction).value == "222.14"


def test_a_question_for_a_number_reads_words_behind_it() -> None:
    assert canonical("3 red apples", "How many apples are there?").value == "3"
    assert canonical("three", "How many apples are there?").value == "3"
    assert canonical("12 Angry Men", "Which film is it?").kind == "string"


@pytest.mark.parametrize(
    ("answer", "kind", "value"),
    [
        ("['eleven', '11']", "numeric", "11"),
        ("['0.5', '1/2', '.5']", "numeric", "0.5"),
        ("['white']", "string", "white"),
        ("['White', 'white', 'white']", "string", "white"),
        ("['yes', 'Yes']", "string", "yes"),
        ("['rain', 'raining']", "list", "['rain', 'raining']"),
        ("['body butter', 'coconut body butter', 'body-butter']", "list", None),
        ("['cat', 'cat', 'a cat', 'dog']", "string", "cat"),
        ("['grey', 'greyish', 'grey', 'blue']", "list", "['grey', 'greyish']"),
        ("['unanswerable', 'cat', 'cat']", "string", "cat"),
    ],
)
def test_a_list_becomes_what_its_answers_have_in_common(answer: str, kind: str, value: str | None) -> None:
    found = canonical(answer)
    assert found.kind == kind and found.value == (answer if value is None else value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("['2', 'two', '3']", variants.INCONSISTENT),
        ("['yes', 'no']", variants.INCONSISTENT),
        ("['1', '1.0', '1.00', '1/1']", variants.INCONSISTENT),
        ("['chinese', 'asian']", variants.NO_HEAD),
        ("['unanswerable', 'unanswerable', 'cat']", answers.UNANSWERABLE),
        ("['', ' ']", answers.EMPTY),
        (str([f"word{n}xyz" + "abcdefgh"[n % 8] * 9 for n in range(201)]), variants.TOO_MANY),
    ],
)
def test_a_list_without_a_common_answer_is_dropped(answer: str, reason: str) -> None:
    found = canonical(answer)
    assert (found.kind, found.reason) == ("none", reason)


def test_the_head_must_hold_the_share_that_is_set() -> None:
    answer = "['cat', 'cat', 'dog', 'cow']"
    assert canonical(answer).kind == "none"
    assert canonical(answer, settings=AnswerSettings(min_head=0.5)).value == "cat"


@pytest.mark.parametrize(
    ("domain", "reward_type", "applies"),
    [
        ("chart_ocr", "numeric", True), ("stem", "string_match", True), ("custom", "list_string_match", True),
        ("spatial_action", "numeric", False), ("counting_grounding_search", "counting", False),
        ("visual_alignment", "string_match", False), ("knowledge_recognition", "clicking", False),
        ("stem", "number_list", False), ("stem", "llm_judge", False),
    ],
)  # fmt: skip
def test_places_actions_and_captions_are_left_alone(domain: str, reward_type: str, applies: bool) -> None:
    assert applies_to(domain, reward_type) == applies


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000, "1+" * 90 + "1!", "x " * 5000, "[" * 3000, "{" * 3000, "-" * 5000, "9" * 9000, "1||" * 60 + "!",
        "1 " * 90, "1/" * 99, "A. x" + " " * 20_000 + "y", "is " * 66, "a, " * 3000, "(A) " * 3000, "1-(" * 60 + "!",
    ],
)  # fmt: skip
def test_hostile_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    canonical(text, "A. x B. y " + text)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    "answer", ["$222.14", "['rain', 'raining']", "(B) cat", "North America.", "1/3", "45%", "1.2e-3"]
)
def test_a_canonical_answer_is_its_own_canonical_form(answer: str) -> None:
    once = canonical(answer)
    again = canonical(once.value, reward_type=answers.REWARD_TYPES[once.kind])
    assert (again.kind, again.value) == (once.kind, once.value)


def test_the_verifiers_accept_the_stored_answer_for_its_canonical_form() -> None:
    from vero_jax.rewards.multiple_choice import multiple_choice
    from vero_jax.rewards.numeric import numeric
    from vero_jax.rewards.string_match import list_string_match, string_match

    assert all(
        numeric(said, canonical(said).value, None, strict_reference=False, seconds=5.0) == 1.0
        for said in ("$222.14", "1,234", "3/4", "1.2e-3", "45%", "1/3")
    )
    assert string_match("north america", canonical("North America.").value) == 1.0
    assert multiple_choice("B", canonical("(B) cat").value) == 1.0
    assert list_string_match("raining", canonical("['rain', 'raining']").value) == 1.0
