"""What a step reports of its rewards: by reward type and by source."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from vero_jax.types import Group, Score


def reward_metrics(groups: Iterable[Group]) -> dict[str, float]:
    """Figures of each reward type and source among the groups, under `reward/type/<name>/` and `reward/source/<name>/`.

    `mean` of the totals that there are, `missing` (share of responses without a score), `timeouts` (a count), and for
    sources `extra/<key>`, the mean of each further number that the user's own functions gave. How long the scores took
    is `timing_s/reward_p95/type/<name>` and `timing_s/reward_p95/source/<name>`, in seconds, given up ones included.
    """
    scores: dict[str, list[Score]] = defaultdict(list)
    for group in groups:
        example = group.prompt.example
        scores[f"type/{example.reward_type or 'none'}"] += group.scores
        scores[f"source/{example.source or 'none'}"] += group.scores
    metrics: dict[str, float] = {}
    for name in sorted(scores):
        found = scores[name]
        if not found:
            continue
        known = [score for score in found if score.missing is None]
        metrics[f"reward/{name}/mean"] = _mean([score.total for score in known])
        metrics[f"reward/{name}/missing"] = 1.0 - len(known) / len(found)
        metrics[f"reward/{name}/timeouts"] = float(sum("timeout" in (score.missing or "").lower() for score in found))
        taken = [score.latency_s for score in found if not math.isnan(score.latency_s)]
        if taken:
            metrics[f"timing_s/reward_p95/{name}"] = float(np.percentile(taken, 95))
        if name.startswith("source/"):
            metrics |= {f"reward/{name}/extra/{key}": value for key, value in _extras(known).items()}
    return metrics


def _extras(scores: Sequence[Score]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        for key, value in score.extras.items():
            values[key].append(value)
    return {key: _mean(values[key]) for key in sorted(values)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
