"""The difference of two evaluations over the same questions, and how sure it is: a paired bootstrap.

In: the scores of two checkpoints by question. A draw takes as many questions as there are, with repetition, and both
checkpoints' answers to them; the interval is that of the middle 95 % of the draws' differences (Efron's percentile
method).
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vero_jax.evaluation.aggregation import attempts, mean, mean_of_groups, micro_and_macro
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.score import Score

SLOW_DRAWS = 1_000
"""At most so many draws where an aggregator has to be called for each."""
LEVEL = 0.95
_BLOCK = 200_000
"""Questions drawn at once: arrays of 1.6 MB, which stay in a core's cache; larger ones take three times as long."""
_NOISE = 1e-9
"""On the published scale; a difference of rounding is none."""


@dataclasses.dataclass(frozen=True)
class Paired:
    """The questions of a task that two evaluations share: scores of all samples, in the same order of questions."""

    benchmark: Benchmark
    a: Sequence[Sequence[Score]]
    b: Sequence[Sequence[Score]]
    strict: bool = False


@dataclasses.dataclass(frozen=True)
class Difference:
    """b - a on the published scale."""

    a: float
    b: float
    draws: Float[np.ndarray, "N"]
    """The differences of the draws."""
    low: float
    high: float
    above: float
    """Share of the draws in which b is better."""

    @classmethod
    def of(cls, a: float, b: float, draws: Float[np.ndarray, "N"]) -> Difference:
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(a, b, draws, float(low), float(high), float(np.mean(draws > _NOISE)))

    @property
    def value(self) -> float:
        return self.b - self.a


def difference(task: Paired, draws: int, seed: int) -> Difference:
    """The difference of a task's figures.

    The draws depend on the seed and the task's name alone, not on what else is compared. Aggregators of
    `aggregation.py` are computed for all draws at once; others are called for each of at most `SLOW_DRAWS` draws.
    """
    rng = np.random.default_rng([seed, zlib.crc32(task.benchmark.name.encode())])
    sides = [_Sums.of(task, side) for side in (task.a, task.b)]
    if None in sides:
        return _called(task, min(draws, SLOW_DRAWS), rng)
    first, second = (side for side in sides if side is not None)
    count = len(task.a)
    every = np.ones((1, count))
    found = np.empty(draws)
    block = max(1, _BLOCK // count)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        weights = _weights(rng, size, count)
        found[start : start + size] = second.figures(weights) - first.figures(weights)
    a, b = (task.benchmark.published(float(side.figures(every)[0])) for side in (first, second))
    return Difference.of(a, b, found * task.benchmark.scale)


def mean_difference(parts: Sequence[Difference]) -> Difference:
    """The difference of the means of several figures, whose draws are independent of each other.

    Where one has fewer draws than the others, theirs are used again.
    """
    longest = max(len(part.draws) for part in parts)
    draws = np.mean([np.resize(part.draws, longest) for part in parts], axis=0)
    return Difference.of(float(np.mean([part.a for part in parts])), float(np.mean([part.b for part in parts])), draws)


def turned(task: Paired) -> tuple[int, int]:
    """(questions that b gets right and a does not, the other way round).

    Right is half of the full marks or more, in the mean of the samples.
    """
    half = task.benchmark.half_marks
    right = [
        (_marks(before, task.strict) >= half, _marks(after, task.strict) >= half)
        for before, after in zip(task.a, task.b, strict=True)
    ]
    return sum(after and not before for before, after in right), sum(before and not after for before, after in right)


def has_figure(scores: Sequence[Score], strict: bool) -> bool:
    """Whether any sample of a question counts."""
    return any((score.strict if strict else score.value) is not None for score in scores)


def _marks(scores: Sequence[Score], strict: bool) -> float:
    known = [value for score in scores if (value := score.strict if strict else score.value) is not None]
    return sum(known) / len(known) if known else 0.0


def _weights(rng: np.random.Generator, draws: int, count: int) -> Float[np.ndarray, "N Q"]:
    """How often each draw takes each question. Counting indices takes a third of a multinomial's time."""
    drawn = rng.integers(0, count, (draws, count), dtype=np.int32)
    drawn += (np.arange(draws, dtype=np.int32) * count)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Sums:
    """One side's answers, summed by question: enough to compute a figure that is a mean, or a mean of groups' means."""

    totals: Float[np.ndarray, "Q K"]
    """Sum of the figures of a question's answers, in the column of their group."""
    counts: Float[np.ndarray, "Q K"]

    @classmethod
    def of(cls, task: Paired, side: Sequence[Sequence[Score]]) -> _Sums | None:
        """None for an aggregator that is none of ours."""
        aggregate = task.benchmark.aggregate
        if isinstance(aggregate, functools.partial) and aggregate.func is mean:
            aggregate = mean  # its rounding would only blur the draws
        if aggregate not in (mean, mean_of_groups, micro_and_macro, attempts):
            return None
        grouped = aggregate is mean_of_groups
        names = {score.group if grouped else "" for scores in side for score in scores}
        columns = {name: index for index, name in enumerate(sorted(names))}
        totals, counts = np.zeros((2, len(side), max(1, len(columns))))
        for index, scores in enumerate(side):
            for score in scores:
                value = score.strict if task.strict else score.value
                if value is None or (aggregate is micro_and_macro and value < 0):
                    continue
                column = columns[score.group if grouped else ""]
                totals[index, column] += score.parts.get("right", 0.0) if aggregate is attempts else value
                counts[index, column] += 1
        return cls(totals, counts)

    def figures(self, weights: Float[np.ndarray, "N Q"]) -> Float[np.ndarray, "N"]:
        """The figure of each draw, on the answers' own scale. A group without an answer in a draw counts not."""
        totals, counts = weights @ self.totals, weights @ self.counts
        means = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)
        return means.sum(axis=1) / np.maximum((counts > 0).sum(axis=1), 1)


def _called(task: Paired, draws: int, rng: np.random.Generator) -> Difference:
    def figure(side: Sequence[Sequence[Score]], picked: Sequence[int] | Int[np.ndarray, "Q"]) -> float:
        scores = [score for index in picked for score in side[index]]
        return task.benchmark.published(float(task.benchmark.aggregate(scores, task.strict)["score"]))

    count = len(task.a)
    found = np.empty(draws)
    for index in range(draws):
        picked = rng.integers(0, count, count)
        found[index] = figure(task.b, picked) - figure(task.a, picked)
    return Difference.of(figure(task.a, range(count)), figure(task.b, range(count)), found)
