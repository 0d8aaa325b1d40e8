"""Results folders of `vero_jax.evaluate`, made of rows that a test gives."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from vero_jax.evaluation.registry import benchmark, table_rows
from vero_jax.evaluation.results import not_run, result, table
from vero_jax.evaluation.score import Score

SETTINGS = {
    "checkpoint": "checkpoints/tiny",
    "variant": "reasoning",
    "limit": 50,
    "samples": 1,
    "seed": 1,
    "data": "data",
    "max_new_tokens": None,
    "judge": None,
}


def answer(task: str, index: int, value: float | None, strict: float | None = None, **fields: Any) -> dict[str, Any]:
    """A row of `questions/<task>.jsonl`; the strict figure is the same where none is given."""
    return {
        "task": task, "id": f"{task}-{index}", "sample": 0, "images": [], "prompt": f"Question {index}?",
        "response": f"<answer>{index}</answer>", "tokens": 12, "stop_reason": "stop", "extracted": str(index),
        "prediction": str(index), "value": value, "strict": value if strict is None else strict, "group": "",
        "parts": {}, "missing": "", "row": {"question": f"Question {index}?", "answer": "14"}, **fields,
    }  # fmt: skip


def not_asked(task: str, index: int, reason: str = "image not readable", detail: str = "") -> dict[str, Any]:
    """The row of a question that could not be asked."""
    return {"task": task, "id": f"{task}-{index}", "sample": None, "images": [], "missing": reason, "detail": detail}


def score_of(row: dict[str, Any]) -> Score:
    return Score(row["value"], row["strict"], row["prediction"], row["group"], row["parts"], row["missing"])


def write_folder(path: Path, tasks: dict[str, list[dict[str, Any]]], **settings: Any) -> Path:
    """A folder with these rows, and the figures that they have."""
    settings = {**SETTINGS, **settings}
    results, entries = [], {}
    (path / "questions").mkdir(parents=True)
    for name, rows in tasks.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (path / "questions" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        asked = [row for row in rows if row["sample"] is not None]
        broken = Counter(row["missing"] for row in rows if row["sample"] is None)
        task = benchmark(name)
        found = result(task, [score_of(row) for row in asked], broken) if rows else not_run(task, "no data set here")
        results.append(found)
        entries[name] = {
            "row": task.row, "category": task.category, "score": found.score, "strict": found.strict,
            "standard_error": None, "question_error": 2.1 if asked else None, "figures": dict(found.figures),
            "strict_figures": dict(found.strict_figures), "questions": len({row["id"] for row in asked}),
            "answers": len(asked), "unjudged": found.unjudged, "left_out": dict(found.left_out),
            "reason": found.reason, "mean_tokens": 400.1, "cut": 0.02,
        }  # fmt: skip
    figures = table(results)
    of = table_rows()
    rows = {
        name: {"category": of[name], "score": pair[0], "strict": pair[1], "standard_error": None}
        for name, pair in figures.rows.items()
    }
    categories = {
        name: {"score": pair[0], "strict": pair[1], "standard_error": None} for name, pair in figures.categories.items()
    }
    overall = {
        "score": figures.overall[0], "strict": figures.overall[1], "standard_error": None,
        "covered": figures.covered, "total": figures.total,
    }  # fmt: skip
    whole = {
        "format": 1, **settings, "seconds": 12.3, "tasks": entries, "rows": rows, "categories": categories,
        "overall": overall, "summary": figures.summary(),
    }  # fmt: skip
    (path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (path / "results.json").write_text(json.dumps(whole), encoding="utf-8")
    return path
