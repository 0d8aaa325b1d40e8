"""SimpleVQA, English part (Cheng et al. 2025): right, wrong or not attempted, says a judge in Chinese."""

from __future__ import annotations

from collections.abc import Sequence

from vero_jax.evaluation.aggregation import attempts
from vero_jax.evaluation.benchmark import Answer, Benchmark, Judge, Row, Source
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.judging import NOT_ATTEMPTED, RIGHT, WRONG, three_way
from vero_jax.evaluation.score import UNJUDGED, Score
from vero_jax.evaluation.variants import AnswerKind, Variant

_PARTS = {RIGHT: "right", WRONG: "wrong", NOT_ATTEMPTED: "not attempted"}
_KNOWLEDGE = " You may need knowledge that the image does not show."


def _prompt(row: Row, variant: Variant) -> str:
    return str(row["question"]) + (_KNOWLEDGE if variant.external_knowledge else "")


def _judge(answer: Answer, row: Row) -> list[str]:
    return [fill("simplevqa", question=str(row["question"]), truth=str(row["answer"]), answer=answer.text)]


def _read(replies: Sequence[str | None], answer: Answer, row: Row) -> Score:
    if replies[0] is None:
        return UNJUDGED
    label = three_way(replies[0])
    return label_score(label or NOT_ATTEMPTED, answer.text, readable=three_way(replies[0], strict=True) is not None)


def label_score(label: str, prediction: str = "", *, readable: bool = True) -> Score:
    """The score of a label: right, wrong and not attempted are counted, unknown short labels count nowhere."""
    parts = {_PARTS[label]: 1.0} if label in _PARTS else {}
    value = float(label == RIGHT)
    return Score(value, value if readable else None, prediction, parts=parts, missing="" if readable else "unjudged")


BENCHMARKS = (
    Benchmark(
        name="simplevqa_en",
        row="SimpleVQA-En",
        category="Knowledge & Recognition",
        source=Source("gsarch/SimpleVQA-EN", "test"),
        prompt=_prompt,
        kind=AnswerKind.SHORT,
        judge=Judge(_judge, _read),
        aggregate=attempts,
    ),
)
