"""A reward worker, started by the pool as `python -m vero_jax.rewards.worker`: items in, scores out, never any jax.

It has its own entry, so that it does not import the program that started it. What a scorer prints goes to stderr, not
into the stream of answers. A worker whose parent is gone sees the end of its input and leaves; one that hangs at that
time is ended by a watchdog that does not need the interpreter.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import signal
import sys
from typing import Any, BinaryIO

from vero_jax.errors import UserError
from vero_jax.rewards.messages import encode, read_message
from vero_jax.rewards.settings import RewardItem, RewardSettings

START_MATH_SECONDS = 60.0
"""For the first formulas, which wait for most of sympy to be imported."""
WATCHDOG_FACTOR = 10
"""The worker ends itself after this many deadlines: only when nobody is left to end it."""


def main() -> int:
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    questions = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    # Ctrl-C and SIGTERM are the trainer's to handle; it closes our input when it leaves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return serve(questions, answers)
    except BrokenPipeError:
        return 0


def serve(questions: BinaryIO, answers: BinaryIO) -> int:
    """Answers questions until the input ends."""
    start = read_message(questions)
    if start is None:
        return 0
    # Imported after the first message, so that a failing import can be told.
    from vero_jax.rewards.custom import load_function
    from vero_jax.rewards.functions import NoScore, UnusableResult, make_scorer

    settings = RewardSettings(**start["settings"])
    try:
        for target in {settings.custom, *settings.custom_types.values()} - {""}:
            load_function(target)
        score = make_scorer(settings)
    except UserError as error:
        answers.write(encode({"user_error": str(error)}))
        return 0
    warm_up(settings)
    answers.write(encode({"ready": True}))
    watchdog = float(start["seconds"]) * WATCHDOG_FACTOR
    while (question := read_message(questions)) is not None:
        faulthandler.dump_traceback_later(watchdog, exit=True)
        try:
            rule = score(RewardItem(**question))
            answer: dict[str, Any] = {"score": [rule.score, rule.accuracy, rule.format, dict(rule.extras)]}
        except (NoScore, UnusableResult) as error:
            answer = {"missing": str(error)[:500]}
        except Exception as error:
            # A scorer's defect, or the user's: this sample has no score, the next one may.
            answer = {"missing": f"{type(error).__name__}: {error}"[:500]}
        faulthandler.cancel_dump_traceback_later()
        answers.write(encode(answer))
    return 0


def warm_up(settings: RewardSettings) -> None:
    """Loads what the first sample would otherwise wait for: sympy, its LaTeX grammar, language profiles."""
    from vero_jax.rewards.router import score_response

    frame = "<think>x</think><answer>{}</answer>"
    both = '{"instructions": [{"class": "ResponseLanguageChecker", "args": {"language": "en"}}]}'
    boxes = '[{"bbox_2d": [0, 0, 9, 9]}, {"bbox_2d": [20, 20, 40, 40]}]'
    size = {"image_sizes": [[64, 64]]}
    patient = dataclasses.replace(settings, math_seconds=START_MATH_SECONDS)
    score_response(frame.format("\\boxed{$x^2-1$}"), "$(x-1)(x+1)$", "numeric", {}, settings=patient)
    score_response(frame.format("\\boxed{$\\frac{1}{2}$}"), "$0.5x$", "numeric", {}, settings=patient)
    score_response(frame.format("A short English sentence."), both, "instruction_following", {}, settings=settings)
    score_response(frame.format(boxes), boxes, "grounding", size, settings=settings)


if __name__ == "__main__":
    sys.exit(main())
