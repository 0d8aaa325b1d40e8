"""Verdicts on questions: from a model's reply to flags, and from the flags of several rollouts to a decision."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vero_jax.rewards.judge import strip_thinking
from vero_jax.rewards.literals import NotData, read_literal

FLAGS = {
    "irrelevant": "the question has nothing to do with the image, or needs none",
    "ambiguous": "more than one answer is right",
    "language": "the question cannot be understood",
    "unverifiable": "its answer is nothing that can be compared",
    "precision": "it asks for a number that the image does not show so exactly",
    "unreadable": "what is asked for is too small, blurred or hidden",
}
"""True means a defect."""
_COMMON = ("irrelevant", "ambiguous", "language", "unverifiable")
EMPTY_REPLY, NO_VERDICT = "empty reply", "no verdict in the reply"
_MAX_BRACES = 200
"""Places in a reply where an object may begin; a model that has lost itself can write thousands."""
_DECODER = json.JSONDecoder()
_PAIR = re.compile(
    rf"[\"'*`]*\b({'|'.join(FLAGS)})\b[\"'*`]*\s*[:=]\s*[\"'*`]*(true|false|yes|no|1|0)\b", re.IGNORECASE
)
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TRAILING_COMMA = re.compile(r",\s*(?=[}\]])")


def flags_of(domain: str) -> tuple[str, ...]:
    """The five flags that are asked for in a domain: for counting, whether things can be seen replaces precision."""
    return (*_COMMON, "unreadable" if domain == "counting_grounding_search" else "precision")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one reply says."""

    flags: Mapping[str, bool]
    """Those that it answers."""
    problem: str = ""
    """Why it answers none."""


def parse_verdict(reply: str) -> Verdict:
    """The flags in a reply: of its last JSON object that has any (fenced, amid text, or as Python writes one), else of
    lines such as "ambiguous: yes". Thoughts between <think> and </think> do not count.
    """
    text = strip_thinking(reply)
    if not text:
        return Verdict({}, EMPTY_REPLY)
    found: dict[str, bool] = {}
    for value in _objects(text):
        flags = _flags(value)
        found = flags or found
    if not found:
        # A name that is answered twice, the last time counts: models draft before they decide.
        found = {match[1].lower(): _WORDS[match[2].lower()] for match in _PAIR.finditer(text)}
    return Verdict(found, "" if found else NO_VERDICT)


def _objects(text: str) -> list[dict[str, Any]]:
    """The outermost objects in a text, in order."""
    found, at = [], text.find("{")
    for _ in range(_MAX_BRACES):
        if at < 0:
            break
        value, end = _object_at(text, at)
        if value is not None:
            found.append(value)
        at = text.find("{", end)
    return found


def _object_at(text: str, at: int) -> tuple[dict[str, Any] | None, int]:
    """(object, where to look on) of the object that begins at a place."""
    try:
        value, end = _DECODER.raw_decode(text, at)
        return (value if isinstance(value, dict) else None), end
    except (ValueError, RecursionError):
        pass
    close = text.find("}", at)
    if close < 0:
        return None, len(text)
    try:
        value = read_literal(
            _TRAILING_COMMA.sub("", text[at : close + 1].replace("true", "True").replace("false", "False"))
        )
    except NotData:
        return None, at + 1
    return (value if isinstance(value, dict) else None), close + 1


def _flags(value: Mapping[str, Any], nested: bool = False) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for key, item in value.items():
        name = str(key).strip().lower()
        if name not in FLAGS:
            if isinstance(item, dict) and not found and not nested:  # {"flags": {...}}
                found |= _flags(item, nested=True)
            continue
        flag = _truth(item)
        if flag is not None:
            found[name] = flag
    return found


def _truth(item: Any) -> bool | None:
    if isinstance(item, dict):  # {"value": true, "why": "..."}
        known = [_truth(item[key]) for key in ("value", "flag", "verdict", "answer") if key in item]
        return known[0] if known else None
    if isinstance(item, bool):
        return item
    if isinstance(item, int | float) and item in (0, 1):
        return bool(item)
    return _WORDS.get(item.strip().lower()) if isinstance(item, str) else None


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of a row."""

    keep: bool | None
    """None: no rollout could be read."""
    reasons: tuple[str, ...] = ()
    """Flags that dropped it, the most frequent first; or why it is undecided."""


def decide(verdicts: Sequence[Verdict], asked: Sequence[str], exempt: Collection[str] = ()) -> Decision:
    """The majority of the rollouts of a row.

    A rollout votes to drop the row where any flag that is asked for and not exempt is raised, also when it leaves
    others out; it votes to keep it where all of them are answered and none is raised; else it has no vote. The row is
    dropped when at least half of the votes say so: in doubt a question is worth less than a wrong reward costs.
    """
    counted = [name for name in asked if name not in exempt]
    raised: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    drops = keeps = 0
    for verdict in verdicts:
        flagged = [name for name in counted if verdict.flags.get(name)]
        missing = [name for name in counted if name not in verdict.flags]
        if flagged:
            drops += 1
            raised.update(flagged)
        elif verdict.problem:
            problems[verdict.problem] += 1
        elif missing:
            problems[f"missing flag: {missing[0]}"] += 1
        else:
            keeps += 1
    if not drops + keeps:
        return Decision(None, tuple(name for name, _ in problems.most_common(1)))
    if 2 * drops >= drops + keeps:
        return Decision(False, tuple(name for name, _ in raised.most_common()))
    return Decision(True)
