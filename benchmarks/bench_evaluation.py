"""Speed of the benchmarks' scorers on one core: 10,000 answers, and the longest hostile ones.

    python benchmarks/bench_evaluation.py
    python benchmarks/bench_evaluation.py --hostile

The answers are those of the golden cases that rules score (in the folder that VERO_JAX_SHARED names, else in
tests/golden), each changed a little so that none is met twice; and long ones without tags and boxes, whose whole text
must be searched. The times are seconds of processor time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.evaluation.golden_eval import Case, cases, is_ruled, task
from tests.evaluation.hostile_texts import MORE_ANSWERS, ruled_rows
from tests.rewards.hostile import HOSTILE_ANSWERS
from vero_jax.evaluation.benchmark import Benchmark, Row
from vero_jax.evaluation.registry import all_benchmarks
from vero_jax.evaluation.variants import VARIANTS

KINDS = {"golden": 0.8, "5,000": 0.15, "30,000": 0.05}
"""Share of the golden answers, and of those of so many characters."""
_SENTENCES = (
    "The chart shows {} units in 2019 and 12.5% fewer, 1,200, in 2020. ",
    "I compare option A with option (B): the {}th row reads \\frac{{3}}{{4}} of $x^2 + {}$. ",
    "So the red bus at [12, {}, 40, 96] stands left of the car, and there are seven or eight people. ",
    "Wait, the answer is not {}; let me look again at the label below the third bar. ",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--hostile", action="store_true", help="also every hostile answer to every benchmark")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    figures: dict[str, Any] = {"benchmarks": speeds(options.answers)}
    kinds = "".join(f"{f'ms, {kind}':>13}" for kind in KINDS)
    print(f"{'benchmark':22}{'answers':>9}{'seconds':>9}{kinds}{'worst ms':>11}")
    for name, row in figures["benchmarks"].items():
        means = "".join(f"{row['ms'].get(kind, float('nan')):13.2f}" for kind in KINDS)
        print(f"{name:22}{row['answers']:9,}{row['seconds']:9.2f}{means}{row['worst_ms']:11.1f}")
    if options.hostile:
        figures["hostile"] = hostile_seconds()
        print(f"\n{'hostile answer':30}{'slowest benchmark':>26}{'where':>12}{'seconds':>10}")
        for name, (benchmark, place, seconds) in sorted(figures["hostile"].items(), key=lambda item: -item[1][2]):
            print(f"{name:30}{benchmark:>26}{place:>12}{seconds:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def speeds(answers: int) -> dict[str, dict[str, Any]]:
    """Seconds and means by benchmark; "all" over everything."""
    by_benchmark: dict[str, list[Case]] = defaultdict(list)
    for case in cases("eval"):
        if is_ruled(case):
            by_benchmark[task(case).name].append(case)
    numbers = itertools.count(1)
    for case in [cases_of[0] for cases_of in by_benchmark.values()]:
        _seconds(task(case), str(case["response"]), case["doc"])  # what a first answer imports and builds
    work: dict[tuple[str, str], list[tuple[str, Row]]] = defaultdict(list)
    for kind, share in KINDS.items():
        in_order = itertools.cycle(itertools.chain(*by_benchmark.values()))
        mixture = in_order if kind == "golden" else _evenly(by_benchmark)
        for case in itertools.islice(mixture, round(answers * share)):
            number = next(numbers)
            text = _changed(case, number) if kind == "golden" else long_answer(int(kind.replace(",", "")), number)
            work[task(case).name, kind].append((text, case["doc"]))
    table = {name: {kind: _timed(all_benchmarks()[name], work[name, kind]) for kind in KINDS} for name in by_benchmark}
    everything = {kind: [times[kind] for times in table.values()] for kind in KINDS}
    rows = {name: _row({kind: [times[kind]] for kind in KINDS}) for name, times in sorted(table.items())}
    return rows | {"all": _row(everything)}


def long_answer(length: int, number: int) -> str:
    """A text of reasoning without tags and boxes; each number makes another one."""
    sentences = (text.format(number + place, place) for place, text in enumerate(itertools.cycle(_SENTENCES)))
    text = ""
    while len(text) < length - 40:
        text += next(sentences)
    return f"{text[: length - 40]} So the final answer is {number}."


def hostile_seconds() -> dict[str, tuple[str, str, float]]:
    """For each hostile answer: the benchmark where it takes longest, whether in a box or as the whole text, seconds."""
    worst: dict[str, tuple[str, str, float]] = {}
    for name, text in {**HOSTILE_ANSWERS, **MORE_ANSWERS}.items():
        for (benchmark, row), place in itertools.product(ruled_rows(), ("box", "whole text")):
            answer = f"</think><answer>\\boxed{{{text}}}</answer>" if place == "box" else text
            took = _seconds(benchmark, answer, row)
            if took > worst.get(name, ("", "", -1.0))[2]:
                worst[name] = (benchmark.name, place, took)
    return worst


def _evenly(by_benchmark: dict[str, list[Case]]) -> Iterator[Case]:
    """Cases of all benchmarks in turn, for ever."""
    turns = [itertools.cycle(found) for found in by_benchmark.values()]
    while True:
        yield from (next(turn) for turn in turns)


def _changed(case: Case, number: int) -> str:
    """A case's answer with a number in its box, or in front of what has none."""
    text = str(case["response"])
    return text.replace("\\boxed{", f"\\boxed{{{number} ") if "\\boxed{" in text else f"{text} {number}"


def _seconds(benchmark: Benchmark, text: str, row: Row) -> float:
    start = time.process_time()
    benchmark.score(benchmark.answer(text, VARIANTS["reasoning"]), row)
    return time.process_time() - start


def _timed(benchmark: Benchmark, answers: Sequence[tuple[str, Row]]) -> tuple[int, float, float]:
    """(answers, seconds for all of them, seconds of the slowest). The clock may tick every few milliseconds only."""
    worst, start = 0.0, time.process_time()
    for text, row in answers:
        worst = max(worst, _seconds(benchmark, text, row))
    return len(answers), time.process_time() - start, worst


def _row(times: dict[str, list[tuple[int, float, float]]]) -> dict[str, Any]:
    """A line of the table; `times` by kind."""
    counts = {kind: sum(count for count, *_ in found) for kind, found in times.items()}
    seconds = {kind: sum(took for _, took, _ in found) for kind, found in times.items()}
    return {
        "answers": sum(counts.values()),
        "seconds": sum(seconds.values()),
        "ms": {kind: 1e3 * seconds[kind] / count for kind, count in counts.items() if count},
        "worst_ms": 1e3 * max(worst for found in times.values() for *_, worst in found),
    }


if __name__ == "__main__":
    main()
