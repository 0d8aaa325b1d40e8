"""How long answers are: words and tokens of the thinking part and of the whole answer, by domain."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from vero_jax.evaluation.behaviours.traces import Input, Trace, thinking

ALL = "all"
"""Stands for all domains together."""
MEASURES = ("thinking words", "answer words", "answer tokens")
"""Words are what white space and the tags of thinking and answer separate; the thinking part has no count of tokens."""

_TAG = re.compile(r"</?(?:think|answer)>")
Length = Callable[[Trace], "int | None"]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """One measure over the answers of one input to one domain; None where there is nothing to compute it from."""

    trained_on: str
    evaluated_on: str
    measure: str
    answers: int
    questions: int
    mean: float | None
    standard_error: float | None
    """Of the mean; answers to one question count as one cluster, so that samples do not pass for questions."""
    median: float | None
    p10: float | None
    p90: float | None
    cut: float | None
    """Share of the answers that the limit of new tokens ended."""
    right_answers: int
    right_mean: float | None
    wrong_answers: int
    wrong_mean: float | None


def lengths(found: Input, domains: Sequence[str]) -> list[Lengths]:
    """Every measure for every domain that has answers, and for all of them together."""
    tagged = any(thinking(trace.text) is not None for trace in found.traces)

    def words_of_thinking(trace: Trace) -> int | None:
        part = thinking(trace.text)
        if part is None and tagged and trace.cut:
            part = trace.text  # the limit came before the thinking ended
        return None if part is None else _words(part)

    ways: dict[str, Length] = {
        "thinking words": words_of_thinking,
        "answer words": lambda trace: _words(trace.text),
        "answer tokens": lambda trace: trace.tokens,
    }
    rows = []
    for domain in [*domains, ALL]:
        traces = [trace for trace in found.traces if domain in (trace.domain, ALL)]
        if traces:
            rows += [_measure(found.trained_on, domain, name, ways[name], traces) for name in MEASURES]
    return rows


def _measure(trained_on: str, domain: str, name: str, length: Length, traces: Sequence[Trace]) -> Lengths:
    pairs = [(trace, value) for trace in traces if (value := length(trace)) is not None]
    values = np.array([value for _, value in pairs], float)
    right = [value for trace, value in pairs if trace.right is True]
    wrong = [value for trace, value in pairs if trace.right is False]
    some = len(values) > 0
    median, p10, p90 = (float(value) for value in np.percentile(values, [50, 10, 90])) if some else (None, None, None)
    return Lengths(
        trained_on,
        domain,
        name,
        len(values),
        len({trace.id for trace, _ in pairs}),
        float(values.mean()) if some else None,
        _clustered_error(values, [trace.id for trace, _ in pairs]),
        median,
        p10,
        p90,
        float(np.mean([trace.cut for trace, _ in pairs])) if some else None,
        len(right),
        float(np.mean(right)) if right else None,
        len(wrong),
        float(np.mean(wrong)) if wrong else None,
    )


def _words(text: str) -> int:
    return len(_TAG.sub(" ", text).split())


def _clustered_error(values: np.ndarray, clusters: Sequence[str]) -> float | None:
    """Standard error of the mean over clusters; the usual one, s / sqrt(n), where each cluster has one value."""
    _, places = np.unique(np.array(clusters, object).astype(str), return_inverse=True)
    count = int(places.max()) + 1 if len(values) else 0
    if count < 2:
        return None
    sums = np.bincount(places, weights=values - values.mean())
    return float(math.sqrt(count / (count - 1) * (sums**2).sum()) / len(values))
