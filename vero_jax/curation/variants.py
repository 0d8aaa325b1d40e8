"""Lists of accepted answers, as several annotators gave them: are they one answer, and which spellings of it stay?"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vero_jax.curation.quantities import quantity
from vero_jax.rewards.string_match import normalise

if TYPE_CHECKING:
    from vero_jax.curation.answers import AnswerSettings, Canonical, Kind

_CLOSED_WORDS = frozenset({"yes", "no", "true", "false"})
_ALIKE = 0.8
"""Share of equal characters (difflib's ratio) from which two texts are spellings of one."""
_STEM = 4
"""Letters from which a text that begins another one counts as its stem."""

INCONSISTENT = "inconsistent answers"
TOO_MANY = "too many answers"
NO_HEAD = "no dominant answer"
NOTHING_LEFT = "no usable answer in the list"
ONE_ANSWER = "one answer in the list"


def canonical_variants(
    texts: Sequence[str], single: Callable[[str], Canonical], settings: AnswerSettings
) -> tuple[Kind, str, str]:
    """(kind, ground truth, reason) of a list of accepted texts, repeated as often as they were given.

    Where most are closed answers (numbers, yes or no), all must agree, in at most `max_closed` spellings. Any other
    list may have `max_open` different texts, and its largest cluster of like texts must hold `min_head` of them all;
    only that cluster stays, because what stands outside may be another annotator's mistake.

    Args:
      texts: what is accepted.
      single: what the rules make of one text.
      settings: the limits.
    """
    read = _with_number_words([single(text) for text in texts])
    unusable = Counter(one.reason for one in read if one.kind == "none")
    if sum(unusable.values()) * 2 >= len(read):
        return "none", "", unusable.most_common(1)[0][0] if unusable else NOTHING_LEFT
    usable = [one for one in read if one.kind != "none"]
    closed = [one for one in usable if one.kind == "numeric" or normalise(one.value) in _CLOSED_WORDS]
    if len(closed) * 2 > len(usable):
        values = {one.value if one.kind == "numeric" else normalise(one.value) for one in read}
        if len(values) != 1 or len({text.strip() for text in texts}) > settings.max_closed:
            return "none", "", INCONSISTENT
        return closed[0].kind, closed[0].value, ONE_ANSWER
    values_in_order = [one.value for one in usable]
    distinct = list(dict.fromkeys(values_in_order))
    if len(distinct) > settings.max_open:
        return "none", "", TOO_MANY
    head = _head(values_in_order)
    share = sum(value in head for value in values_in_order) / len(values_in_order)
    if share < settings.min_head:
        return "none", "", NO_HEAD
    kept = [value for value in distinct if value in head]
    if len({normalise(value) for value in kept}) == 1:
        return "string", Counter(value for value in values_in_order if value in head).most_common(1)[0][0], ONE_ANSWER
    return "list", str(kept), "" if len(kept) == len(texts) else "head of the list"


def _with_number_words(read: Sequence[Canonical]) -> list[Canonical]:
    """The same, with "two" as 2 where any of them is a number."""
    if all(one.kind != "numeric" for one in read):
        return list(read)
    found = []
    for one in read:
        number = quantity(one.value, loose=True) if one.kind == "string" else None
        found.append(one if number is None else dataclasses.replace(one, kind="numeric", value=number.text))
    return found


def _head(values: Sequence[str]) -> frozenset[str]:
    """The texts of the cluster that holds the most of `values`; the first of several."""
    weights = Counter(values)
    clusters: list[list[str]] = []
    for value in weights:
        joined = [cluster for cluster in clusters if any(alike(value, other) for other in cluster)]
        clusters = [cluster for cluster in clusters if cluster not in joined]
        clusters.append([*(text for cluster in joined for text in cluster), value])
    best = max(clusters, key=lambda cluster: sum(weights[value] for value in cluster))
    return frozenset(best)


def alike(one: str, other: str) -> bool:
    """Whether two texts can be spellings of one answer: equal words, one within the other, or nearly equal letters."""
    first, second = normalise(one).split(), normalise(other).split()
    if not first or not second:
        return False
    if set(first) <= set(second) or set(second) <= set(first) or "".join(first) == "".join(second):
        return True
    one, other = " ".join(first), " ".join(second)
    if min(len(one), len(other)) >= _STEM and (one.startswith(other) or other.startswith(one)):
        return True
    matcher = difflib.SequenceMatcher(None, one, other)
    return matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE
