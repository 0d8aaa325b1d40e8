"""Judge replies, scaling, blending, the prompt, and whole-manager cases without the call."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tests.conftest import golden_dir
from tests.rewards.golden_rewards import MUST_MATCH, TOLERANCE, cases
from vero_jax.config import RewardConfig
from vero_jax.rewards.judge import blend, conversation_text, judge_prompt, parse_reply, scale
from vero_jax.rewards.router import JUDGED_TYPES, canonical_type, score_response
from vero_jax.rewards.settings import RewardSettings, RuleScore
from vero_jax.rewards.total import total_score

TEMPLATE = "[HIST]\n{input}\n[/HIST]\n[ANS]\n{output}\n[/ANS]\n[REF]\n{label}\n[/REF]"


def _same(found: float | None, wanted: float | str | None) -> bool:
    if found is None or wanted is None:
        return found is None and wanted is None
    return found == float(wanted) or (math.isnan(found) and math.isnan(float(wanted)))


@pytest.mark.golden_rewards
@pytest.mark.parametrize("strict", [True, False])
def test_replies_are_read_and_scaled_as_the_reference_does(strict: bool) -> None:
    for case in cases("judge"):
        if not strict and case["quirk"] not in MUST_MATCH:
            continue
        raw = parse_reply(case["judge_text"], strict_reference=strict)
        assert _same(raw, case["expected"]["raw"]), case["id"]
        assert scale(raw, case["score_scale"]) == pytest.approx(case["expected"]["scaled"], abs=TOLERANCE), case["id"]


@pytest.mark.parametrize("reply", ['{"SCORE": NaN}', '{"SCORE": Infinity}', '{"SCORE": "inf"}', '{"SCORE": 1e999}'])
def test_a_score_that_is_not_finite_is_no_score(reply: str) -> None:
    assert parse_reply(reply) is None
    assert scale(None) == 0.0


def _managed(case: dict[str, Any]) -> tuple[RuleScore, float, str | None]:
    """Rule, judge and overlong term of a whole-manager case: (score, reward, judge prompt)."""
    config, overlong = case["config"], case["config"]["overlong"] or {"enable": False}
    settings = RewardSettings(format_weight=config["format_score"], strict_reference=True)
    reward = RewardConfig(
        format_weight=config["format_score"],
        overlong_buffer=overlong["len"] if overlong["enable"] else 0,
        overlong_factor=overlong.get("penalty_factor", 1.0),
        overlong_max_length=config["max_resp_len"],
        overlong_floor=False,
    )
    response = case["response"].removesuffix("<|im_end|>")
    rule = score_response(response, case["ground_truth"], case["reward_type"], case["extra_info"], settings=settings)
    prompt = None
    name = canonical_type((case["extra_info"] or {}).get("reward_type"), settings)
    if name in JUDGED_TYPES:
        reply = (case["judge"] or {}).get("text")
        judged = scale(parse_reply(reply, strict_reference=True) if reply is not None else None)
        rule = blend(rule, name, judged, format_weight=config["format_score"], instruction_weight=config["if_weight"])
        conversation = conversation_text(case["messages"], case["prompt_text"])
        prompt = judge_prompt(TEMPLATE, conversation, response, case["ground_truth"])
    return rule, total_score(rule, case["response_len"], reward, max_response_length=1).total, prompt


@pytest.mark.golden_rewards
def test_the_manager_agrees_with_the_reference() -> None:
    for case in cases("manager"):
        rule, reward, prompt = _managed(case)
        wanted = case["expected"]
        assert reward == pytest.approx(wanted["reward"], abs=TOLERANCE), case["id"]
        for name in ("score", "accuracy", "format"):
            assert getattr(rule, name) == pytest.approx(wanted[name], abs=TOLERANCE), (case["id"], name)
        if case["quirk"] != "Q-TEMPLATE" and prompt is not None:
            assert prompt == wanted["judge_prompt"], case["id"]


def test_the_gold_answer_does_not_leak_into_the_prompt() -> None:
    prompt = judge_prompt(TEMPLATE, "hello {output}", "<answer>{label}</answer>", "secret")
    assert prompt.count("secret") == 1 and "hello {output}" in prompt


def test_gating_takes_the_judges_part_from_an_answer_without_format() -> None:
    rule = RuleScore(0.0, 0.0, 0.0)
    assert blend(rule, "llm_judge", 1.0, format_weight=0.2).score == pytest.approx(0.8)
    assert blend(rule, "llm_judge", 1.0, format_weight=0.2, gate_format=True).score == 0.0


@pytest.mark.golden_rl
@pytest.mark.parametrize("family", ["overlong", "judge_mix"])
def test_rewards_as_the_trainer_sees_them(family: str) -> None:
    files = sorted(golden_dir("rl").glob(f"{family}_*.npz"))
    if not files:
        pytest.skip(f"no golden cases of family {family}")
    for file in files:
        data = np.load(file, allow_pickle=False)
        hyper = json.loads(str(data["hp_json"]))
        buffer = hyper["overlong_buffer"]
        config = RewardConfig(
            format_weight=hyper["format_score"],
            overlong_buffer=buffer["len"] if buffer["enable"] else 0,
            overlong_factor=buffer["penalty_factor"],
            overlong_max_length=hyper["max_resp_len"],
            overlong_floor=False,
        )
        weight = config.format_weight
        for row, name in enumerate(data["in_reward_type"].tolist()):
            form = float(data["in_format"][row])
            accuracy = float(data["in_accuracy_raw"][row]) if form else 0.0
            rule = RuleScore((1 - weight) * accuracy + weight * form, accuracy, form)
            if name in JUDGED_TYPES:
                judged = scale(float(data["in_judge_raw_score"][row]))
                rule = blend(rule, name, judged, format_weight=weight)
            found = total_score(rule, int(data["in_valid_response_length"][row]), config, max_response_length=1)
            assert found.total == pytest.approx(float(data["out_reward"][row]), abs=TOLERANCE), (file.name, row)
            assert found.accuracy == pytest.approx(float(data["out_logged_accuracy"][row]), abs=TOLERANCE)


@pytest.mark.golden_rl
def test_judge_replies_of_the_trainer_cases() -> None:
    files = sorted(golden_dir("rl").glob("judge_parse_*.npz"))
    if not files:
        pytest.skip("no golden cases of family judge_parse")
    for file in files:
        data = np.load(file, allow_pickle=False)
        raws = [parse_reply(text) for text in data["in_texts"].tolist()]
        np.testing.assert_allclose([np.nan if raw is None else raw for raw in raws], data["out_raw"])
        np.testing.assert_allclose([scale(raw) for raw in raws], data["out_scaled"], atol=TOLERANCE)
