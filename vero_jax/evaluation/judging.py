"""Reading the replies of judge models. What can't be read is None, and the answer is then unjudged, not wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from vero_jax.rewards.literals import NotData, as_float, read_json

MAX_LENGTH = 50_000
"""Characters of a reply that are read."""
RIGHT, WRONG, NOT_ATTEMPTED = "正确", "错误", "未尝试"
"""SimpleVQA's labels, in the language of its judge's prompt."""

_VERDICTS = (
    "is_equivalent",
    "equivalent",
    "is_correct",
    "correct",
    "match",
    "answer",
    "result",
    "verdict",
    "judgement",
)
_YES, _NO = re.compile(r"\byes\b", re.IGNORECASE), re.compile(r"\bno\b", re.IGNORECASE)
_TRUE, _FALSE = re.compile(r"\btrue\b", re.IGNORECASE), re.compile(r"\bfalse\b", re.IGNORECASE)
_SHARE = re.compile(r"(?<![\d.])(?:0?\.\d+|0|1\.0+|1)(?!\.?\d)", re.ASCII)
_LABEL_VALUE = re.compile(r":\s*\"([^\"]{0,200})\"")
_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]", re.ASCII)
_COMPONENT = re.compile(r"component\s+(\d{1,3})\s*:\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)", re.IGNORECASE | re.ASCII)
_TOTAL = re.compile(r"total\s+score\s*:\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)", re.IGNORECASE | re.ASCII)
_CONSTRAINT = re.compile(r"score of (constraint[_-]\d{1,4})\s*:\s*(\d{1,4})\s*/\s*(\d{1,4})", re.IGNORECASE | re.ASCII)
_RIGHT_OR_WRONG = re.compile(r"\b(right|wrong)\b")
_SUMMARY = re.compile(r"summary", re.IGNORECASE)


def json_object(reply: str) -> dict[str, Any] | None:
    """The JSON object that is the whole reply, or stands from its first "{" to its last "}"; nothing is repaired."""
    reply = reply.strip()[:MAX_LENGTH]
    start, end = reply.find("{"), reply.rfind("}")
    for text in (reply, reply[start : end + 1] if 0 <= start < end else ""):
        if not text:
            continue
        try:
            value = read_json(text)
        except NotData:
            continue
        if isinstance(value, dict):
            return value
    return None


def yes_or_no(reply: str, *, truth_values: bool = False) -> bool | None:
    """A verdict: under a known key of a JSON object, else as the reply's first word, else the only one in the text.

    Args:
      truth_values: "true" and "false" count like "yes" and "no" also where they are text.
    """
    letters = {"y": True, "n": False} | ({"t": True, "f": False} if truth_values else {})
    value = json_object(reply)
    if value is not None:
        for key in _VERDICTS:
            found = value.get(key)
            if isinstance(found, bool):
                return found
            if isinstance(found, str) and found.strip()[:1].lower() in letters:
                return letters[found.strip()[0].lower()]
    text = reply.strip().strip("\"'*` ").lower()[:MAX_LENGTH]
    words = [("yes", True), ("no", False)] + ([("true", True), ("false", False)] if truth_values else [])
    for word, verdict in words:
        if re.match(rf"{word}\b", text):
            return verdict
    yes, no = bool(_YES.search(text)), bool(_NO.search(text))
    if truth_values:
        yes, no = yes or bool(_TRUE.search(text)), no or bool(_FALSE.search(text))
    return yes if yes != no else None


def extracted_and_score(reply: str) -> tuple[Any, int] | None:
    """CharXiv's (extracted answer, whole score as it is)."""
    value = json_object(reply)
    if value is None or "score" not in value:
        return None
    score = value["score"]
    try:
        if isinstance(score, float) and not math.isfinite(score):
            return None
        return value.get("extracted_answer"), int(score)
    except (TypeError, ValueError):
        return None


def three_way(reply: str, *, strict: bool = False) -> str | None:
    """SimpleVQA's label: the first value of a JSON object, also of one that never closes; None without any.

    Longer texts that are no label ("Correct") mean "not attempted", as in the reference; shorter ones stay as they are.
    `strict` knows the three labels only.
    """
    value = json_object(reply)
    if value is not None:
        label = next(iter(value.values()), None)
    else:
        match = _LABEL_VALUE.search(reply[:MAX_LENGTH])
        label = match.group(1) if match else None
    if not isinstance(label, str) or (strict and label not in (RIGHT, WRONG, NOT_ATTEMPTED)):
        return None
    return NOT_ATTEMPTED if len(label) > 3 and label not in (RIGHT, WRONG, NOT_ATTEMPTED) else label


def share(reply: str, *, strict: bool = False) -> float | None:
    """MM-Vet's score between 0 and 1: the first number in a JSON object, the first word, else a number of that kind.

    As in the reference, a number of the object that lies outside is moved to 0 or 1; to `strict` it is none.
    """
    value = json_object(reply)
    if value is not None:
        numbers = [as_float(item) for item in value.values() if not isinstance(item, bool | None)]
        found = next((number for number in numbers if number is not None and math.isfinite(number)), None)
        if found is None or (strict and not 0 <= found <= 1):
            return None
        return min(max(found, 0.0), 1.0)
    first = as_float(next(iter(reply.split(maxsplit=1)), ""))
    if first is not None and 0 <= first <= 1:
        return first
    match = _SHARE.search(reply[:MAX_LENGTH])
    return float(match.group()) if match else None


def rating(reply: str) -> float | None:
    """MM-MT-Bench's `[[n]]`, the first one."""
    match = _RATING.search(reply[:MAX_LENGTH])
    return float(match.group(1)) if match else None


def components(reply: str, names: Sequence[str], *, strict: bool = False) -> tuple[dict[str, float], float] | None:
    """MIA-Bench's shares by component, and the total between 0 and 1; None when nothing can be read.

    As in the reference, only the text up to the first full stop is read, so that a decimal cuts it off; the mean of the
    components stands in for a total. `strict` reads all of the reply, and takes nothing for a total but a total that is
    not above its maximum.
    """
    reply = reply[:MAX_LENGTH]
    text = reply if strict else reply.split(".", 1)[0]
    found: dict[int, float] = {}
    for match in _COMPONENT.finditer(text):
        index, part, whole = int(match.group(1)), float(match.group(2)), float(match.group(3))
        if 1 <= index <= len(names) and whole and index not in found:
            found[index] = min(max(part / whole, 0.0), 1.0)
    shares = {name: found.get(index, 0.0) for index, name in enumerate(names, 1)}
    total = _TOTAL.search(text)
    if total and float(total.group(2)):
        part = float(total.group(1)) / float(total.group(2))
        return None if strict and part > 1 else (shares, min(part, 1.0))
    if strict or not found:
        return None
    return shares, sum(found.values()) / len(found)


def right_or_wrong(reply: str, *, strict: bool = False) -> int | None:
    """MMIFEval's verdict on a question about the picture.

    As in the reference, "right" wins, also in "wrong, the right answer is ..."; to `strict` the first word counts, else
    the only one of the two.
    """
    text = reply.lower()
    if strict:
        found = _RIGHT_OR_WRONG.findall(text[:MAX_LENGTH])
        first = _RIGHT_OR_WRONG.match(text.lstrip(" \n\"'*`{[:"))
        verdicts = {first.group(1)} if first else set(found)
        return int("right" in verdicts) if len(verdicts) == 1 else None
    return 1 if "right" in text else 0 if "wrong" in text else None


def constraint_scores(reply: str) -> dict[str, float] | None:
    """MMIFEval's scores by constraint ("constraint_1"), the last of each; None without any."""
    found = {}
    for match in _CONSTRAINT.finditer(" ".join(reply[:MAX_LENGTH].split())):
        whole = int(match.group(3))
        if whole:
            found[match.group(1).lower()] = int(match.group(2)) / whole
    return found or None


def summary_verdict(reply: str) -> int | None:
    """MMIFEval's True or False after the last "summary"."""
    matches = list(_SUMMARY.finditer(reply[-MAX_LENGTH:]))
    if not matches:
        return None
    text = reply[-MAX_LENGTH:][matches[-1].end() :]
    yes, no = _TRUE.search(text), _FALSE.search(text)
    return 1 if yes and (not no or yes.start() < no.start()) else 0 if no else None


def zero_or_one(reply: str) -> int | None:
    """A judge's 0 or 1, or None. As in the reference's judged MathVision, any "1" in the reply makes it 1."""
    return 1 if "1" in reply else 0 if "0" in reply else None
