"""Small results folders and run directories to analyse, written as the commands that make them write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vero_jax.config import Config, DataConfig, MixtureConfig
from vero_jax.config_loader import to_yaml
from vero_jax.evaluation.registry import benchmark
from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.run_dir import RunDir
from vero_jax.types import Example, Group, Prompt, Response, Score
from vero_jax.validation import _records


def answer(text: str, *, right: bool = True, tokens: int = 10, cut: bool = False, sample: int = 0) -> dict[str, Any]:
    """The fields of a row that an analysis reads."""
    return {
        "response": text,
        "value": float(right),
        "tokens": tokens,
        "stop_reason": "length" if cut else "stop",
        "sample": sample,
    }


def results(folder: Path, tasks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """A results folder; each answer is a question of its own unless its row has an "id"."""
    for task, rows in tasks.items():
        lines = []
        for number, row in enumerate(rows):
            entry = {"task": task, "id": f"{task}-{number}", "images": [], "prompt": "?", "missing": ""} | dict(row)
            lines.append(json.dumps(entry) + "\n")
        file = folder / "questions" / f"{task}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines))
    known = {task: {"row": benchmark(task).row, "category": benchmark(task).category} for task in tasks}
    (folder / "results.json").write_text(json.dumps({"format": 1, "tasks": known}))
    return folder


def group(name: str, domain: str, text: str, accuracy: float | None = 1.0, *, cut: bool = False) -> Group:
    """A validation question with its one answer; accuracy None: without a score."""
    example = Example(name, domain, f"source of {domain}", ({"role": "user", "content": "?"},), (), "exact", "1", {})
    empty = np.zeros(0, np.int32)
    prompt = Prompt(example, empty, np.zeros((0, 3), np.int32), empty, np.zeros((0, 4), np.uint8), empty.reshape(0, 3))
    ids = np.zeros(len(text.split()) + 1, np.int32)
    response = Response(ids, ids.astype(np.float32), "length" if cut else "stop", text)
    score = Score(0.0, 0.0, 0.0, missing="timeout") if accuracy is None else Score(accuracy, accuracy, 1.0)
    return Group(prompt, (response,), (score,))


def run(folder: Path, validations: Mapping[str, Sequence[Group]], mixture: MixtureConfig | None = None) -> Path:
    """A run's directory with the answers of its validations, sampled and greedy."""
    made = RunDir(folder)
    for name, groups in validations.items():
        records = [*_records(groups, "sampled", 0), *_records(groups, "greedy", 0), *_records(groups, "blind", 0)]
        atomic_write(made.validation_file(name), "\n".join(map(json.dumps, records)) + "\n")
    atomic_write(made.config, to_yaml(Config(data=DataConfig(mixture=mixture or MixtureConfig()))))
    return folder
