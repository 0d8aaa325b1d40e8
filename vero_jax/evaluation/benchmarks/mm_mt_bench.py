"""MM-MT-Bench (Agrawal et al. 2024): conversations about pictures, each turn rated 1 to 10 by a judge.

The turns before the rated one hold the reference's answers, not the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vero_jax.evaluation.aggregation import micro_and_macro
from vero_jax.evaluation.benchmark import Answer, Benchmark, Judge, Message, Row, Source
from vero_jax.evaluation.extraction import Mode
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.judging import rating
from vero_jax.evaluation.score import UNJUDGED, Score
from vero_jax.evaluation.variants import AnswerKind, Variant
from vero_jax.rewards.judge_prompt import conversation_of
from vero_jax.rewards.literals import read_json


def _conversation(row: Row) -> list[dict[str, Any]]:
    turns = read_json(row["conversation"]) if isinstance(row["conversation"], str) else row["conversation"]
    return [{"role": str(turn["role"]), "content": _parts(turn["content"])} for turn in turns]


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [
        {"type": "text", "text": str(part["text"])} if part.get("type") == "text" else {"type": "image"}
        for part in content
    ]


def _turns(row: Row) -> Sequence[Row]:
    """One row for each user turn that has an answer."""
    turns = _conversation(row)
    return [
        {**row, "message_index": index}
        for index, turn in enumerate(turns[:-1])
        if turn["role"] == "user" and turns[index + 1]["role"] == "assistant"
    ]


def _prompt(row: Row, variant: Variant) -> Sequence[Message]:
    return _conversation(row)[: int(row["message_index"]) + 1]


def _judge(answer: Answer, row: Row) -> list[str]:
    truth = conversation_of(_conversation(row)[int(row["message_index"]) + 1 :][:1])
    question = conversation_of(_prompt(row, answer.variant))
    return [fill("mt_bench", question=question, truth=truth.removeprefix("Assistant: "), answer=answer.text)]


def _read(replies: Sequence[str | None], answer: Answer, row: Row) -> Score:
    found = None if replies[0] is None else rating(replies[0])
    if found is None:
        return UNJUDGED
    strict, missing = (found, "") if 1 <= found <= 10 else (None, "unjudged")
    return Score(found, strict, answer.text, str(row.get("category", "")), missing=missing)


BENCHMARKS = (
    Benchmark(
        name="mm_mt_bench",
        row="MM-MTBench",
        category="Captioning & IF",
        source=Source("mistralai/MM-MT-Bench", "eval", expand=_turns),
        prompt=_prompt,
        kind=AnswerKind.LONG,
        extraction=Mode.UNWRAPPED,
        judge=Judge(_judge, _read, max_new_tokens=4_096, pictures=True),
        aggregate=micro_and_macro,
        scale=100.0 / 9.0,
        zero=1.0,  # appendix C of the paper's third version: 100 (x - 1) / 9
    ),
)
