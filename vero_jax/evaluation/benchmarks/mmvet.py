"""MM-Vet v2 (Yu et al. 2024): integrated abilities over sequences of pictures, graded 0 to 1 by a judge."""

from __future__ import annotations

from collections.abc import Sequence

from vero_jax.evaluation.benchmark import Answer, Benchmark, Judge, Row, Source
from vero_jax.evaluation.composite import tiled
from vero_jax.evaluation.extraction import Mode
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.judging import share
from vero_jax.evaluation.score import UNJUDGED, Score
from vero_jax.evaluation.variants import AnswerKind, Variant


def _prompt(row: Row, variant: Variant) -> str:
    return str(row["question"]).replace("<IMG>", "").strip()


def _judge(answer: Answer, row: Row) -> list[str]:
    question = _prompt(row, answer.variant)
    return [fill("mmvet", question=question, truth=str(row["answer"]), answer=answer.text)]


def _read(replies: Sequence[str | None], answer: Answer, row: Row) -> Score:
    found = None if replies[0] is None else share(replies[0])
    if replies[0] is None or found is None:
        return UNJUDGED
    strict = share(replies[0], strict=True)
    missing = "unjudged" if strict is None else ""
    return Score(found, strict, answer.text, str(row.get("capability", "")), missing=missing)


BENCHMARKS = (
    Benchmark(
        name="mmvetv2",
        row="MM-Vet v2",
        category="Knowledge & Recognition",
        source=Source("whyu/mm-vet-v2", "test", compose=tiled),
        prompt=_prompt,
        kind=AnswerKind.LONG,
        extraction=Mode.UNWRAPPED,
        judge=Judge(_judge, _read, max_new_tokens=128),
    ),
)
