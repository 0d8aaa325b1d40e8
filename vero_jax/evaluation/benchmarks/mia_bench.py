"""MIA-Bench (Qian et al. 2024): instructions of several parts, each weighed and graded by a judge."""

from __future__ import annotations

from collections.abc import Sequence

from vero_jax.evaluation.benchmark import Answer, Benchmark, Judge, Row, Source
from vero_jax.evaluation.extraction import Mode
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.judging import components
from vero_jax.evaluation.score import UNJUDGED, Score
from vero_jax.evaluation.variants import AnswerKind


def _judge(answer: Answer, row: Row) -> list[str]:
    weighed = list(zip(row["components"], row["component_weight"], strict=True))
    listed = "\n".join(
        f"component {index} ({weight} points): {part}" for index, (part, weight) in enumerate(weighed, 1)
    )
    form = "".join(f"score of component {index}: ?/{weight}, " for index, (_, weight) in enumerate(weighed, 1))
    return [
        fill(
            "mia",
            question=str(row["instruction"]),
            components=listed,
            answer=answer.text,
            form=f"{form}total score: ?/10",
        )
    ]


def _read(replies: Sequence[str | None], answer: Answer, row: Row) -> Score:
    if replies[0] is None:
        return UNJUDGED
    names = [str(part) for part in row["components"]]
    found, strict = components(replies[0], names), components(replies[0], names, strict=True)
    return Score(
        found[1] if found else 0.0,
        strict[1] if strict else None,
        answer.text,
        str(row.get("type", "")),
        missing="" if strict else "unjudged",
    )


BENCHMARKS = (
    Benchmark(
        name="mia_bench",
        row="MIABench",
        category="Captioning & IF",
        source=Source("lmms-lab/MIA-Bench", "test"),
        prompt=lambda row, variant: str(row["instruction"]),
        kind=AnswerKind.LONG,
        extraction=Mode.UNWRAPPED,
        judge=Judge(_judge, _read, max_new_tokens=4_096, pictures=True),
    ),
)
