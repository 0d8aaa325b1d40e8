"""The command that tries rewards on a file: what it reads, prints and returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vero_jax.rewards.check import main, read_items

FUNCTIONS = """
import time

def score(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "raise":
        return 1 / len("")
    if solution_str == "sleep":
        time.sleep(60)
    if solution_str == "none":
        return None
    return {"score": float(solution_str == ground_truth), "letters": len(solution_str)}
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    return f"{file}:score"


def written(folder: Path, *rows: Any) -> str:
    file = folder / "answers.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def test_scores_speed_and_further_numbers_by_source(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"response": text, "ground_truth": "a", "data_source": source} for source in "xy" for text in ("a", "bb")]
    assert main([target, "--data", written(tmp_path, *rows, {"response": "none", "data_source": "y"})]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1:5] for line in lines[1:4]}
    assert table == {
        "x": ["2", "0.5000", "0", "0"],
        "y": ["3", "0.5000", "1", "0"],
        "all": ["5", "0.5000", "1", "0"],
    }
    assert "  letters: 1.5" in lines and any("scores/s" in line for line in lines)


def test_failures_are_shown_from_the_users_code_on_and_the_status_is_1(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path, {"response": "raise"}, "no json", "[]", {"response": "a", "ground_truth": "a"})
    assert main([target, "--data", data, "--show", "5"]) == 1
    out = capsys.readouterr().out
    assert "line 1:" in out and 'return 1 / len("")' in out and "ZeroDivisionError" in out
    assert "functions.py" not in out
    assert "line 2: not JSON" in out and "line 3: not a JSON object" in out


def test_a_function_that_hangs_is_given_up(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([target, "--data", written(tmp_path, {"response": "sleep"}), "--timeout", "0.2"]) == 1
    assert "line 1: timeout after 0.2 s" in capsys.readouterr().out


def test_without_a_function_the_verifiers_score_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "output": "<think>a</think><answer>\\boxed{5}</answer>",
        "gold": "5",
        "source": "s",
        "reward_type": "numeric",
    }
    out = tmp_path / "scores.jsonl"
    assert main(["--data", written(tmp_path, row), "--out", str(out)]) == 0
    assert "score 1.0000 accuracy 1.0000 format 1" in capsys.readouterr().out
    assert json.loads(out.read_text()) == {"line": 1, "source": "s", "score": 1.0, "accuracy": 1.0, "format": 1.0}


def test_veros_rows_and_lists_of_responses_are_understood() -> None:
    row = {
        "responses": ["a", [{"role": "assistant", "content": "b"}]],
        "reward_model": {"ground_truth": "t"},
        "extra_info": json.dumps({"reward_type": "search", "index": 3}),
        "data_source": "d",
    }
    items, problem = read_items(row)
    assert not problem and [item.response for item in items] == ["a", "b"]
    assert (items[0].ground_truth, items[0].reward_type, items[0].data_source) == ("t", "search", "d")
    assert items[1].extra_info["index"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "{folder}/absent.jsonl"], "can't be read"),
        (["--data", "{folder}/empty.jsonl"], "holds no line"),
        (["--data", "{folder}/other.jsonl"], "no response: one of response, solution_str"),
        (["absent.py:f", "--data", "{folder}/other.jsonl"], "is no file"),
        (["{folder}/mine.py:absent", "--data", "{folder}/other.jsonl"], "has no function 'absent'; it has score"),
        (["--data", "{folder}/other.jsonl", "--timeout", "0"], "more than 0 seconds"),
    ],
)
def test_every_mistake_is_one_sentence_and_status_2(
    words: list[str], message: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n')
    assert main([word.format(folder=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
