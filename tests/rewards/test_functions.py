"""The user's own rewards: verl's and TRL's signatures, sync and async, weights, missing scores, clear mistakes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vero_jax.config import RewardConfig
from vero_jax.config_loader import load_config
from vero_jax.errors import UserError
from vero_jax.rewards.functions import NoScore, UnusableResult, make_scorer
from vero_jax.rewards.pool import RewardPool
from vero_jax.rewards.settings import RewardItem, RewardSettings, RuleScore, weighted_targets

FUNCTIONS = """
import asyncio

def verl(data_source, solution_str, ground_truth, extra_info=None):
    assert isinstance(extra_info, dict)
    return {"score": float(ground_truth in solution_str), "length": len(solution_str), "ok": True, "note": data_source}

def verl_with_more(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return 0.25 if not kwargs else 0.0

def plain(solution_str, extra_info):
    return extra_info.get("value")

def optional(solution_str, threshold=3):
    return threshold

async def asynchronous(data_source, solution_str, ground_truth, extra_info=None):
    await asyncio.sleep(0)
    return 0.5

def returns_a_coroutine(solution_str):
    return asynchronous("", solution_str, "")

async def never_awaited(solution_str):
    return asynchronous("", solution_str, "")

LOOPS = set()
async def same_loop(solution_str):
    LOOPS.add(id(asyncio.get_running_loop()))
    return float(len(LOOPS))

def trl(completions, ground_truth, **kwargs):
    assert len(completions) == 1 and kwargs["data_source"] == ["here"] and kwargs["also"] == ["this"]
    return [float(truth in text) for text, truth in zip(completions, ground_truth)]

def trl_messages(prompts, completions, solution):
    return [float(truth in completion[0]["content"]) for completion, truth in zip(completions, solution)]

async def trl_async(completions, **kwargs):
    return [None for _ in completions]

def trl_column(completions, no_such_column):
    return [1.0]

def trl_two(completions):
    return [1.0, 2.0]

def vero(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 0.9, "accuracy": 1.0, "format": 0.5}

def penalty(solution_str):
    return -len(solution_str)

def raises(solution_str):
    raise KeyError("mine")

class Callable:
    def __call__(self, solution_str, ground_truth):
        return 0.125

instance = Callable()

def wrong(prompt, answer): return 1.0
def no_text(ground_truth): return 1.0
def positional(solution_str, /): return 1.0
def generator(solution_str): yield 1.0
async def async_generator(solution_str): yield 1.0
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "my_rewards.py"
    file.write_text(FUNCTIONS)
    return file


def item(text: str = "<think>a</think><answer>\\boxed{5}</answer>", truth: Any = "5", **extra: Any) -> RewardItem:
    return RewardItem(text, 7, truth, "numeric", extra or {"also": "this"}, data_source="here")


def scored(file: Path, *names: str, sample: RewardItem | None = None) -> RuleScore:
    entries = [name if name.startswith("builtin") else f"{file}:{name}" for name in names]
    return make_scorer(RewardSettings(functions=weighted_targets(entries)))(sample or item())


def test_verls_signature_gets_the_row_and_its_dict_is_the_score(file: Path) -> None:
    score = scored(file, "verl")
    assert (score.score, score.accuracy, score.format) == (1.0, 1.0, 1.0)
    assert score.extras == {"length": len(item().response), "ok": 1.0}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("verl_with_more", 0.25),
        ("optional", 3.0),
        ("asynchronous", 0.5),
        ("returns_a_coroutine", 0.5),
        ("trl", 1.0),
        ("trl_messages", 1.0),
        ("instance", 0.125),
        ("builtin", 1.0),
    ],
)
def test_every_accepted_kind_of_function_gives_its_score(file: Path, name: str, wanted: float) -> None:
    assert scored(file, name).score == wanted


def test_functions_of_messages_are_told_from_functions_of_texts_once(file: Path) -> None:
    scorer = make_scorer(RewardSettings(functions={f"{file}:trl_messages": 1.0}))
    scores = [scorer(item(text, "5")).score for text in ("", "5", "no", "15")]
    assert scores == [0.0, 1.0, 0.0, 1.0]


def test_async_calls_share_one_event_loop(file: Path) -> None:
    scorer = make_scorer(RewardSettings(functions={f"{file}:same_loop": 1.0}))
    assert [scorer(item()).score for _ in range(3)] == [1.0, 1.0, 1.0]


def test_the_score_is_the_weighted_sum_and_the_parts_are_kept(file: Path) -> None:
    score = scored(file, "verl=0.5", "builtin=0.25", "asynchronous")
    assert score.score == pytest.approx(0.5 * 1.0 + 0.25 * 1.0 + 0.5)
    assert (score.accuracy, score.format) == (1.0, 1.0)
    assert score.extras["verl/score"] == 1.0 and score.extras["asynchronous/score"] == 0.5
    assert score.extras["verl/length"] == len(item().response)


def test_accuracy_and_format_come_from_the_first_function_that_states_them(file: Path) -> None:
    score = scored(file, "penalty=0.001", "vero")
    assert (score.accuracy, score.format) == (1.0, 0.5)
    assert score.score == pytest.approx(0.9 - 0.001 * len(item().response))


def test_none_is_missing_and_leaves_the_other_functions_score(file: Path) -> None:
    with pytest.raises(NoScore, match="plain returned None"):
        scored(file, "plain")
    with pytest.raises(NoScore):
        scored(file, "trl_async")
    assert scored(file, "plain=9", "asynchronous").score == 0.5


@pytest.mark.parametrize(
    "value", [0.5, 1, True, np.float32(0.5), np.array(0.5), {"score": 0.5}, {"score": np.int64(1)}]
)
def test_every_kind_of_number_is_a_score(file: Path, value: Any) -> None:
    wanted = float(value["score"] if isinstance(value, dict) else value)
    assert scored(file, "plain", sample=item(value=value)).score == wanted


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.5", "is no number"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        ({"reward": 1.0}, 'without "score"'),
        ({"score": "high"}, "is no number"),
        ([1.0], "is no number"),
        (1j, "is no number"),
    ],
)
def test_what_is_no_score_is_one_clear_sentence(file: Path, value: Any, message: str) -> None:
    with pytest.raises(UnusableResult, match=f"plain returned.*{message}"):
        scored(file, "plain", sample=item(value=value))


def test_other_misuses_at_run_time_are_named(file: Path) -> None:
    with pytest.raises(UnusableResult, match="coroutine that nobody awaits"):
        scored(file, "never_awaited")
    with pytest.raises(UnusableResult, match="returned 2 scores for 1 completion"):
        scored(file, "trl_two")
    with pytest.raises(KeyError, match="needs the column 'no_such_column'"):
        scored(file, "trl_column")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", r"wrong\(prompt, answer\): it must take data_source, solution_str"),
        ("no_text", "it must take data_source, solution_str"),
        ("positional", "by name"),
        ("generator", "return them instead"),
        ("async_generator", "return them instead"),
        ("Callable", "is a class"),
        ("number", "has no function 'number'; it has verl"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_function_that_can_not_be_called_is_refused_before_the_run(file: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        scored(file, name)
    assert "reward.functions" in str(error.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["no_such_file.py:f"], "is no file"),
        (["nothing"], "write it as"),
        (["my_rewards.py:f=much"], "with a number as the weight"),
        (["my_rewards.py:f=nan"], "with a number as the weight"),
        (["=2"], "write it as"),
        (["builtin", "builtin=2"], "twice"),
        (["builtin=0"], "weights of 0"),
    ],
)
def test_mistakes_in_the_setting_are_found_when_the_config_is_read(entries: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config([f"reward.functions=[{','.join(entries)}]"])


def test_a_single_function_needs_no_brackets_on_the_command_line(file: Path) -> None:
    assert load_config([f"reward.functions={file}:verl=0.5"]).reward.functions == (f"{file}:verl=0.5",)


def test_a_judge_and_own_functions_are_not_mixed() -> None:
    with pytest.raises(UserError, match="do not go together"):
        load_config(["reward.functions=builtin", "reward.judge=openai"])


def test_the_official_scorer_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the signature and the result of Vero's own scorer, installed as a package."""
    package = tmp_path / "vero_official" / "rewards"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "scorer.py").write_text(
        "def compute_score_from_data_source(data_source, solution_str, ground_truth, extra_info=None, format_score=0.2,"
        " **kwargs):\n"
        "    assert extra_info['reward_type'] == 'numeric' and extra_info['normalize_bbox_to_1000'] is True\n"
        "    accuracy = float(ground_truth in solution_str)\n"
        "    return {'score': 0.8 * accuracy + 0.2, 'accuracy': accuracy, 'format': 1.0}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    target = "vero_official.rewards.scorer:compute_score_from_data_source"
    settings = RewardSettings(functions={target: 1.0}, coordinates="normalized_1000")
    score = make_scorer(settings)(item())
    assert (score.score, score.accuracy, score.format, dict(score.extras)) == (1.0, 1.0, 1.0, {})
    assert make_scorer(settings)(item(truth="6")).score == pytest.approx(0.2)
    for name in [name for name in sys.modules if name.startswith("vero_official")]:
        del sys.modules[name]


def test_the_pool_runs_functions_and_adds_only_the_overlong_term(file: Path) -> None:
    config = RewardConfig(
        workers=1,
        functions=(f"{file}:verl=2", f"{file}:plain"),
        overlong_buffer=10,
        overlong_factor=1.0,
        timeout_s=20.0,
    )
    samples = [
        RewardItem("5", 5, "5", "numeric", {}, "here"),
        RewardItem("5", 15, "5", "numeric", {"value": 0.25}, "here"),
        RewardItem("5", 5, "5", "numeric", {"value": "text"}, "here"),
    ]
    with RewardPool(config, max_response_length=20) as pool:
        [(_, scores)] = pool.score_groups([("g", samples)])
    assert [score.total for score in scores[:2]] == [2.0, pytest.approx(2.25 - 0.5)]
    assert scores[0].extras == {"verl/score": 1.0, "verl/length": 1.0, "verl/ok": 1.0}
    assert scores[2].missing is not None and "plain returned str 'text', which is no number" in scores[2].missing
    assert all(0 < score.latency_s < 20 for score in scores)


def test_what_a_function_raises_makes_its_score_missing(file: Path) -> None:
    with RewardPool(
        RewardConfig(workers=1, functions=(f"{file}:raises",), timeout_s=20.0), max_response_length=9
    ) as pool:
        [(_, [score])] = pool.score_groups([(0, [item()])])
    assert score.missing == "KeyError: 'mine'"


def test_the_pool_refuses_a_wrong_function_with_one_sentence(file: Path) -> None:
    config = RewardConfig(workers=1, functions=(f"{file}:wrong",))
    with RewardPool(config, max_response_length=9) as pool, pytest.raises(UserError, match="it must take data_source"):
        pool.wait_ready()
