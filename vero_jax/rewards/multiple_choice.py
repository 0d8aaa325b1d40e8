"""Letters of options: reward type multiple_choice."""

from __future__ import annotations

import functools
import string

from vero_jax.rewards import math_text
from vero_jax.rewards.string_match import string_match


def multiple_choice(prediction: str, truth: str) -> float:
    """1 if the prediction equals the truth's letter; a truth without a letter of its own is compared as it is."""
    return string_match(prediction, truth_letter(truth))


@functools.lru_cache(maxsize=256)
def truth_letter(truth: str) -> str:
    """The capital letter that stands alone in a truth ("B", "Answer: B."), in lower case; else the truth."""
    found = math_text.extract(truth, math_text.letter_targets(string.ascii_uppercase))
    return str(found[0]) if found else truth
