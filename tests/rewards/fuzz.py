"""A search for answers that make a verifier slow, raise, or give two scores: `python -m tests.rewards.fuzz`.

An answer is drawn as a recipe, pieces with how often each is repeated, so that a find is one short line. hypothesis is
told the time of every call and goes where it grows; `--samples` draws that many instead, the same ones every time.
Finds belong into hostile.py.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from tests.rewards.hostile import ARGUMENTS, LONGEST
from vero_jax.rewards.instructions.checker import CHECKS
from vero_jax.rewards.router import VERIFIERS, score_response
from vero_jax.rewards.settings import RewardSettings

SLOW_S = 1.0
"""Processor time that is a find."""
STUCK_S = 90.0
"""Seconds after which a call is taken for one that never ends; the search stops and names it."""

# fmt: off
PIECES = (
    "0", "1", "5", "9", "12", "007", "1.5", ".5", "5.", "1,000", "1e9", "1e-3", "0x2A", "1_000", "5%", "50\\%", "$5",
    "-", "+", "*", "**", "/", "//", "^", "^{", "!", "(", ")", "[", "]", "{", "}", "<", ">", "<<", ">>", "=", "==",
    "\\neq", ",", ";", ":", ".", "?", "'", '"', "`", "```", "```json\n", "~", "_", "|", "&", "#", "@", "$", "$$",
    "\\(", "\\)", "\\[", "\\]", "\\", "\\\\", " ", "\n", "\n\n", "\t", "\r", "\x0b", "\x1c", "\x85", "\xa0", "\u200b",
    "\u2212", "\xd7", "\u03c0", "\xbd", "\u0661", "\u0301", "\ufdfa", "\U0001f600", "\u4f60", "\ud800", "\x00",
    "\ufeff", "a", "A", "B.", "x", "y", "i", "e", "I", "the", "word", "Mr.", "e.g.", "No.", "p.s.", "P.P.S", "can't",
    "and", "or", "answer", "answer:", "final answer is", "final answer is: ", "I hope", "is", "percent", "\\frac",
    "\\frac{1}{2}", "\\dfrac12", "\\sqrt", "\\sqrt[3]{", "\\pi", "\\infty", "\\cdot", "\\times", "\\div", "\\pm",
    "\\left(", "\\right)", "\\text{", "\\text{ cm}", "\\mathrm{", "\\boxed", "\\boxed{", "\\boxed[",
    "\\sum_{i=1}^{9}", "\\int_0^1", "\\lim_{x\\to 0}", "\\log", "\\sin", "\\binom{9}{5}", "\\begin{matrix}",
    "\\end{matrix}", "\\begin{cases}", "\\cup", "\\in", "\\{", "\\}", "\\%", "\\$", "^\\circ", "\\quad", "<think>",
    "</think>", "<answer>", "</answer>", '{"bbox_2d": [0, 0, 5, 5]}', '"bbox_2d":', "[0, 0, 5, 5]",
    '{"point_2d": [3, 4]}', "null", "true", "NaN", "1e999", "-1", '{"ACTION": "CLICK", "MARK": 1}', '"VALUE":', "'",
    "set()", "lambda x: x", "__import__('os')", "...", "***", "******", "* ", "- ", "*a*", "**b**", "[x]",
    '<points coords="', '<points x="1" coords="1 1 100 200;', '"/>', "1 100 200", "<tracks ", '{"results": [',
    '{"x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4}', '{"instructions": [', '{"class": "CommaChecker"}',
    "Rational(1,2)", "sqrt(4)",
)
# fmt: on

_LONG = st.sampled_from((200, 2_000, 20_000, 100_000))
_COUNTS = st.one_of(st.just(1), st.just(1), st.integers(1, 4), st.integers(1, 4), st.integers(1, 60), _LONG)
_SOUP = st.lists(st.tuples(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join), _COUNTS), max_size=6)
_NUMBERS = st.lists(st.sampled_from(PIECES[:45]), max_size=14).map(lambda pieces: [(piece, 1) for piece in pieces])
RECIPES = st.one_of(_SOUP, _NUMBERS, st.text(max_size=60).map(lambda text: [(text, 1)]))
FRAMES = (
    "{}",
    "<think>x</think><answer>{}</answer>",
    "<think>x</think><answer>\\boxed{{{}}}</answer>",
    "\\boxed{{${}$}}",
)
KINDS = (*VERIFIERS, "", "ordering", "instruction_following", "numeric", "numeric", "")
EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {"tolerance": 0.05},
    {"tolerance": "inf"},
    {"image_sizes": [[640, 480]]},
    {"image_sizes": [[640, 480]], "normalize_bbox_to_1000": True},
    {"image_sizes": [[640, 480]], "model_family": "molmo2"},
)
TRUTHS = ("5", "0.5", "\\frac{1}{2}", "$x^2+1$", "B", "word", "1, 2, 3", "['a', 'b']", '[{"bbox_2d": [0, 0, 5, 5]}]')


def text_of(recipe: list[tuple[str, int]]) -> str:
    """The text of a recipe, at most LONGEST characters."""
    text = ""
    for piece, count in recipe:
        room = LONGEST - len(text)
        text += piece * min(count, room // max(len(piece), 1))
    return text


@st.composite
def samples(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe, its frame, and the row that it answers; some truths are drawn like answers."""
    kind = draw(st.sampled_from(KINDS))
    truth: Any = draw(st.one_of(st.sampled_from(TRUTHS).map(lambda text: [(text, 1)]), RECIPES))
    if kind.startswith("instruction"):
        name = draw(st.sampled_from(sorted(CHECKS)))
        truth = [(json.dumps({"instructions": [{"class": name, "args": ARGUMENTS}]}), 1)]
    return {
        "recipe": draw(RECIPES),
        "frame": draw(st.sampled_from(FRAMES)),
        "kind": kind,
        "truth": truth,
        "extra": draw(st.sampled_from(EXTRAS)),
        "strict": draw(st.booleans()),
    }


def problem(sample: dict[str, Any], slow_s: float = SLOW_S) -> tuple[str | None, float]:
    """What is wrong with the score of a sample, or None; and its seconds of processor time."""
    text = sample["frame"].format(text_of(sample["recipe"]))
    truth, settings = text_of(sample["truth"]), RewardSettings(strict_reference=sample["strict"])
    start = time.process_time()
    try:
        score = score_response(text, truth, sample["kind"], sample["extra"], settings=settings)
        seconds = time.process_time() - start
        again = (
            score_response(text, truth, sample["kind"], sample["extra"], settings=settings) if seconds < 0.1 else score
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200], time.process_time() - start
    if not (math.isfinite(score.score) and 0 <= score.accuracy <= 1 and 0 <= score.score <= 1):
        return f"the score is {score}", seconds
    if score != again:
        return f"two scores: {score}, {again}", seconds
    return (f"{seconds:.2f} s" if seconds > slow_s else None), seconds


def search(seconds: float, slow_s: float, last: Path, count: int = 0, report: Any = print) -> int:
    """Tries samples for `seconds`, or exactly `count` of them; reports every find, returns how many it tried.

    The file `last` holds the sample in hand.
    """
    end, tried, found = time.monotonic() + seconds, 0, set()
    phases = [hypothesis.Phase.generate]
    if not count:
        phases.append(hypothesis.Phase.target)

    def over() -> bool:
        return tried >= count if count else time.monotonic() > end

    def run(seed: int) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=300,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=phases,
        )
        @hypothesis.given(samples())
        def one(sample: dict[str, Any]) -> None:
            nonlocal tried
            if over():
                return
            with watched(sample, last):
                wrong, took = problem(sample, slow_s)
            if not count:
                hypothesis.target(took, label="seconds")
            tried += 1
            key = (
                sample["kind"],
                wrong if wrong and not wrong.endswith(" s") else bool(wrong),
                str(sample["recipe"])[:20],
            )
            if wrong and key not in found:
                found.add(key)
                report(f"{wrong}: {json.dumps(sample)[:600]}")

        one()

    for seed in range(sys.maxsize):
        if over():
            break
        run(seed)
    return tried


@contextlib.contextmanager
def watched(sample: dict[str, Any], last: Path) -> Iterator[None]:
    """Ends the process where the body takes more than STUCK_S: the standard error has the stack, `last` the sample.

    A thread of C does it, which waits for nothing that Python holds: the body may be one call that never comes back.
    """
    last.write_text(json.dumps(sample))
    faulthandler.dump_traceback_later(STUCK_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--samples", type=int, default=0, help="this many samples, always the same, instead of seconds")
    parser.add_argument("--slow", type=float, default=SLOW_S, help="seconds of one score that are a find")
    parser.add_argument("--last", type=Path, default=Path("fuzz_last.json"), help="file for the sample in hand")
    options = parser.parse_args()
    tried = search(options.seconds, options.slow, options.last, options.samples, lambda line: print(line, flush=True))
    options.last.unlink(missing_ok=True)
    print(f"{tried:,} samples tried")


if __name__ == "__main__":
    main()
