"""The worker pool: order, streams, deadlines, deaths, and that nothing is left behind."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vero_jax.config import RewardConfig
from vero_jax.errors import UserError
from vero_jax.rewards.items import reward_items
from vero_jax.rewards.pool import RewardPool
from vero_jax.rewards.settings import RewardItem
from vero_jax.types import Example, Prompt, Response

CUSTOM = """
import os, signal, sys, time

def act(response_text, ground_truth, extra_info):
    print("noise on standard output", response_text)
    assert "jax" not in sys.modules
    if response_text == "sleep":
        time.sleep(600)
    if response_text == "spin":
        while True:
            pass
    if response_text == "exit":
        os._exit(3)
    if response_text == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if response_text == "once" and not os.path.exists(ground_truth):
        open(ground_truth, "w").close()
        os._exit(1)
    if response_text == "raise":
        raise ValueError("my own mistake")
    if response_text == "pid":
        return os.getpid()
    return float(response_text) if response_text.isdigit() else 1.0
"""


def item(text: str, truth: str = "", reward_type: str = "custom", length: int = 10) -> RewardItem:
    return RewardItem(text, length, truth, reward_type, {})


@pytest.fixture
def custom(tmp_path: Path) -> str:
    file = tmp_path / "acts.py"
    file.write_text(CUSTOM)
    return f"{file}:act"


@pytest.fixture
def pool(custom: str) -> Iterator[RewardPool]:
    config = RewardConfig(workers=2, timeout_s=3.0, custom=custom)
    with RewardPool(config, max_response_length=100_000) as made:
        made.wait_ready()
        yield made


def test_groups_come_back_in_order_and_whole(pool: RewardPool) -> None:
    groups = [(f"group {index}", [item(str(index * 10 + member)) for member in range(5)]) for index in range(20)]
    found = list(pool.score_groups(iter(groups)))
    assert [key for key, _ in found] == [key for key, _ in groups]
    for index, (_, scores) in enumerate(found):
        assert [score.accuracy for score in scores] == [index * 10 + member for member in range(5)]


def test_submit_returns_at_once_and_collect_gives_what_is_done(pool: RewardPool) -> None:
    pool.submit("slow", [item("sleep"), item("7")])
    pool.submit("fast", [item("8")])
    pool.submit("none", [])
    found: dict[str, list[float]] = {}
    while len(found) < 3:
        for key, scores in pool.collect(timeout_s=1.0):
            found[key] = [score.accuracy for score in scores]
    assert list(found)[-1] == "slow" and found["fast"] == [8.0] and found["none"] == []
    assert math.isnan(found["slow"][0]) and found["slow"][1] == 7.0
    assert pool.collect() == []


def test_a_sample_past_its_deadline_is_missing_and_no_other(pool: RewardPool) -> None:
    texts = ["1", "sleep", "2", "spin", "3", "4"]
    [(_, scores)] = pool.score_groups([("g", [item(text) for text in texts])])
    assert [score.missing for score in scores] == [None, "timeout", None, "timeout", None, None]
    assert [score.accuracy for score in scores if score.missing is None] == [1.0, 2.0, 3.0, 4.0]


def test_a_worker_that_dies_twice_over_a_sample_loses_that_sample_only(pool: RewardPool) -> None:
    texts = ["1", "exit", "2", "kill", "3"]
    [(_, scores)] = pool.score_groups([("g", [item(text) for text in texts])])
    assert [score.missing for score in scores] == [None, "worker died", None, "worker died", None]


def test_a_worker_that_dies_once_costs_nothing(pool: RewardPool, tmp_path: Path) -> None:
    [(_, scores)] = pool.score_groups([("g", [item("once", str(tmp_path / "mark")), item("1")])])
    assert [score.missing for score in scores] == [None, None]


def test_a_workers_mistake_is_reported_and_it_goes_on(pool: RewardPool) -> None:
    [(_, scores)] = pool.score_groups([("g", [item("raise"), item("1")])])
    assert scores[0].missing == "ValueError: my own mistake" and scores[1].accuracy == 1.0


def test_rows_that_cannot_be_sent_are_missing(pool: RewardPool) -> None:
    bad = RewardItem("1", 1, object(), "custom", {})
    surrogate = RewardItem("\ud800", 1, "x", "string_match", {"size": np.int32(3), "list": np.arange(2)})
    [(_, scores)] = pool.score_groups([("g", [bad, surrogate])])
    assert str(scores[0].missing).startswith("unusable row") and scores[1].missing is None


def test_a_killed_idle_worker_is_replaced(pool: RewardPool) -> None:
    [(_, scores)] = pool.score_groups([("g", [item("pid")] * 8)])
    for pid in {int(score.accuracy) for score in scores}:
        os.kill(pid, 9)
    [(_, scores)] = pool.score_groups([("again", [item("1")] * 4)])
    assert [score.accuracy for score in scores] == [1.0] * 4


def test_closing_ends_all_workers_even_busy_ones(custom: str) -> None:
    pool = RewardPool(RewardConfig(workers=2, timeout_s=60.0, custom=custom), max_response_length=100)
    with pool:
        pool.wait_ready()
        [(_, scores)] = pool.score_groups([("g", [item("pid")] * 8)])
        pool.submit("busy", [item("spin"), item("sleep")])
        time.sleep(0.3)
    for pid in {int(score.accuracy) for score in scores}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    pool.close()
    with pytest.raises(RuntimeError):
        pool.submit("late", [])


def test_a_scorer_that_cannot_be_loaded_is_a_users_mistake(tmp_path: Path) -> None:
    config = RewardConfig(workers=1, custom=f"{tmp_path}/missing.py:f")
    with RewardPool(config, max_response_length=10) as pool, pytest.raises(UserError, match=r"missing\.py"):
        pool.wait_ready()


@pytest.mark.parametrize("settings", [{"workers": 0}, {"timeout_s": 0.0}])
def test_bad_settings_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"reward.{next(iter(settings))}"):
        RewardPool(RewardConfig(**settings), max_response_length=10)  # type: ignore[arg-type]  # workers is an int


def test_a_whole_group_from_the_recipes_own_types() -> None:
    truth = '[{"bbox_2d": [64, 48, 128, 96]}]'
    example = Example("1", "chart_ocr", "s", (), (), "grounding", truth, {"solution": "secret"})
    empty = np.zeros((0,), np.int32)
    prompt = Prompt(
        example, empty, np.zeros((0, 3), np.int32), empty, np.zeros((0, 1536), np.uint8), np.zeros((0, 3), np.int32),
        image_sizes=((640, 480),),
    )  # fmt: skip
    text = '<think>x</think><answer>[{"bbox_2d": [100, 100, 200, 200]}]</answer>'
    responses = tuple(
        Response(np.zeros(length, np.int32), np.zeros(length, np.float32), "stop", text) for length in (10, 3072, 4096)
    )
    items = reward_items(prompt, responses)
    assert "solution" not in items[0].extra_info and items[0].extra_info["image_sizes"] == [[640, 480]]
    with RewardPool(RewardConfig(workers=1), max_response_length=4096, coordinates="normalized_1000") as pool:
        [(_, scores)] = pool.score_groups([("g", items)])
    assert [score.total for score in scores] == pytest.approx([1.0, 0.5, 0.0])
    assert [score.overlong for score in scores] == pytest.approx([0.0, -0.5, -1.0])


def test_the_parents_main_module_is_not_imported_by_workers(tmp_path: Path) -> None:
    """As with `python -m vero_jax.train`: the parent's main module runs once, here a script without a main guard."""
    script = tmp_path / "main_script.py"
    script.write_text(
        "print('main runs')\n"
        "from vero_jax.config import RewardConfig\n"
        "from vero_jax.rewards.pool import RewardPool\n"
        "from vero_jax.rewards.settings import RewardItem\n"
        "text = '<think>a</think><answer>\\\\boxed{5}</answer>'\n"
        "with RewardPool(RewardConfig(workers=2), max_response_length=9999) as pool:\n"
        "    [(_, scores)] = pool.score_groups([(0, [RewardItem(text, 1, '5', 'numeric')])])\n"
        "    print([score.total for score in scores])\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=240,
        check=True,
    )
    assert done.stdout.splitlines() == ["main runs", "[1.0]"]


def test_a_worker_leaves_when_its_parent_is_gone(custom: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys\n"
        "from vero_jax.config import RewardConfig\n"
        "from vero_jax.rewards.pool import RewardPool\n"
        "from vero_jax.rewards.settings import RewardItem\n"
        f"pool = RewardPool(RewardConfig(workers=1, custom={custom!r}), max_response_length=10)\n"
        "[(_, scores)] = pool.score_groups([(0, [RewardItem('pid', 1, '', 'custom')])])\n"
        "print(int(scores[0].accuracy), flush=True)\n"
        "os._exit(0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment, timeout=240, check=True
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z"):
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its parent")


NOTEBOOK = """
import asyncio
from vero_jax.config import RewardConfig
from vero_jax.rewards.pool import RewardPool
from vero_jax.rewards.settings import RewardItem

text = "<think>a</think><answer>\\\\boxed{5}</answer>"

def scores():
    with RewardPool(RewardConfig(workers=2), max_response_length=9999) as pool:
        pool.wait_ready()
        done = list(pool.score_groups((key, [RewardItem(text, 1, str(key), "numeric")]) for key in range(4, 7)))
    return [(key, score.total) for key, [score] in done]

async def cell():  # as in a notebook, whose cells run inside a running event loop
    return scores()

assert scores() == asyncio.run(cell())
print(scores())
"""


@pytest.mark.parametrize("way", ["standard input", "no main file"])
def test_a_pool_works_in_a_notebook(way: str, tmp_path: Path) -> None:
    """Code without a file, as a notebook's: `python -`, and inside a running event loop."""
    words = ["-"] if way == "standard input" else ["-c", NOTEBOOK]
    done = subprocess.run(
        [sys.executable, *words],
        input=NOTEBOOK if way == "standard input" else None,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        cwd=tmp_path,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[(4, 0.2), (5, 1.0), (6, 0.2)]\n"


def test_scores_say_how_long_they_took(pool: RewardPool) -> None:
    [(_, scores)] = pool.score_groups([(0, [item("sleep"), RewardItem("1", 1, object(), "custom", {}), item("1")])])
    assert scores[0].missing == "timeout" and scores[0].latency_s >= 3.0
    assert math.isnan(scores[1].latency_s)
    assert 0.0 < scores[2].latency_s < 3.0
