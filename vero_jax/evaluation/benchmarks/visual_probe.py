"""VisualProbe (Lai et al. 2025): small details in large pictures, three levels, a judge compares answers."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.variants import AnswerKind, Variant
from vero_jax.evaluation.verdicts import verdict_judge


def _prompt(row: Row, variant: Variant) -> str:
    return str(row["problem"]).replace("<image>", "").strip()


def _judge(answer: Answer, row: Row) -> str:
    question = _prompt(row, answer.variant)
    return fill("search", question=question, truth=str(row["solution"]), answer=answer.text)


BENCHMARKS = tuple(
    Benchmark(
        name=f"visual_probe_{level.lower()}",
        row="VisualProbe",
        category="Grounding, Counting & Search",
        source=Source(f"Mini-o3/VisualProbe_{level}", "validation"),
        prompt=_prompt,
        kind=AnswerKind.SHORT,
        judge=verdict_judge(_judge),
    )
    for level in ("Easy", "Medium", "Hard")
)
