"""Which answers the judge is asked about, and how often a behaviour is present in them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from scipy.stats import binomtest

from vero_jax.evaluation.behaviours.behaviour import Behaviour
from vero_jax.evaluation.behaviours.traces import Input, Trace

SEED = 42
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
    others. Which ones depends on the questions' ids alone: inputs with the same questions are judged on the same.

    Args:
      per_domain: at most this many of each domain, spread evenly over its benchmarks; None: no limit.
    """
    groups: dict[str, dict[str, dict[str, Trace]]] = {}
    for trace in sorted(found.traces, key=lambda trace: trace.sample):
        if trace.text.strip():
            # A run's validation questions are a sample of its data already, in the shares of its sources.
            benchmark = trace.benchmark if found.kind == "results" else ""
            groups.setdefault(trace.domain, {}).setdefault(benchmark, {}).setdefault(trace.id, trace)
    picked: list[Trace] = []
    for benchmarks in groups.values():
        least = min(len(traces) for traces in benchmarks.values())
        ranked = [
            (rank, _draw(benchmark), trace)
            for benchmark, traces in benchmarks.items()
            for rank, trace in enumerate(_shuffled(traces.values())[:least])
        ]
        ranked.sort(key=lambda entry: entry[:2])
        picked += [trace for _, _, trace in ranked[:per_domain]]
    return picked


def _shuffled(traces: Iterable[Trace]) -> Sequence[Trace]:
    return sorted(traces, key=lambda trace: (_draw(f"{trace.benchmark}/{trace.id}"), trace.id))


def _draw(text: str) -> str:
    """A random number that depends on the seed and the text alone, the same on every machine."""
    return hashlib.sha256(f"{SEED}:{text}".encode("utf-8", "replace")).hexdigest()
