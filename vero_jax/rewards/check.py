"""Tries rewards on a file of responses: `python -m vero_jax.rewards.check my_rewards.py:score --data answers.jsonl`.

Prints scores, speed and failures. Without a function, Vero's own verifiers score the file. Every line is one JSON
object with a response and what it answers; the names of verl, Vero's rows and vero_jax's validation files will do:

    response         "response", "solution_str", "output", "completion"; or a list "responses"
    ground truth     "ground_truth", "gold", or "ground_truth" in "reward_model"
    the rest         "data_source" or "source"; "reward_type"; "extra_info"; "response_length"
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError, friendly
from vero_jax.rewards.functions import NoScore, Scorer, make_scorer
from vero_jax.rewards.settings import RewardItem, RewardSettings, RuleScore, weighted_targets

RESPONSE_KEYS = ("response", "solution_str", "output", "completion")
_WIDTH = 100
_TRACEBACK_LINES = 8


@dataclass(frozen=True)
class Result:
    """What came of one response: a score, no score (`missing` says why), or a failure."""

    line: int
    item: RewardItem | None
    seconds: float
    score: RuleScore | None = None
    missing: str = ""
    failure: str = ""
    """Traceback, shortened, of what the function raised; or what is wrong with the line."""

    @property
    def source(self) -> str:
        if self.item is None:
            return "(unreadable)"
        return self.item.data_source or self.item.reward_type or "(no source)"


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 1 if any line failed, else 0."""
    options = _parser().parse_args(argv)
    settings = RewardSettings(
        functions=weighted_targets(options.functions),
        strict_reference=options.strict_reference,
        coordinates=options.coordinates,
    )
    if options.timeout <= 0:
        raise UserError(f"--timeout is {options.timeout}: it must be more than 0 seconds")
    scorer = make_scorer(settings)
    results = list(check(scorer, options.data, timeout_s=options.timeout, limit=options.limit))
    if not results:
        raise UserError(f"{options.data} holds no line: give a JSONL file with one response a line")
    print("\n".join(report(results, options.show)))
    if options.out is not None:
        write_scores(results, options.out)
        print(f"scores written to {options.out}")
    return int(any(result.failure for result in results))


def check(scorer: Scorer, data: Path, *, timeout_s: float = 5.0, limit: int | None = None) -> Iterator[Result]:
    """Scores every response in a file.

    Raises UserError where the file can't be read, or where no line of it has a response.
    """
    usable, first = False, ""
    for number, line, problem in _lines(data, limit):
        items, why = ([], problem) if problem else read_items(line)
        usable |= bool(items)
        first = first or f"line {number}: {why}"
        if not items:
            yield Result(number, None, 0.0, failure=f"line {number}: {why}")
        for item in items:
            yield _scored(scorer, number, item, timeout_s)
    if not usable and first:
        raise UserError(f"{data} has no usable line; {first}")


def read_items(row: Mapping[str, Any]) -> tuple[list[RewardItem], str]:
    """The responses of a row, with what they answer; or none, and what is missing."""
    responses = row.get("responses")
    if not isinstance(responses, list):
        responses = [row[key] for key in RESPONSE_KEYS if row.get(key) is not None][:1]
    texts = [_text_of(response) for response in responses]
    if not texts or not all(isinstance(text, str) for text in texts):
        keys = ", ".join(list(row)[:8]) or "none"
        return [], f"no response: one of {', '.join(RESPONSE_KEYS)} must hold its text (keys: {keys})"
    extra = row.get("extra_info")
    if isinstance(extra, str):
        with contextlib.suppress(ValueError):
            extra = json.loads(extra)
    extra = extra if isinstance(extra, Mapping) else {}
    model = row.get("reward_model")
    truth = row.get("ground_truth", row.get("gold", model.get("ground_truth") if isinstance(model, Mapping) else None))
    return [
        RewardItem(
            response=str(text),
            # Words stand for tokens where nobody counted those.
            response_length=int(row.get("response_length") or len(str(text).split())),
            ground_truth="" if truth is None else truth,
            reward_type=str(row.get("reward_type") or extra.get("reward_type") or ""),
            extra_info=extra,
            data_source=str(row.get("data_source") or row.get("source") or ""),
        )
        for text in texts
    ], ""


def report(results: Sequence[Result], show: int = 3) -> list[str]:
    """The lines to print: a table by source, further numbers, the first scores, the slowest, the first failures."""
    by_source: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_source[result.source].append(result)
    names = [*by_source, *(["all"] if len(by_source) > 1 else [])]
    width = max(map(len, [*names, "source"]))
    lines = [f"{'source':{width}}{'n':>7}{'mean':>9}{'missing':>9}{'failed':>8}{'ms p50':>9}{'ms p95':>9}"]
    lines += [_row(name, by_source.get(name, results), width) for name in names]
    scored = [result for result in results if result.score is not None]
    total = sum(result.seconds for result in results)
    lines += ["", f"{len(results) / max(total, 1e-9):,.0f} scores/s in one process"]
    extras: dict[str, list[float]] = defaultdict(list)
    for result in scored:
        for name, value in result.score.extras.items() if result.score else ():
            extras[name].append(value)
    if extras:
        lines += ["", "further numbers (means)", *(f"  {k}: {statistics.fmean(v):.4g}" for k, v in extras.items())]
    lines += _section("first scores", [_shown(result) for result in scored[:show]])
    slowest = sorted(results, key=lambda result: -result.seconds)[:show]
    lines += _section("slowest", [f"{1e3 * result.seconds:9.1f} ms  {_shown(result)}" for result in slowest])
    reasons = Counter(result.missing for result in results if result.missing)
    lines += _section("missing", [f"{count} x {reason}" for reason, count in reasons.most_common(show)])
    failures = [result.failure for result in results if result.failure]
    lines += _section(f"failures ({len(failures)}, the first of them)" if failures else "", failures[:show])
    return lines


def write_scores(results: Sequence[Result], file: Path) -> None:
    """One JSON line for every response: line, score, accuracy, format, extras, missing."""
    with file.open("w", encoding="utf-8") as out:
        for result in results:
            score = result.score
            values = {} if score is None else {"score": score.score, "accuracy": score.accuracy, "format": score.format}
            extras = {} if score is None or not score.extras else {"extras": dict(score.extras)}
            reason = result.missing or (result.failure.strip().splitlines() or [""])[-1]
            missing = {"missing": reason} if reason else {}
            out.write(json.dumps({"line": result.line, "source": result.source} | values | extras | missing) + "\n")


def _parser() -> argparse.ArgumentParser:
    about, _, details = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m vero_jax.rewards.check",
        description=about,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("functions", nargs="*", metavar="file.py:name[=weight]", help="as in reward.functions")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSONL, one response a line")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N lines")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="scores, slow ones and failures to print")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for one response")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all scores there, as JSONL")
    parser.add_argument("--coordinates", choices=("pixels", "normalized_1000"), default="normalized_1000")
    parser.add_argument("--strict-reference", action="store_true", help="as reward.strict_reference")
    return parser


def _lines(data: Path, limit: int | None) -> Iterator[tuple[int, dict[str, Any], str]]:
    """(number, object, problem) of every line that is not blank."""
    try:
        with data.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and number > limit:
                    return
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, {}, f"not JSON: {error}"
                    continue
                yield number, row if isinstance(row, dict) else {}, "" if isinstance(row, dict) else "not a JSON object"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--data {data} can't be read: {error}") from error


def _text_of(response: Any) -> Any:
    """The text of a response, also where it is a list of chat messages."""
    if isinstance(response, list) and response and isinstance(response[-1], Mapping):
        return response[-1].get("content")
    return response


def _scored(scorer: Scorer, number: int, item: RewardItem, timeout_s: float) -> Result:
    start = time.perf_counter()
    try:
        with _deadline(timeout_s):
            score = scorer(item)
    except NoScore as error:
        return Result(number, item, time.perf_counter() - start, missing=str(error))
    except _TooSlow:
        return Result(number, item, time.perf_counter() - start, failure=f"line {number}: timeout after {timeout_s} s")
    except Exception as error:
        return Result(number, item, time.perf_counter() - start, failure=f"line {number}:\n{_shortened(error)}")
    return Result(number, item, time.perf_counter() - start, score=score)


class _TooSlow(BaseException):
    """Not an Exception, so that no handler of the user's function takes it."""


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends the body after `seconds`; in the main thread only, as signals are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise _TooSlow

    handler = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def _shortened(error: Exception) -> str:
    """The end of a traceback, from the user's own code on."""
    ours = str(Path(__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    text = "".join(traceback.format_list(frames)) + "".join(traceback.format_exception_only(error))
    lines = text.rstrip().splitlines()
    if len(lines) > _TRACEBACK_LINES:
        lines = ["  ...", *lines[-_TRACEBACK_LINES:]]
    return "\n".join("  " + line[:_WIDTH] for line in lines)


def _row(name: str, results: Sequence[Result], width: int) -> str:
    scores = [result.score.score for result in results if result.score is not None]
    times = sorted(1e3 * result.seconds for result in results)
    middle, late = times[len(times) // 2], times[min(int(0.95 * len(times)), len(times) - 1)]
    mean = f"{statistics.fmean(scores):9.4f}" if scores else f"{'-':>9}"
    missing = sum(bool(result.missing) for result in results)
    failed = sum(bool(result.failure) for result in results)
    return f"{name:{width}}{len(results):7}{mean}{missing:9}{failed:8}{middle:9.2f}{late:9.2f}"


def _shown(result: Result) -> str:
    text = "" if result.item is None else " ".join(result.item.response.split())
    text = text if len(text) <= 60 else text[:28] + " ... " + text[-28:]
    score = result.score
    value = (
        "no score"
        if score is None
        else f"score {score.score:.4f} accuracy {score.accuracy:.4f} format {score.format:g}"
    )
    return f"line {result.line}: {value}  {text}"


def _section(title: str, entries: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {entry}" for entry in entries)] if entries else []


if __name__ == "__main__":
    sys.exit(main())
