"""Speed of the rule verifiers on one core: scores per second by reward type, and the longest hostile answers.

    python benchmarks/bench_rewards.py tests/golden/rewards
    python benchmarks/bench_rewards.py tests/golden/rewards --hostile

The folder holds the golden cases (golden_rewards*.jsonl, packed or not). "first/s" is the first time that each text
is seen, in a process that is warm as a reward worker is when it starts. All else is of texts seen before, as in the
answers of a group: the best of `--passes` passes for the rate, the best time of each case for the rest.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.rewards.golden_rewards import read_cases
from tests.rewards.hostile import HOSTILE_ANSWERS, hostile_rows
from vero_jax.rewards.router import VERIFIERS, score_response
from vero_jax.rewards.settings import RewardSettings
from vero_jax.rewards.worker import warm_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where golden_rewards*.jsonl lie")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--strict", action="store_true", help="with reward.strict_reference")
    parser.add_argument("--hostile", action="store_true", help="also every hostile answer under every reward type")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    settings = RewardSettings(strict_reference=options.strict)
    figures: dict[str, Any] = {"types": speeds(read_cases(options.folder, "rewards"), settings, options.passes)}
    print(f"{'type':34}{'n':>6}{'first/s':>11}{'scores/s':>11}{'median us':>11}{'p99 us':>10}{'max ms':>9}")
    for name, row in figures["types"].items():
        rates = f"{row['first_per_s']:11,.0f}{row['per_s']:11,.0f}"
        print(f"{name:34}{row['n']:6}{rates}{row['p50_us']:11.0f}{row['p99_us']:10.0f}{row['max_ms']:9.1f}")
    if options.hostile:
        figures["hostile"] = hostile_seconds(settings)
        print(f"\n{'hostile answer':34}{'slowest type':>34}{'seconds':>10}")
        for name, (kind, seconds) in figures["hostile"].items():
            print(f"{name:34}{kind:>34}{seconds:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def speeds(cases: list[dict[str, Any]], settings: RewardSettings, passes: int) -> dict[str, dict[str, float]]:
    """Rates and times by type; "numeric" is shown with and without a tolerance, "all" over everything."""
    warm_up(settings)
    seconds = np.full((1 + passes, len(cases)), np.inf)
    for row in range(1 + passes):
        for column, case in enumerate(cases):
            start = time.perf_counter()
            _score(case, settings)
            seconds[row, column] = time.perf_counter() - start
        gc.collect()
        gc.freeze()
    kinds: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        kinds[_kind(case)].append(index)
    table = {name: _row(seconds[:, kinds[name]]) for name in sorted(kinds)}
    table["all"] = _row(seconds)
    return table


def hostile_seconds(settings: RewardSettings) -> dict[str, tuple[str, float]]:
    """For each hostile answer: the reward type on which it takes longest, and its seconds of processor time."""
    worst: dict[str, tuple[str, float]] = dict.fromkeys(HOSTILE_ANSWERS, ("", 0.0))
    for row in hostile_rows():
        start = time.process_time()
        score_response(row.response, row.ground_truth, row.reward_type, row.extra_info, settings=settings)
        took = time.process_time() - start
        if took > worst[row.name][1]:
            worst[row.name] = (row.label, took)
    return worst


def _score(case: dict[str, Any], settings: RewardSettings) -> None:
    score_response(case["response"], case["ground_truth"], case["reward_type"], case["extra_info"], settings=settings)


def _kind(case: dict[str, Any]) -> str:
    name = str(case["reward_type"]).strip().lower()
    if name not in VERIFIERS:
        return "unknown/default"
    if name != "numeric":
        return name
    extra = case["extra_info"]
    return (
        "numeric (tolerance)" if isinstance(extra, dict) and extra.get("tolerance") is not None else "numeric (exact)"
    )


def _row(seconds: np.ndarray) -> dict[str, float]:
    first, later = seconds[0], seconds[1:]
    best, each = later.sum(axis=1).min(), later.min(axis=0)
    return {
        "n": each.size,
        "first_per_s": first.size / first.sum(),
        "per_s": each.size / best,
        "p50_us": float(np.median(each)) * 1e6,
        "p99_us": float(np.percentile(each, 99)) * 1e6,
        "max_ms": float(each.max()) * 1e3,
    }


if __name__ == "__main__":
    main()
