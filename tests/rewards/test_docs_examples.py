"""What docs/rewards.md shows is what happens: the worked examples, the functions, the commands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vero_jax.config import RewardConfig
from vero_jax.config_loader import load_config
from vero_jax.rewards.check import main
from vero_jax.rewards.functions import make_scorer
from vero_jax.rewards.router import VERIFIERS, score_response
from vero_jax.rewards.settings import RewardItem, RewardSettings

SETTINGS = RewardSettings(coordinates="normalized_1000")


@pytest.fixture
def page(repo: Path) -> str:
    return (repo / "docs" / "rewards.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python files of the page, in the working directory."""
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def worked_examples(page: str) -> list[dict[str, Any]]:
    section = page.partition("## A worked example of each type")[2].partition("\n## ")[0]
    names = ("reward_type", "ground_truth", "answer", "extra_info", "accuracy", "format", "score")
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    examples = [dict(zip(names, (cell.strip().strip("`") for cell in cells), strict=False)) for cells in rows]
    assert all(set(names) <= set(example) for example in examples)
    return examples


def test_the_worked_examples_score_as_the_page_says(page: str) -> None:
    for example in worked_examples(page):
        text = f"<think>I look.</think><answer>{example['answer']}</answer>"
        extra = json.loads(example["extra_info"] or "{}")
        found = score_response(text, example["ground_truth"], example["reward_type"], extra, settings=SETTINGS)
        for name in ("accuracy", "format", "score"):
            assert getattr(found, name) == pytest.approx(float(example[name]), abs=1e-4), example


def test_every_reward_type_has_a_worked_example(page: str) -> None:
    assert {example["reward_type"] for example in worked_examples(page)} == set(VERIFIERS)


def test_the_pages_functions_score(page: str, folder: Path) -> None:
    for words in re.findall(r"vero_jax\.train \.\.\. '?(reward\.functions=[^'\n]+)", page):
        if "their_package" in words:
            continue
        settings = RewardSettings.from_config(load_config([words]).reward)
        item = RewardItem("<think>a</think><answer>\\boxed{Oslo}</answer>", 9, "oslo", "search", {}, "cities")
        score = make_scorer(settings)(item)
        assert 0.9 < score.score <= 1.0
        if "compute_score" in words:
            assert score.extras == {"words": 1.0}
    assert (folder / "my_rewards.py").exists() and "their_package" in page


def test_the_pages_scorer_of_one_type_scores(folder: Path) -> None:
    settings = RewardSettings.from_config(RewardConfig(custom="my_types.py:colour"))
    score = score_response("<answer>Teal</answer>", "green", "custom", {"also": ["teal"]}, settings=settings)
    assert score.accuracy == 0.5


def test_the_pages_check_commands_run(page: str, folder: Path) -> None:
    rows = [
        {"response": f"<answer>{example['answer']}</answer>", **example, "extra_info": example["extra_info"] or {}}
        for example in worked_examples(page)
    ]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    commands = re.findall(r"python -m vero_jax\.rewards\.check (.+)", page)
    assert len(commands) == 2
    assert [main(command.split()) for command in commands] == [0, 0]
    assert len((folder / "scores.jsonl").read_text().splitlines()) == len(rows)
