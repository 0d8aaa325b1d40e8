"""The instruction checks beyond the golden cases: malformed truths, unusable arguments, every class on odd text."""

from __future__ import annotations

import json

import pytest

from vero_jax.rewards.instructions.checker import CHECKS, follows, instruction_following


def _truth(*items: dict[str, object]) -> str:
    return json.dumps({"instructions": list(items)})


def test_there_are_76_classes() -> None:
    assert len(CHECKS) == 76


def test_the_score_is_the_share_of_instructions_followed() -> None:
    truth = _truth({"class": "CommaChecker"}, {"class": "PunctuationDotChecker"}, {"class": "NoSuchClass"})
    assert instruction_following("No comma here.", truth) == pytest.approx(1 / 3)


@pytest.mark.parametrize("truth", ["", "not json", "{}", "[]", '{"instructions": null}', None, 3, {"instructions": []}])
def test_a_truth_without_instructions_earns_nothing(truth: object) -> None:
    assert instruction_following("text", truth) == 0.0


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_no_check_ever_raises(name: str) -> None:
    for text in ("a", "\n\n-\n*", "<<>>", "\ufeff...", "-5% [x] 'y'"):
        for arguments in ({}, {"keyword": 3, "N": "x", "relation": "about", "keywords": [None]}, []):
            assert follows(text, {"class": name, "args": arguments}) in (True, False)


def test_blank_text_follows_nothing() -> None:
    assert not follows("  ", {"class": "CommaChecker"})


def test_chinese_can_be_asked_for() -> None:
    text = "一条宽阔的河流蜿蜒穿过山谷，农民们在温暖的午后阳光下收割小麦。"
    item = {"class": "ResponseLanguageChecker", "args": {"language": "zh"}}
    assert follows(text, item)
    assert not follows(text, item, strict_reference=True)
