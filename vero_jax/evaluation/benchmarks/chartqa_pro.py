"""ChartQA-Pro (Masry et al. 2025): charts with lists, facts to check, hypotheses and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.scorers.chart_lists import list_match
from vero_jax.evaluation.variants import AnswerKind, Variant

_CONVERSATION, _FACT = "Conversational", "Fact Checking"
_UNANSWERABLE = (
    "f the question is unanswerable based on the information in the provided image, your boxed answer should be "
    '"unanswerable".'
)
_LISTS = "[’Answer1’, ’Answer2’]."


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]


def _prompt(row: Row, variant: Variant) -> str:
    questions, answers, kind = _texts(row["Question"]), _texts(row["Answer"]), row.get("Question Type")
    if kind == _FACT:
        return (
            "You are given a fact statement that you need to assess based on the provided image.\n\n"
            f'Statement: {questions[0]} \nYour boxed answer should be either "true" or "false", or i{_UNANSWERABLE}'
        )
    if kind == _CONVERSATION:
        earlier = zip(questions[:-1], answers, strict=False)
        history = "".join(f"Question: {question}\n\nAnswer: {answer}" for question, answer in earlier)
        return (
            f"Conversation history: \n{history} \n\nQuestion: {questions[-1]} \nI{_UNANSWERABLE} If there are multiple "
            f"answers, your boxed answer should use format {_LISTS}"
        )
    lists = f"If there are multiple answers, put them in brackets using this format {_LISTS}"
    return f"{questions[0]} I{_UNANSWERABLE} {lists}"


def _years(value: Any) -> list[str]:
    flags = value if isinstance(value, list) else [] if value is None else [value]
    return [str(flag[0] if isinstance(flag, list) and flag else flag) for flag in flags]


def _score(answer: Answer, row: Row) -> Score:
    kind, truth, years = str(row.get("Question Type", "")), _texts(row["Answer"])[-1], _years(row.get("Year"))
    if kind == _CONVERSATION:
        years = years[-1:]
    return Score(
        list_match(answer.text, truth, kind, years),
        list_match(answer.text, truth, kind, years, strict=True),
        prediction=answer.text,
        group=kind,
    )


BENCHMARKS = (
    Benchmark(
        name="chartqa_pro",
        row="ChartQA-Pro",
        category="Chart & OCR",
        source=Source("ahmed-masry/ChartQAPro", "test"),
        prompt=_prompt,
        kind=AnswerKind.SHORT,
        scorer=_score,
        states_format=True,
    ),
)
