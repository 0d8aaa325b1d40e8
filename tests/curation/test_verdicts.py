"""Replies about questions: flags in any shape, and the majority of several."""

from __future__ import annotations

import json
import time

import pytest

from tests.curation.curation_rows import verdict
from vero_jax.curation.verdicts import EMPTY_REPLY, NO_VERDICT, Verdict, decide, flags_of, parse_verdict

CHART = flags_of("chart_ocr")
WHOLE = {name: name == "ambiguous" for name in CHART}
TEXT = json.dumps({"findings": "two series fit", **WHOLE})


def test_counting_asks_whether_things_can_be_seen_instead_of_how_exactly() -> None:
    assert set(CHART) ^ set(flags_of("counting_grounding_search")) == {"precision", "unreadable"}
    assert len(CHART) == 5


@pytest.mark.parametrize(
    "reply",
    [
        TEXT,
        f"```json\n{TEXT}\n```",
        f"Let me see.\n{TEXT}\nThat is all.",
        f"<think>{json.dumps(dict.fromkeys(CHART, True))} or not?</think>{TEXT}",
        f"A draft: {json.dumps(dict.fromkeys(CHART, True))}\nNo, rather: {TEXT}",
        json.dumps({"flags": WHOLE}),
        json.dumps({name: "yes" if flag else "no" for name, flag in WHOLE.items()}),
        json.dumps({name: int(flag) for name, flag in WHOLE.items()}),
        json.dumps({name.upper(): str(flag).lower() for name, flag in WHOLE.items()}),
        json.dumps({name: {"value": flag, "why": "so"} for name, flag in WHOLE.items()}),
        str(WHOLE),
        TEXT.replace("}", ",}"),
        "\n".join(f"{name}: {flag}" for name, flag in WHOLE.items()),
        "\n".join(f"- **{name}**: {'Yes' if flag else 'No'}, because" for name, flag in WHOLE.items()),
        "{ this is no object } " + TEXT,
        '{"findings": "a } in a text", ' + TEXT[1:],
    ],
)
def test_a_verdict_is_read_in_any_of_the_shapes_that_models_write(reply: str) -> None:
    assert parse_verdict(reply) == Verdict(WHOLE)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("", EMPTY_REPLY), ("   \n", EMPTY_REPLY), ("<think>ambiguous: true", EMPTY_REPLY),
        ("The answer is 5.", NO_VERDICT),
        ("{}", NO_VERDICT), ("[true, false]", NO_VERDICT), ('{"score": 5}', NO_VERDICT), ("{" * 20_000, NO_VERDICT),
        ('{"ambiguous": "perhaps"}', NO_VERDICT), ("[" * 50_000, NO_VERDICT), ("null", NO_VERDICT),
        ('{"a": ' * 3000 + "1" + "}" * 3000, NO_VERDICT), ("{x}" * 20_000, NO_VERDICT),
    ],
)  # fmt: skip
def test_a_reply_without_a_verdict_says_so(reply: str, problem: str) -> None:
    start = time.process_time()
    assert parse_verdict(reply) == Verdict({}, problem)
    assert time.process_time() - start < 2.0


def test_a_reply_that_was_cut_keeps_the_flags_that_it_has() -> None:
    found = parse_verdict('{"findings": "x", "irrelevant": false, "ambiguous": true, "langu')
    assert found.flags == {"irrelevant": False, "ambiguous": True}


def some(*raised: str, without: tuple[str, ...] = ()) -> Verdict:
    return Verdict({name: flag for name, flag in parse_verdict(verdict(*raised)).flags.items() if name not in without})


def test_one_raised_flag_drops_and_none_keeps() -> None:
    assert decide([some()], CHART).keep is True
    found = decide([some("precision", "ambiguous")], CHART)
    assert found.keep is False and set(found.reasons) == {"precision", "ambiguous"}


def test_a_flag_that_is_not_asked_for_or_exempt_does_not_count() -> None:
    assert decide([some("unreadable")], CHART).keep is True
    assert decide([some("precision")], CHART, {"precision"}).keep is True
    assert decide([some("precision", "ambiguous")], CHART, {"precision"}).reasons == ("ambiguous",)


def test_a_missing_flag_leaves_a_rollout_without_a_vote_unless_another_is_raised_or_it_is_exempt() -> None:
    assert decide([some(without=("precision",))], CHART).keep is None
    assert decide([some(without=("precision",))], CHART).reasons == ("missing flag: precision",)
    assert decide([some("ambiguous", without=("precision",))], CHART).keep is False
    assert decide([some(without=("precision",))], CHART, {"precision"}).keep is True


@pytest.mark.parametrize(
    ("drops", "keeps", "keep"), [(1, 2, True), (2, 1, False), (1, 1, False), (0, 3, True), (3, 0, False)]
)
def test_the_majority_of_the_rollouts_decides_and_a_tie_drops(drops: int, keeps: int, keep: bool) -> None:
    assert decide([some("ambiguous")] * drops + [some()] * keeps, CHART).keep is keep


def test_rollouts_that_cannot_be_read_have_no_vote() -> None:
    unread = Verdict({}, NO_VERDICT)
    assert decide([some("language"), some(), some(), unread, unread], CHART).keep is True
    assert decide([unread, unread], CHART) == decide([unread], CHART)
    assert decide([unread], CHART).keep is None and decide([unread], CHART).reasons == (NO_VERDICT,)


def test_the_most_frequent_flag_is_the_first_reason() -> None:
    found = decide([some("language"), some("ambiguous"), some("ambiguous")], CHART)
    assert found.reasons == ("ambiguous", "language")
