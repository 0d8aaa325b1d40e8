"""What the benchmarks share that ask a judge whether an answer is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vero_jax.evaluation.benchmark import Answer, Judge, Row
from vero_jax.evaluation.judging import yes_or_no
from vero_jax.evaluation.score import UNJUDGED, Score


def verdict_judge(
    prompt: Callable[[Answer, Row], str], group: Callable[[Row], str] = lambda row: "", *, truth_values: bool = True
) -> Judge:
    """A judge that is asked once and says yes or no.

    A reply that can't be read is wrong in the reference's figure and unjudged in the strict one.

    Args:
      truth_values: "true" and "false" in text are verdicts, too.
    """

    def read(replies: Sequence[str | None], answer: Answer, row: Row) -> Score:
        if replies[0] is None:
            return UNJUDGED
        verdict = yes_or_no(replies[0], truth_values=truth_values)
        if verdict is None:
            return Score(0.0, None, answer.text, group(row), missing="unjudged")
        return Score(float(verdict), float(verdict), answer.text, group(row))

    return Judge(lambda answer, row: [prompt(answer, row)], read)
