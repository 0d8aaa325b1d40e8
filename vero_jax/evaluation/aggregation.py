"""From the scores of a benchmark's answers to its figures. The main one is called "score"."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

from vero_jax.evaluation.score import Score

Figures: TypeAlias = dict[str, float]
Aggregator: TypeAlias = Callable[[Sequence[Score], bool], Figures]
"""(scores, strict): reads the strict figures, or the reference's. Answers without a figure count nowhere."""


def mean(scores: Sequence[Score], strict: bool, digits: int | None = None) -> Figures:
    """The mean over all answers, and the means of groups and of further parts; 0 without any answer."""
    kept = _figures(scores, strict)
    figures = {"score": _mean([value for value, _ in kept])}
    for name, values in _by_group(kept).items():
        if name:
            figures[name] = _mean(values)
    parts: dict[str, list[float]] = defaultdict(list)
    for _, score in kept:
        for name, value in score.parts.items():
            parts[name].append(value)
    figures |= {name: _mean(values) for name, values in parts.items()}
    return {name: round(value, digits) for name, value in figures.items()} if digits is not None else figures


def rounded(digits: int) -> Aggregator:
    """`mean`, rounded."""
    return functools.partial(mean, digits=digits)


def mean_of_groups(scores: Sequence[Score], strict: bool) -> Figures:
    """The plain mean of the groups' means, however many answers each has."""
    groups = {name: _mean(values) for name, values in _by_group(_figures(scores, strict)).items()}
    return {"score": _mean(list(groups.values())), **groups}


def micro_and_macro(scores: Sequence[Score], strict: bool) -> Figures:
    """The mean over all answers, and beside it ("macro") that of the groups' means; negative figures count nowhere."""
    kept = [(value, score) for value, score in _figures(scores, strict) if value >= 0]
    groups = {name: _mean(values) for name, values in _by_group(kept).items()}
    return {"score": _mean([value for value, _ in kept]), "macro": _mean(list(groups.values())), **groups}


def attempts(scores: Sequence[Score], strict: bool) -> Figures:
    """Shares of right, wrong and not attempted answers, accuracy of attempts, F1 (Wei et al. 2024, "SimpleQA")."""
    kept = [score for _, score in _figures(scores, strict)]
    shares = {
        name: _mean([score.parts.get(name, 0.0) for score in kept]) for name in ("right", "wrong", "not attempted")
    }
    attempted = shares["right"] + shares["wrong"]
    accuracy = shares["right"] / attempted if attempted else 0.0
    total = accuracy + shares["right"]
    f1 = 2 * accuracy * shares["right"] / total if total else 0.0
    main = round(shares["right"], 4)
    return {"score": main, **shares, "attempted": attempted, "accuracy of attempts": accuracy, "f1": f1}


def _figures(scores: Sequence[Score], strict: bool) -> list[tuple[float, Score]]:
    found = [(score.strict if strict else score.value, score) for score in scores]
    return [(value, score) for value, score in found if value is not None]


def _by_group(kept: Sequence[tuple[float, Score]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for value, score in kept:
        groups[score.group].append(value)
    return dict(sorted(groups.items()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
