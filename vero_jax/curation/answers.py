"""Answers as people wrote them in one canonical form, by rules: what a verifier compares, and which verifier.

    canonical("(B) cat", "Which animal? (A) dog (B) cat")  ->  multiple_choice "B"
    canonical("$222.14", "How much is it?")                ->  numeric "222.14"
    canonical("10-20", "How many?")                        ->  dropped, "more than one value"

The kinds and what is dropped follow the answer filter of the paper (arXiv 2604.04917, section on data).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

from vero_jax.curation.options import accepted, options
from vero_jax.curation.quantities import NotOneNumber, Quantity, plain_decimal, quantity
from vero_jax.curation.variants import canonical_variants
from vero_jax.rewards.string_match import normalise

Kind = Literal["multiple_choice", "numeric", "string", "list", "clicking", "none"]
REWARD_TYPES: Mapping[Kind, str] = {
    "multiple_choice": "multiple_choice",
    "numeric": "numeric",
    "string": "string_match",
    "list": "list_string_match",
    "clicking": "clicking",
}
"""The reward type of each kind of answer; an answer of the kind "none" is dropped."""

SKIPPED_DOMAINS = ("spatial_action", "counting_grounding_search", "visual_alignment")
"""Domains whose answers the paper leaves alone."""
_IN_WORDS = ("string_match", "multiple_choice", "numeric", "list_string_match", "counting", "search")

UNANSWERABLE = "unanswerable"
SYMBOLIC = "symbolic"
EMPTY = "empty"
SEVERAL_OPTIONS = "more than one option"
NOT_AN_OPTION = "not among the options"
OPTION_DISAGREES = "letter and text of the option disagree"
TOO_LONG = "too long for an exact match"


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """How the rules decide where people may want either."""

    percent: Literal["number", "fraction"] = "number"
    """What "45%" becomes: 45, as "$222.14" becomes 222.14; or 0.45. The numeric verifier takes "45%" for either, but
    "45" only for the first and "0.45" only for the second."""
    max_words: int = 12
    """Longer texts cannot be compared word by word and are dropped."""
    max_closed: int = 3
    """Different spellings in a list whose answers are closed (numbers, yes or no)."""
    max_open: int = 200
    """Different spellings in any other list."""
    min_head: float = 0.6
    """Smallest share of a list that its largest cluster of like answers may have."""


@dataclasses.dataclass(frozen=True)
class Canonical:
    """What became of an answer."""

    kind: Kind
    value: str = ""
    """The ground truth, "" where the kind is "none"."""
    reason: str = ""
    """Why it is dropped; else what was done, "" where nothing was."""


def applies_to(domain: str, reward_type: str) -> bool:
    """Whether the rules are meant for a row: for answers in words, outside of `SKIPPED_DOMAINS`."""
    return domain not in SKIPPED_DOMAINS and reward_type in _IN_WORDS


def dropped(reason: str) -> Canonical:
    """An answer that cannot be used."""
    return Canonical("none", "", reason)


def canonical(
    answer: str, question: str = "", *, reward_type: str = "", settings: AnswerSettings = AnswerSettings()
) -> Canonical:
    """The canonical form of an answer.

    Args:
      answer: as it is stored: a text, or a Python list literal of accepted texts.
      question: with its options, where it has some.
      reward_type: of the row so far. It only decides whether a lone letter is an option ("multiple_choice").
      settings: see there.
    """
    text = _tidy(answer)
    if not text:
        return dropped(EMPTY)
    if '"bbox_2d"' in text or '"point_2d"' in text:
        return Canonical("clicking", answer)
    texts = accepted(text)
    # A tuple is a point or an interval, and not a list of accepted texts.
    if text.startswith("[") and texts != [text]:
        asks = asks_number(question)
        kind, value, reason = canonical_variants(texts, lambda item: _single(item, asks, settings), settings)
        return Canonical(kind, value, reason) if kind != "none" else dropped(reason)
    choices = options(question)
    option = _option(text, choices, reward_type == "multiple_choice")
    if option is not None:
        return option
    return _single(text, asks_number(question), settings)


def asks_number(question: str) -> bool:
    """Whether a question asks for a number, so that words behind one ("3 apples") say what is counted."""
    return _ASKS_NUMBER.search(question) is not None


_ASKS_NUMBER = re.compile(
    r"\bhow\s+(?:many|much|long|tall|far|old|high|wide|deep|fast|heavy|big|large|often)\b"
    r"|\bwhat\s+(?:is|was|are|were|'s)\s+the\s+(?:\w+\s+){0,2}?"
    r"(?:number|count|total|sum|average|mean|median|difference|ratio|value|percentage|percent|area|perimeter|length|width"
    r"|height|depth|volume|angle|distance|radius|diameter|speed|weight|mass|price|cost|age)\b"
    r"|\b(?:calculate|compute|count)\b|\bfind\s+the\s+(?:value|length|area|measure)\b",
    re.IGNORECASE,
)
_UNANSWERABLE = re.compile(
    r"(?:(?:it|this|that|the answer|the question)\s+)?(?:is\s+|are\s+)?(?:"
    r"unanswerable|unsuitable(?:\s+image)?|unknown|unclear|undetermined|n\s*/\s*a|nan|null"
    r"|not\s+(?:available|applicable|given|known|provided|specified|stated|shown|visible|clear|answerable|possible(?:\s+to.*)?)"
    r"|(?:can\s?not|can'?t|could\s+not|couldn'?t)\s+(?:be\s+)?(?:determined?|answer(?:ed)?|tell|say|seen?|known|calculated?|read).*"
    r"|(?:not\s+enough|insufficient|no)\s+(?:information|info|data|answer|context)(?:\s+.*)?"
    r"|i\s+(?:do\s+not|don'?t)\s+know|impossible\s+to\s+(?:tell|say|determine|answer|know).*"
    r"|unable\s+to\s+.*|too\s+(?:blurry|dark|small)\s+to\s.*"
    r")[.!]?",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence)\b[\s,]*)?(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is|:|=)\s*", re.I
)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]?")
_NAMED_OPTION = re.compile(r"(?:option|choice)\s+\(?([A-Za-z])\)?[.):]?(?:\s+(\S.*))?", re.IGNORECASE | re.DOTALL)
_BRACKETED = re.compile(r"\(([A-Za-z])\)\s*(\S.*)", re.DOTALL)
_MARKED = re.compile(r"([A-Za-z])[.):]\s*(\S.*)", re.DOTALL)
_SEVERAL = re.compile(
    r"(?:option\s+)?\(?[A-Z]\)?(?:\s*(?:,|&|/|and|or)\s*(?:option\s+)?\(?[A-Z]\)?)+\.?", re.IGNORECASE
)

_LATEX_COMMAND = re.compile(
    r"\\(?:frac|dfrac|tfrac|sqrt|pi|theta|alpha|beta|gamma|lambda|sin|cos|tan|log|ln|cdot|times|pm)\b"
)
_OPERATOR = r"(?:[-+*/=<>≤≥≠±·×÷^]|\*\*|<=|>=)"
_OPERAND = (
    r"(?:\d+(?:\.\d+)?(?:[a-zA-Zπθ](?![a-zA-Z]))?|(?<![a-zA-Z])[a-zA-Zπθαβγλ](?![a-zA-Z])"
    r"|(?:sin|cos|tan|log|ln|sqrt)\b|√|π)"
)
_TOKEN = re.compile(rf"\s*(?:(?P<operand>{_OPERAND})|{_OPERATOR}|[()\[\]{{}}|])")
_JOINED = re.compile(rf"{_OPERATOR}|\d[xyzabn]\b|\b(?:sin|cos|tan|log|ln|sqrt)\b")


def _tidy(answer: str) -> str:
    """Without spaces, quotes and a last full stop that say nothing."""
    text = " ".join(answer.split())
    text = _LEAD.sub("", text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _option(text: str, choices: Mapping[str, str], is_choice: bool) -> Canonical | None:
    """The answer as an option's letter; None where it is not one of options."""
    if choices and _SEVERAL.fullmatch(text):
        return dropped(SEVERAL_OPTIONS)
    by_text = [letter for letter, option in choices.items() if _same(option, text)]
    if len(by_text) == 1 and not (_LETTER.fullmatch(text) and text.strip("().:").upper() in choices):
        return Canonical("multiple_choice", by_text[0], "option's text")
    alone = _LETTER.fullmatch(text)
    if alone and (choices or is_choice or text.startswith("(")):
        return _letter(alone[1], "", choices)
    named = _NAMED_OPTION.fullmatch(text) or _BRACKETED.fullmatch(text)
    if named is None and (choices or is_choice):
        named = _MARKED.fullmatch(text)
    if named is not None:
        return _letter(named[1], named[2] or "", choices)
    if choices:
        return dropped(NOT_AN_OPTION)
    return None


def _letter(letter: str, said: str, choices: Mapping[str, str]) -> Canonical:
    letter = letter.upper()
    if choices and letter not in choices:
        return dropped(NOT_AN_OPTION)
    if choices and said and not _same(choices[letter], said):
        return dropped(OPTION_DISAGREES)
    return Canonical("multiple_choice", letter, "letter" if said else "")


def _same(option: str, text: str) -> bool:
    """Whether a text is that of an option, also where it is the same number in another spelling."""
    if normalise(option) == normalise(text):
        # Signs are punctuation to the normaliser: -5 and 5 are equal to it.
        return bool(normalise(text)) and ("-" in option) == ("-" in text)
    try:
        first, second = quantity(option), quantity(text)
    except NotOneNumber:
        return False
    return first is not None and second is not None and (first.value, first.percent) == (second.value, second.percent)


def _single(text: str, asks: bool, settings: AnswerSettings) -> Canonical:
    """One text that is no option: a number, a short text, or nothing that can be used."""
    text = _tidy(text)
    if not text or not normalise(text):
        return dropped(EMPTY)
    if _UNANSWERABLE.fullmatch(text):
        return dropped(UNANSWERABLE)
    try:
        found = quantity(text, loose=asks)
    except NotOneNumber as error:
        return dropped(error.reason)
    if found is not None:
        value = _number(found, settings)
        return Canonical("numeric", value, "" if value == text else "number")
    if is_symbolic(text):
        return dropped(SYMBOLIC)
    if len(text.split()) > settings.max_words:
        return dropped(TOO_LONG)
    value = text[:-1].rstrip() if text.endswith(".") and text.count(".") == 1 else text
    return Canonical("string", value, "" if value == text else "full stop")


def _number(found: Quantity, settings: AnswerSettings) -> str:
    return plain_decimal(found.value / 100) if found.percent and settings.percent == "fraction" else found.text


def is_symbolic(text: str) -> bool:
    """Whether a text is an expression or equation: it can be written in more ways than a verifier of texts knows."""
    if _LATEX_COMMAND.search(text) or re.search(r"[√π]|[\w)}]\^[\w({-]", text):
        return True
    if len(text) > 200 or re.fullmatch(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}", text):  # a date
        return False
    if re.fullmatch(r"[A-Z]\d?(?:[-/][A-Z]\d?)+", text):  # A-B, names of points or grades
        return False
    at, after_operand = 0, False
    while at < len(text.rstrip()):
        token = _TOKEN.match(text, at)
        if token is None or (after_operand and token["operand"]):
            return False
        at, after_operand = token.end(), token["operand"] is not None
    return _JOINED.search(text.strip("-+ ")) is not None
