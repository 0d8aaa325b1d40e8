"""Texts that are meant to hang or crash a scorer of a benchmark, and rows of every kind of scorer to try them on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.evaluation.data_sets import ROWS
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.registry import all_benchmarks

MORE_ANSWERS = {
    "boxed towers": "\\boxed{" * 20_000 + "1" + "}" * 20_000,
    "wrapped texts": "\\text{" * 15_000 + "1" + "}" * 15_000,
    "long option": "x" * 400_000,
    "letters": "A " * 50_000,
    "repeated options": "(A) red (B) blue " * 6_000,
    "repeated option lines": "A. red\nB. blue\n" * 7_000,
    "answer phrases": "the answer is " * 7_000,
    "ratios": "1:2:" * 25_000,
    "ranges": "1-" * 50_000 + "1",
    "dashes": "- " * 50_000,
    "list of numbers": "[" + "1, " * 30_000 + "1]",
    "quoted list": "'a', " * 20_000 + "'a'",
    "brackets with commas": "[" + "(," * 40_000 + "]",
    "fences": "```" * 30_000,
    "fenced JSON": "```json\n" * 12_000,
    "box keys": '"bbox_2d": [' * 8_000,
    "point keys": "point_2d: [1," * 7_000,
    "pairs": "[1, 2" * 15_000,
    "tool calls": "<tool_call>" * 9_000,
    "percent": "%" * 100_000,
    "number words": "eighteen" * 12_000,
    "equations": "=" * 100_000,
    "approximately": "\\approx " * 12_000,
    "many sentences": "A. " * 30_000,
    "blank lines": "\n \n" * 30_000,
    "spaces": " " * 100_000 + "x",
    "answer and spaces": "answer" + " " * 100_000 + "x",
    "number and spaces": "1" + " " * 100_000 + "x",
    "spaces and dashes": "x" + " " * 50_000 + "-" + " " * 50_000 + "x",
    "thousands": "111," * 25_000 + "x",
    "decimals": "1." * 50_000,
    "long decimals": "1." + "5" * 100_000 + "x",
    "apostrophes": "it's-" * 20_000,
    "code": "__import__('os').system('touch /tmp/never')",
    "not a number": "nan",
    "surrogates": "\ud83d" * 1000,
    "full width digits": "１２３" * 1000,
    "null characters": "\x00" * 100_000,
}


def ruled_rows() -> Iterator[tuple[Benchmark, dict[str, Any]]]:
    """(benchmark, a row of it) for all that rules score, but for those that are scored like another one."""
    for name, rows in ROWS.items():
        benchmark = all_benchmarks()[name]
        if benchmark.scorer is None or name in ("mmmu_pro_vision", "cv_bench", "countqa", "blink"):
            continue  # judged, or scored like another one
        row = rows[0]
        if name == "aerialvg_bbox":
            row = {**row["grounding"]["regions"][0], "caption": "A."}
        yield benchmark, {"width": 64, "height": 48, **row}
        if name == "mathvista_testmini":
            choices = ["45 degrees", "60 degrees", "90 degrees", "135 degrees"]
            yield benchmark, {"question_type": "multi_choice", "choices": choices, "answer": choices[0]}
        if name == "chartqa":
            yield benchmark, {"answer": ["10-20"], "type": "human_test"}
