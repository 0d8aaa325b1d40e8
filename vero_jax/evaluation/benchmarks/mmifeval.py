"""MM-IFEval (Ding et al. 2025): questions about pictures (P-Level), and instructions with constraints (C-Level).

A constraint is checked by a rule, by a judge, or by a judge who also sees the answer to the same instruction without
it; those further instructions are rows of their own, whose answers go to the row that they belong to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vero_jax.evaluation.benchmark import Answer, Benchmark, Judge, Row, Source
from vero_jax.evaluation.extraction import Mode
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.judging import constraint_scores, right_or_wrong, summary_verdict
from vero_jax.evaluation.score import UNJUDGED, Score
from vero_jax.evaluation.scorers.constraints import UnknownRule, check
from vero_jax.evaluation.variants import AnswerKind, Variant
from vero_jax.rewards.literals import read_json

_FACTS = "P-Level"
_MAIN = "main"


@dataclasses.dataclass(frozen=True)
class _Constraints:
    """Those of one instruction, by the way in which they are checked, each in the row's order."""

    judged: list[str]
    compared: list[tuple[str, str]]
    """(name, text)"""
    rules: list[list[Mapping[str, Any]]]

    @classmethod
    def of(cls, row: Row) -> _Constraints:
        judged, compared, rules = [], [], []
        for item in _json(row["constraints"]):
            method = item["judge"]["method"]
            if method == "direct_gpt":
                judged.append(str(item["value"]))
            elif method == "cmp_gpt":
                compared.append((str(item["key"]), str(item["value"])))
            elif method == "rule_based":
                rules.append(list(item["judge"]["verify_funcs"]))
            else:
                raise ValueError(f"no constraint is checked by {method!r}")
        return cls(judged, compared, rules)


def _json(value: Any) -> Any:
    return read_json(value) if isinstance(value, str) else value


def _prompt(row: Row, variant: Variant) -> str:
    return str(row.get("question") or row["instruction"])


def _judge(answer: Answer, row: Row) -> list[str]:
    question = _prompt(row, answer.variant)
    if row.get("tag") == _FACTS:
        truth = "\n".join(map(str, _json(row["answer"])))
        return [fill("mmif_fact", question=question, truth=truth, answer=answer.text)]
    wanted = _Constraints.of(row)
    prompts = []
    if wanted.judged:
        listed = "\n".join(f"constraint_{index}: {text}" for index, text in enumerate(wanted.judged, 1))
        form = ", ".join(f"Score of constraint_{index}: ?/1" for index in range(1, len(wanted.judged) + 1))
        prompts.append(fill("mmif_constraints", question=question, constraints=listed, answer=answer.text, form=form))
    prompts += [
        fill("mmif_compare", constraint=text, answer=answer.text, other=answer.others[name])
        for name, text in wanted.compared
        if name in answer.others
    ]
    return prompts


def _read(replies: Sequence[str | None], answer: Answer, row: Row) -> Score:
    if any(reply is None for reply in replies):
        return UNJUDGED
    read = [reply for reply in replies if reply is not None]
    facts, group = row.get("tag") == _FACTS, str(row.get("tag", ""))
    found = [right_or_wrong(read[0])] if facts else _constraint_figures(read, answer, row)
    figures = [float(value) for value in found if value is not None]
    if not found or len(figures) < len(found):
        return Score(0.0, None, answer.text, group, missing="unjudged")
    total = sum(figures) / len(figures)
    strict = right_or_wrong(read[0], strict=True) if facts else total if max(figures) <= 1 else None
    return Score(total, strict, answer.text, group, missing="unjudged" if strict is None else "")


def _constraint_figures(replies: Sequence[str], answer: Answer, row: Row) -> list[float | None]:
    wanted = _Constraints.of(row)
    waiting = list(replies)
    figures: list[float | None] = []
    if wanted.judged:
        scores = constraint_scores(waiting.pop(0)) or {}
        for index in range(1, len(wanted.judged) + 1):
            figures.append(scores.get(f"constraint_{index}", scores.get(f"constraint-{index}")))
    for name, _ in wanted.compared:
        figures.append(summary_verdict(waiting.pop(0)) if name in answer.others else None)
    for rules in wanted.rules:
        try:
            figures.append(float(all(check(rule["func"], answer.text, rule["params"]) for rule in rules)))
        except UnknownRule:
            figures.append(None)
    return figures


def _belongs_to(row: Row) -> tuple[str, str] | None:
    """(id of the row, name of the constraint) whose answer is compared with this row's; None for a row of its own.

    A further row that does not tell where it belongs is one of its own, which is then counted as not usable.
    """
    if row.get("infer_type", _MAIN) == _MAIN or row.get("id") is None or row.get("del_cons") is None:
        return None
    return str(row["id"]), str(row["del_cons"])


BENCHMARKS = (
    Benchmark(
        name="mmifeval",
        row="MMIFEval",
        category="Captioning & IF",
        source=Source("lscpku/MMIFEval", "test", base64=True),
        prompt=_prompt,
        kind=AnswerKind.LONG,
        extraction=Mode.UNWRAPPED,
        judge=Judge(_judge, _read, max_new_tokens=4_096, pictures=True),
        belongs_to=_belongs_to,
    ),
)
