"""What the benchmarks share whose answer is the letter of an option."""

from __future__ import annotations

from collections.abc import Sequence

from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.letters import generic_letter, place_labels, strict_letter


def letter_score(text: str, truth: str, labels: str, options: Sequence[object] = (), group: str = "") -> Score:
    """Right if the answer's letter is the truth's.

    Args:
      text: the extracted answer.
      truth: a letter.
      labels: of the options, as the reference labels them; "" where it knows none.
      options: their texts, in order.
    """
    found = generic_letter(text, labels, options)
    strict = strict_letter(text, place_labels(len(options)) if options else labels, options)
    return right(found == truth, strict == truth, found, group)
