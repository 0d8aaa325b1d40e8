"""Many judgements at a time: bounds, cache, missing scores, blending, and rollouts that wait for nobody else."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rewards.judge_endpoint import (
    Act,
    Endpoint,
    Handler,
    endpoint,
    refuses,
    reward_config,
    says,
    slow,
    text,
    wire,
)
from vero_jax.config import AlgorithmConfig, RewardConfig, RolloutConfig, SamplingConfig
from vero_jax.errors import UserError
from vero_jax.learning.advantages import add_advantages
from vero_jax.rewards import judge_pool
from vero_jax.rewards.judge_pool import Judgement, JudgePool, judged_score
from vero_jax.rewards.pool import RewardPool
from vero_jax.rollout import check_missing, rollout
from vero_jax.sampling.engine import GenerationStats
from vero_jax.types import Example, Group, Prompt, Response, Score

__all__ = ["endpoint"]  # a fixture
RULE = Score(0.2, 0.0, 1.0)
MISSING = "judge: "


def group(*answers: str, kind: str = "llm_judge", name: str = "q", truth: str = "A cat.") -> Group:
    example = Example(
        name, "visual_alignment", "s", ({"role": "user", "content": f"<image>{name}?"},), (), kind, truth, {}
    )
    empty = np.zeros((0,), np.int32)
    prompt = Prompt(
        example, empty, np.zeros((0, 3), np.int32), empty, np.zeros((0, 1536), np.uint8), np.zeros((0, 3), np.int32)
    )
    responses = tuple(
        Response(np.zeros(5, np.int32), np.zeros(5, np.float32), "stop", f"<think>t</think><answer>{answer}</answer>")
        for answer in answers
    )
    return Group(prompt, responses, (RULE,) * len(answers))


def judged(judge: JudgePool, *groups: Group) -> list[list[Score]]:
    futures = [judge.submit(one) for one in groups]
    return [list(judge.blended(one, waiting)) for one, waiting in zip(groups, futures, strict=True)]


def pool(config: RewardConfig, cache: Path | str = "nowhere", said: list[str] | None = None) -> JudgePool:
    return JudgePool(config, cache_dir=cache, say=(said if said is not None else []).append)


def by_answer(handler: Handler, body: dict[str, Any]) -> None:
    """Scores an answer by the last number in it."""
    content = body["messages"][0]["content"]
    says(float(content.partition("number ")[2].split()[0]))(handler, body)


def answers(count: int) -> list[str]:
    return [f"number {number % 10 + 1} of {number}" for number in range(count)]


def test_scores_come_back_in_order_and_blended(endpoint: Endpoint) -> None:
    endpoint.otherwise = by_answer
    groups = [group(*answers(7), name=f"q{index}") for index in range(5)]
    said: list[str] = []
    with pool(reward_config(endpoint), said=said) as judge:
        found = judged(judge, *groups)
        metrics = judge.metrics()
        assert judge.metrics() == {}
    for scores in found:
        assert [score.accuracy for score in scores] == pytest.approx([number / 9 for number in range(7)])
        assert [score.total for score in scores] == pytest.approx([0.8 * number / 9 + 0.2 for number in range(7)])
    assert metrics["judge/judged"] == metrics["judge/requests"] == 35 and metrics["judge/missing"] == 0
    assert metrics["judge/mean_score"] == pytest.approx(4.0)
    assert 0 < metrics["judge/latency_p50_s"] <= metrics["judge/latency_p95_s"]
    assert len(said) == 1 and "tiny-judge" in said[0] and "first score 9" in said[0]


def test_the_judge_sees_conversation_answer_and_truth(endpoint: Endpoint) -> None:
    with pool(reward_config(endpoint)) as judge:
        judged(judge, group("A dog.", name="What"))
    content = endpoint.bodies[0]["messages"][0]["content"]
    assert "User: [image]What?" in content and "\nA dog.\n" in content and "\nA cat.\n" in content
    assert "<think>" not in content


def test_types_without_a_judge_are_left_alone(endpoint: Endpoint) -> None:
    config = dataclasses.replace(reward_config(endpoint), custom_types=("llm_judge=mine.py:f",))
    with pool(config) as judge:
        for kind in ("string_match", "instruction_following", "llm_judge"):
            one = group("x", kind=kind)
            assert judge.submit(one) == [] and judge.blended(one, []) == one.scores
        assert judge.wants("instruction_following_llm_judge")
        judge.check()
    assert endpoint.bodies == []


@pytest.mark.parametrize("limit", [1, 5])
def test_never_more_requests_at_a_time_than_allowed(endpoint: Endpoint, limit: int) -> None:
    endpoint.otherwise = slow(0.05, says(7))
    with pool(reward_config(endpoint, concurrency=limit)) as judge:
        judged(judge, group(*answers(20)))
    assert endpoint.most_busy == limit and len(endpoint.bodies) == 20


@pytest.mark.parametrize(
    ("acts", "reason"),
    [
        ([refuses(500)] * 4, "HTTP 500"),
        ([refuses(429)] * 4, "HTTP 429"),
        ([refuses(401)], "HTTP 401"),
        ([refuses(400, "maximum context length is 5")], "context length"),
        ([wire(b"")] * 4, "connection failed"),
        ([wire(b"rubbish\r\n\r\n")] * 4, "connection failed"),
        ([lambda handler, _: handler.answer(200, b"[]")] * 4, "malformed response"),
        ([slow(0.8, says(7))] * 3, "timeout"),
        ([says("NaN")] * 2, "unreadable reply"),
        ([text('{"SCORE": Infinity}')] * 2, "unreadable reply"),
        ([text("I would rather not say.")] * 2, "unreadable reply"),
        ([text("<think>it deserves 9, no, 8")] * 2, "empty reply"),
        ([text(None, reasoning_content="SCORE: 9")] * 2, "empty reply"),
    ],
)
def test_a_judgement_that_cannot_be_had_is_missing_with_its_reason(
    endpoint: Endpoint, acts: list[Act], reason: str
) -> None:
    with pool(reward_config(endpoint, concurrency=1, timeout_s=0.4 if reason == "timeout" else 5.0)) as judge:
        endpoint.script = [says(10), *acts]
        [scores] = judged(judge, group("a", "b", "c"))
        metrics = judge.metrics()
        judge.check()  # one of three is nothing yet
    assert [score.missing for score in scores] == [None, MISSING + reason, None]
    assert math.isnan(scores[1].total) and math.isnan(scores[1].accuracy)
    assert [scores[0].accuracy, scores[2].accuracy] == pytest.approx([1.0, 6 / 9])
    assert metrics["judge/missing"] == 1.0
    assert metrics["judge/missing/" + reason.lower().replace(" ", "_")] == 1.0
    assert metrics["judge/requests"] == 2 + len(acts)
    retried = len(acts) - 1 if reason not in ("unreadable reply", "empty reply") else 0
    assert metrics["judge/retries"] == retried


def test_an_unreadable_reply_is_asked_for_once_more_with_another_seed(endpoint: Endpoint) -> None:
    endpoint.script = [text("no idea"), says(4)]
    with pool(reward_config(endpoint)) as judge:
        [[score]] = judged(judge, group("a"))
    assert score.accuracy == pytest.approx(3 / 9)
    first, second = endpoint.bodies
    assert first["seed"] != second["seed"] and first["messages"] == second["messages"]
    assert all(0 <= request["seed"] < 2**31 for request in endpoint.bodies)


def test_seeds_depend_on_the_content_alone(endpoint: Endpoint) -> None:
    for _ in range(2):
        with pool(reward_config(endpoint, concurrency=1)) as judge:
            judged(judge, group("a", "b"))
    seeds = [request["seed"] for request in endpoint.bodies]
    assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]


def test_what_was_judged_before_is_not_asked_again(endpoint: Endpoint, tmp_path: Path) -> None:
    config = reward_config(endpoint, cache=True)
    endpoint.script = [says(4), says(5)]
    with pool(config, tmp_path) as judge:
        first = judged(judge, group("a"))
        again = judged(judge, group("a"))
        assert judge.metrics()["judge/cache_hits"] == 1
    with pool(config, tmp_path) as judge:
        later = judged(judge, group("a", name="q"))
        metrics = judge.metrics()
    assert first == again == later and len(endpoint.bodies) == 1
    assert metrics["judge/requests"] == 0 and metrics["judge/cache_hits"] == 1 and metrics["judge/mean_score"] == 4
    assert (tmp_path / "judge").is_dir()
    with pool(reward_config(endpoint, cache=True, temperature=0.1), tmp_path) as judge:
        judged(judge, group("a"), group("b"), group("a", truth="A dog."), group("a", name="r"))
    assert len(endpoint.bodies) == 5


def test_equal_responses_of_a_step_share_one_request(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.otherwise = slow(0.1, says(6))
    with pool(reward_config(endpoint, cache=True), tmp_path) as judge:
        [scores] = judged(judge, group("same", "same", "same", "other"))
        metrics = judge.metrics()
    assert len(endpoint.bodies) == 2
    assert {score.accuracy for score in scores} == {5 / 9} and metrics["judge/cache_hits"] == 2


def test_without_the_cache_every_response_has_a_judgement_of_its_own(endpoint: Endpoint, tmp_path: Path) -> None:
    with pool(reward_config(endpoint, cache=False), tmp_path) as judge:
        judged(judge, group("same", "same"))
    assert len(endpoint.bodies) == 2 and list(tmp_path.iterdir()) == []


def test_failures_are_not_kept(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.script = [refuses(401), says(3)]
    with pool(reward_config(endpoint, cache=True), tmp_path) as judge:
        [[score]] = judged(judge, group("a"))
        assert score.missing == "judge: HTTP 401"
        [[score]] = judged(judge, group("a"))
        assert score.accuracy == pytest.approx(2 / 9)


def test_the_key_is_written_nowhere(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    said: list[str] = []
    endpoint.script = [refuses(500, "sk-very-secret")] * 4
    with pool(reward_config(endpoint, cache=True, api_key_env="JUDGE_KEY"), tmp_path, said) as judge:
        scores = judged(judge, group("a"), group("b"))
    assert all(header["Authorization"] == "Bearer sk-very-secret" for header in endpoint.headers)
    assert "sk-very-secret" not in repr(scores) + repr(said)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and not any(b"sk-very-secret" in file.read_bytes() for file in files)


def test_a_judge_that_fails_too_often_stops_the_run(endpoint: Endpoint) -> None:
    endpoint.otherwise = refuses(403, "quota used up")
    with pool(reward_config(endpoint)) as judge:
        for turn in range(4):
            judge.check()
            judged(judge, group(*answers(4), name=f"q{turn}"))
        with pytest.raises(UserError, match=r"16 of the latest 16 .*max_missing_share=0\.5; mostly: HTTP 403 \(quota"):
            judge.check()


def test_a_first_reply_without_a_score_is_said(endpoint: Endpoint) -> None:
    endpoint.first = text("What a nice cat!")
    said: list[str] = []
    with pool(reward_config(endpoint), said=said):
        pass
    assert "no score in its first reply: 'What a nice cat!'" in said[0]


def test_a_server_that_cannot_be_used_leaves_nothing_behind(endpoint: Endpoint) -> None:
    endpoint.first = refuses(401)
    with pytest.raises(UserError, match="refuses access"):
        pool(reward_config(endpoint))
    assert not [thread for thread in threading.enumerate() if thread.name == "judge-pool"]


def test_closing_does_not_wait_for_the_judge(endpoint: Endpoint) -> None:
    endpoint.otherwise = slow(30.0, says(7))
    start = time.monotonic()
    with pool(reward_config(endpoint)) as judge:
        futures = judge.submit(group("a", "b"))
        time.sleep(0.2)
    judge.close()
    assert time.monotonic() - start < 20
    with pytest.raises(concurrent.futures.CancelledError):
        futures[0].result(1.0)


@pytest.mark.parametrize(("name", "accuracy"), [("0_to_1", 6 / 9), ("minus1_to_1", 1.5 / 4.5), ("raw", 7.0)])
def test_scales_and_blends(name: str, accuracy: float) -> None:
    config = RewardConfig(judge_server=dataclasses.replace(RewardConfig().judge_server, scale=name))  # type: ignore[arg-type]
    rule = Score(0.8 * 0.5 + 0.2 - 0.3, 0.5, 1.0, -0.3, extras={"x": 1.0}, latency_s=0.5)
    found = judged_score(rule, "instruction_following_llm_judge", Judgement(7.0), config)
    assert found.accuracy == pytest.approx(0.25 + accuracy / 2)
    assert found.total == pytest.approx(0.8 * found.accuracy + 0.2 - 0.3)
    assert (found.overlong, found.format, found.extras, found.latency_s) == (-0.3, 1.0, {"x": 1.0}, 0.5)
    assert (
        judged_score(dataclasses.replace(rule, missing="timeout"), "llm_judge", Judgement(7.0), config).missing
        == "timeout"
    )


def test_gating_is_a_setting() -> None:
    rule = Score(0.0, 0.0, 0.0)
    server = RewardConfig().judge_server
    open_, gated = (RewardConfig(judge_server=dataclasses.replace(server, gate_format=gate)) for gate in (False, True))
    assert judged_score(rule, "llm_judge", Judgement(10.0), open_).total == pytest.approx(0.8)
    assert judged_score(rule, "llm_judge", Judgement(10.0), gated).total == 0.0


# Together with sampling and the rules.


class FakeEngine:
    """Gives prepared groups one by one, as if it had decoded them."""

    def __init__(self, groups: Sequence[Group], seconds: float = 0.0) -> None:
        self.groups, self.seconds = groups, seconds
        self.stats = GenerationStats()
        self.rollout = RolloutConfig()
        self.ended = 0.0

    def generate(self, *_: Any, **__: Any) -> Iterator[tuple[int, Group]]:
        for index in reversed(range(len(self.groups))):
            time.sleep(self.seconds)
            yield index, dataclasses.replace(self.groups[index], scores=())
        self.ended = time.perf_counter()


RULES = json.dumps({"instructions": [{"class": "CommaChecker", "args": {}}]})


def test_a_rollout_masks_what_was_not_judged_out_of_its_groups_statistics(endpoint: Endpoint) -> None:
    def act(handler: Handler, body: dict[str, Any]) -> None:
        refuses(400, "context length")(handler, body) if "too long" in str(body) else by_answer(handler, body)

    endpoint.otherwise = act
    endpoint.sleeping = True
    groups = [
        group("number 10 x", "too long", "number 1 x", name="judged"),
        group("number 5 x", "oh, number 5 x", kind="instruction_following_llm_judge", truth=RULES, name="both"),
        group("\\boxed{A cat}", "\\boxed{A dog}", kind="string_match", name="rules"),
    ]
    config = dataclasses.replace(reward_config(endpoint), workers=1)
    with pool(config) as judge, RewardPool(config, max_response_length=5000) as rewards:
        rolled = rollout(
            FakeEngine(groups),  # type: ignore[arg-type]  # a stand-in
            rewards,
            None,
            [one.prompt for one in groups],
            n=2,
            sampling=SamplingConfig(),
            seed=0,
            step=1,
            max_new_tokens=8,
            judge=judge,
        )
        assert endpoint.sleeping is True  # put to sleep again
        assert judge.metrics()["judge/judged"] == 5
        check_missing(rolled, 0.2, 1, judge)
        with pytest.raises(UserError, match="the most frequent reason: judge: context length"):
            check_missing(rolled, 0.1, 1, judge)
    assert rolled.missing_share == pytest.approx(1 / 7)
    first, both, rules = rolled.groups
    assert [score.missing for score in first.scores] == [None, "judge: context length", None]
    assert [both.scores[0].accuracy, both.scores[1].accuracy] == pytest.approx([0.5 + 0.5 * 4 / 9, 0.5 * 4 / 9])
    assert [score.accuracy for score in rules.scores] == [1.0, 0.0]
    with_advantages = add_advantages(rolled.groups, AlgorithmConfig())
    assert with_advantages[0].advantages is not None
    # Of the two that were judged: (s - mean) / std, as if the third had never been drawn.
    np.testing.assert_allclose(with_advantages[0].advantages, [0.5**0.5, 0.0, -(0.5**0.5)], atol=1e-4)


def test_judging_goes_on_while_the_device_decodes(endpoint: Endpoint) -> None:
    endpoint.otherwise = slow(0.2, says(7))
    groups = [group("a", "b", name=f"q{index}") for index in range(4)]
    config = dataclasses.replace(reward_config(endpoint, concurrency=2), workers=1)
    engine = FakeEngine(groups, seconds=0.2)
    with pool(config) as judge, RewardPool(config, max_response_length=5000) as rewards:
        rewards.wait_ready()
        start = time.perf_counter()
        rolled = rollout(
            engine,  # type: ignore[arg-type]  # a stand-in
            rewards,
            None,
            [one.prompt for one in groups],
            n=2,
            sampling=SamplingConfig(),
            seed=0,
            step=1,
            max_new_tokens=8,
            judge=judge,
        )
    # Both have 0.8 s to do. Neither does decoding wait for the judge, nor the judge for the end of decoding.
    assert engine.ended - start < 1.4
    assert rolled.reward_s < 0.6
    assert all(score.missing is None for one in rolled.groups for score in one.scores)


def test_the_judge_does_not_import_jax() -> None:
    code = "import sys, vero_jax.rewards.judge_pool; sys.exit('jax' in sys.modules)"
    root = Path(judge_pool.__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120).returncode == 0
