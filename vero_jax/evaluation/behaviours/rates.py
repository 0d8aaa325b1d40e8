"""Which answers the judge is asked about, and how often a behaviour is present in them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from scipy.stats import binomtest

from vero_jax.evaluation.behaviours.behaviour import Behaviour
from vero_jax.evaluation.behaviours.protocol import SEED
from vero_jax.evaluation.behaviours.traces import Input, Trace

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Rate:
    """How often a behaviour is present in the judged answers of one input to one domain."""

    trained_on: str
    evaluated_on: str
    behaviour: Behaviour
    present: int
    judged: int
    unjudged: int
    """Answers without a reply that could be read. They are in no rate."""

    @property
    def rate(self) -> float | None:
        """None where nothing was judged."""
        return self.present / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's interval of the rate, at 95 %."""
        if not self.judged:
            return None
        found = binomtest(self.present, self.judged).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)


def rate_of(trained_on: str, evaluated_on: str, behaviour: Behaviour, verdicts: Iterable[bool | None]) -> Rate:
    """Counts verdicts; None is an answer that was not judged."""
    counted = list(verdicts)
    judged = [verdict for verdict in counted if verdict is not None]
    return Rate(trained_on, evaluated_on, behaviour, sum(judged), len(judged), len(counted) - len(judged))


def chosen(found: Input, per_domain: int | None) -> list[Trace]:
    """The answers that are judged: the first sample of each question that has some text.

    In a results folder every benchmark gives as many as the smallest one of its category, so that none outweighs the
    others (arXiv 2604.04917v3, appendix D.2). The paper does not say which. Here the questions of a benchmark are
    ordered by the SHA-256 of the seed and their ids, and the first ones are taken: inputs with the same questions are
    judged on the same, and a smaller choice is part of a larger one.

    Args:
      per_domain: at most this many of each domain out of that choice, evenly over its benchmarks (where they do not
        divide, some give one more); None: no limit.
    """
    picked: list[Trace] = []
    for benchmarks in _questions(found).values():
        least = min(len(traces) for traces in benchmarks.values())
        ranked = [
            (rank, _draw(benchmark), trace)
            for benchmark, traces in benchmarks.items()
            for rank, trace in enumerate(_shuffled(traces)[:least])
        ]
        ranked.sort(key=lambda entry: entry[:2])
        picked += [trace for _, _, trace in ranked[:per_domain]]
    return picked


@dataclasses.dataclass(frozen=True)
class Taken:
    """How many answers of an input to a benchmark are judged."""

    trained_on: str
    evaluated_on: str
    benchmark: str
    """"" stands for the validation of a run."""
    questions: int
    """With an answer that has some text."""
    judged: int


def taken(found: Input, picked: Sequence[Trace]) -> list[Taken]:
    """What `chosen` took, by domain and benchmark."""
    counts = Counter(_unit(found, trace) for trace in picked)
    return [
        Taken(found.trained_on, domain, benchmark, len(traces), counts[domain, benchmark])
        for domain, benchmarks in _questions(found).items()
        for benchmark, traces in benchmarks.items()
    ]


def _unit(found: Input, trace: Trace) -> tuple[str, str]:
    """The domain and, within it, what must not outweigh others."""
    # A run's validation questions are a sample of its data already, in the shares of its sources.
    return trace.domain, trace.benchmark if found.kind == "results" else ""


def _questions(found: Input) -> dict[str, dict[str, list[Trace]]]:
    """The first sample of each question that has some text, by domain and benchmark."""
    groups: dict[str, dict[str, dict[str, Trace]]] = {}
    for trace in sorted(found.traces, key=lambda trace: trace.sample):
        if trace.text.strip():
            domain, benchmark = _unit(found, trace)
            groups.setdefault(domain, {}).setdefault(benchmark, {}).setdefault(trace.id, trace)
    return {
        domain: {benchmark: list(traces.values()) for benchmark, traces in benchmarks.items()}
        for domain, benchmarks in groups.items()
    }


def _shuffled(traces: Iterable[Trace]) -> Sequence[Trace]:
    return sorted(traces, key=lambda trace: (_draw(f"{trace.benchmark}/{trace.id}"), trace.id))


def _draw(text: str) -> str:
    """A random number that depends on the seed and the text alone, the same on every machine."""
    return hashlib.sha256(f"{SEED}:{text}".encode("utf-8", "replace")).hexdigest()
