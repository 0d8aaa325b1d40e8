"""CharXiv (Wang et al. 2024), reasoning questions: a judge extracts the answer and grades it."""

from __future__ import annotations

from collections.abc import Sequence

from vero_jax.evaluation.benchmark import Answer, Benchmark, Judge, Row, Source
from vero_jax.evaluation.extraction import Mode
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.judging import extracted_and_score
from vero_jax.evaluation.score import UNJUDGED, Score
from vero_jax.evaluation.variants import AnswerKind, Variant

_FORMATS = {
    1: (
        "* Your final answer must be text that is written in the chart and relevant to the question.\n"
        "* If several terms are asked for, separate them with commas.\n"
        "* Give the full names of subplots and labels, unless the question asks for something else, such as a letter."
    ),
    2: (
        "* If the question offers options, your final answer must be one of them.\n"
        "* If the question gives further instructions, follow them.\n"
        "* Otherwise a short phrase is enough."
    ),
    3: (
        "* Your final answer must be a number that is written in the chart and relevant to the question, "
        "even if it is an approximate value.\n"
        "* You may take numbers out of longer texts in the chart."
    ),
    4: "",
}
"""What an answer must look like, by category: text in the chart, any text, number in the chart, any number."""
_RULES = {
    1: "the texts must be the same up to case, spelling variants, symbols written in LaTeX or plainly, and word order.",
    2: "the answers must mean the same; where options are given, they must be the same option.",
    3: "the numbers must be equal; a different way of writing the same number is fine.",
    4: "the numbers must be equal, with as many decimals as the reference has.",
}


def number_instruction(answer: str) -> str:
    """How exact a number must be, as the reference answer shows it."""
    _, point, decimals = answer.partition(".")
    if not point:
        return "* Your final answer must be an exact integer."
    return f"* Your final answer must be a number with {len(decimals)} decimal places."


def _category(row: Row) -> int:
    return int(row["reasoning_q_source"])


def _prompt(row: Row, variant: Variant) -> str:
    form = _FORMATS[_category(row)] or number_instruction(str(row["reasoning_a"]))
    return f"{row['reasoning_q']}\n{form}"


def _judge(answer: Answer, row: Row) -> list[str]:
    rule = _RULES[_category(row)]
    return [fill("charxiv", question=row["reasoning_q"], truth=str(row["reasoning_a"]), answer=answer.text, rule=rule)]


def _read(replies: Sequence[str | None], answer: Answer, row: Row) -> Score:
    if replies[0] is None:
        return UNJUDGED
    found = extracted_and_score(replies[0])
    group = f"category {_category(row)}"
    if found is None:
        return Score(0.0, None, group=group, missing="unjudged")
    extracted, score = found
    strict, missing = (float(score), "") if score in (0, 1) else (None, "unjudged")
    return Score(float(score), strict, str(extracted), group, missing=missing)


BENCHMARKS = (
    Benchmark(
        name="charxiv",
        row="CharXiv Reason",
        category="Chart & OCR",
        source=Source("princeton-nlp/CharXiv", "validation"),
        prompt=_prompt,
        kind=AnswerKind.SHORT,
        extraction=Mode.PLAIN,
        judge=Judge(_judge, _read),
        states_format=True,
    ),
)
