"""The examples of docs/evaluation.md, run as they stand there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.evaluation.data_sets import ROWS, stored, write
from vero_jax.evaluation.loaders import Question, questions
from vero_jax.evaluation.registry import benchmark
from vero_jax.evaluation.results import result, score_answers
from vero_jax.evaluation.variants import VARIANTS


def _example(repo: Path, number: int) -> str:
    return re.findall(r"```python\n(.*?)```", (repo / "docs" / "evaluation.md").read_text("utf-8"), re.DOTALL)[number]


def _run(code: str, folder: Path) -> dict[str, object]:
    file = folder / "example.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("example", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def test_answers_are_scored(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(benchmark("chartqa"), tmp_path / "data", [*ROWS["chartqa"], {**ROWS["chartqa"][0], "image": stored(b"no")}])
    monkeypatch.chdir(tmp_path)
    found = _run(_example(repo, 0), tmp_path)
    assert found["broken"] == {"image not readable": 1}
    assert capsys.readouterr().out == "100.0 100.0 overall 100.0 (strict 100.0) over 1 of 30 benchmarks\n"


def test_a_new_benchmark_is_one_short_file(repo: Path, tmp_path: Path) -> None:
    code = _example(repo, 1)
    assert code.count("\n") < 30
    (task,) = _run(code, tmp_path)["BENCHMARKS"]  # type: ignore[misc]
    row = {"image": stored(), "question": "Which?", "options": ["one", "two", "three", "four"], "answer": "C"}
    write(task, tmp_path, [row])
    (question,) = questions(task, tmp_path, VARIANTS["qwen3_zs"])
    assert isinstance(question, Question)
    text = question.messages[0]["content"][-1]["text"]
    assert text == "Which?\nA. one\nB. two\nC. three\nD. four\nAnswer with the option's letter only."
    scores = score_answers(task, [question.row] * 2, ["It is \\boxed{C}", "\\boxed{D}"], VARIANTS["qwen3_zs"])
    assert result(task, scores).score == 50.0
