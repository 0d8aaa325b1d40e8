"""Letters of options, as the multiple-choice benchmarks read them.

All begin with math-verify's reading of a letter (`stated_letter`); what an answer without such a letter means differs.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from vero_jax.rewards import math_text

MANY_WORDS = 5
"""Only in an answer of more words than this is the text of an option looked for."""
_LABEL = re.compile(r"\(?([A-Za-z])(?:[).:\s]|$)")
_ANY_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_IN_PARENTHESES = re.compile(r"\(\s{0,9}([A-Ea-e])\s{0,9}\)")
_CAPITAL = re.compile(r"[A-E]")
_PHRASE = re.compile(r"\b(?:answer|option|choice)\b(?:\s{1,9}is)?\s{0,9}:?\s{0,9}\(?([A-E])\b", re.IGNORECASE)
_PREFIXES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is",
    "The correct option is", "Best answer:", "Best option:", "Answer:", "Option:",
)  # fmt: skip


def stated_letter(text: str, labels: str) -> str:
    """The capital letter that an answer states, or "".

    "The final answer is X" comes before "answer: X", a letter at the start, and the last one that stands alone, that
    is, one followed by a space, `.`, `,`, `:` or the end.
    """
    if not labels:
        return ""
    found = math_text.extract(text, math_text.letter_targets(labels))
    return str(found[0]).upper() if found else ""


def labels_of(options: Sequence[object]) -> str:
    """The letters of options as the reference labels them: by a letter that the option begins with, else by its place.

    An option like "a chair" is labelled A wherever it stands; `place_labels` does not do so.
    """
    labels = []
    for index, option in enumerate(options):
        match = _LABEL.match(str(option).strip())
        labels.append(match.group(1).upper() if match else place_label(index))
    return "".join(labels)


def place_labels(count: int) -> str:
    """A, B, C, ... for that many options."""
    return string.ascii_uppercase[:count]


def place_label(index: int) -> str:
    return string.ascii_uppercase[index] if index < len(string.ascii_uppercase) else ""


def generic_letter(text: str, labels: str, options: Sequence[object] = ()) -> str:
    """The letter of an answer among `labels` (any capital where there are none); "" where none is found.

    After a stated letter count "(X)", then a word of the upper-cased text that ends in X, then "X.", and in longer
    answers an option's text; of several the right-most. Where the reference then guesses at random, this gives "",
    except where its guess is certain because all options bear one label.
    """
    text = text.strip()
    if not text:
        return ""
    found = stated_letter(text, labels or string.ascii_uppercase)
    if found:
        return found
    padded = f" {text.strip(',.!?;:').strip()} ".upper()
    distinct = sorted(set(labels or string.ascii_uppercase))
    marks = ("({})", "{} ", "{}.") if labels else ("({})",)
    for mark in marks:
        found = _right_most(padded, {label: mark.format(label) for label in distinct})
        if found:
            return found
    if options and len(text.split()) > MANY_WORDS:
        texts = {label: str(option).upper() for label, option in zip(labels, options, strict=False) if str(option)}
        found = _right_most(padded, texts)
        if found:
            return found
    return distinct[0] if labels and len(distinct) == 1 else ""


def strict_letter(text: str, labels: str, options: Sequence[object] = ()) -> str:
    """The letter of an answer without the reference's leaks, or "".

    The only option whose text, longer than a letter, is the answer ("A chair" is no A); a stated letter, "(X)" or "X)",
    a small letter that is the whole answer, or the only option whose text is the answer or stands in it.
    """
    text = text.strip()
    labels = labels or string.ascii_uppercase
    if not text:
        return ""
    bare = text.strip(" .,:;*\"'()[]{}")
    plain = " ".join(bare.lower().split())
    texts = {label: _plain_option(option) for label, option in zip(labels, options, strict=False)}
    same = [label for label, option in texts.items() if option and option == plain]
    if len(same) == 1 and len(plain) > 1:
        return same[0]
    found = stated_letter(text, labels)
    if found:
        return found
    if len(bare) == 1 and bare.upper() in labels:
        return bare.upper()
    marked = [m.group(1).upper() for m in re.finditer(r"(?<![A-Za-z0-9])\(?([A-Za-z])\)", text)]
    marked = [letter for letter in marked if letter in labels]
    if marked:
        return marked[-1]
    named = same or [label for label, option in texts.items() if option and _names(plain, option)]
    return named[0] if len(named) == 1 else ""


def _names(text: str, phrase: str) -> bool:
    """Does a phrase stand in a text as whole words?"""
    at = text.find(phrase)
    while at >= 0:
        end = at + len(phrase)
        if not text[at - 1 : at].isalnum() and not text[end : end + 1].isalnum():
            return True
        at = text.find(phrase, at + 1)
    return False


def letter_a_to_e(text: str) -> str:
    """MME-RealWorld's letter A..E; "" where none is found.

    An empty answer is read as "A", as in the reference.
    """
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    text = text.strip()
    found = stated_letter(text, "ABCDE")
    if found:
        return found
    if len(text.split()) > 2 * MANY_WORDS and not _CAPITAL.search(text):
        return ""
    for pattern in (_PHRASE, _ANY_LETTER, _IN_PARENTHESES, _CAPITAL):
        letters = pattern.findall(text)
        if letters:
            return str(letters[-1]).upper()
    return next((label for label in "ABCDE" if text.lower() in f"({label.lower()})"), "")


def letter_vstar(text: str) -> str | None:
    """V*'s letter A..D of the upper-cased answer: stated, in parentheses, alone, or the first such letter; or None."""
    text = text.strip().upper()
    found = stated_letter(text, "ABCD")
    if found:
        return found
    for pattern in (
        r"\(([A-D])\)",
        r"\b(?:ANSWER|OPTION|CHOICE)\b(?:\s{1,9}IS)?\s{0,9}:?\s{0,9}([A-D])\b",
        r"\b([A-D])\b",
        r"([A-D])",
    ):
        match = re.search(pattern, text)
        if match:
            return match.group(1)
    return None


def _plain_option(option: object) -> str:
    text = str(option).strip()
    match = re.match(r"\(?[A-Z][).:]\s*", text)
    text = text[match.end() :] if match else text
    return " ".join(text.strip(" .,:;*\"'()[]{}").lower().split())


def _right_most(text: str, marks: dict[str, str]) -> str:
    """The label whose mark stands last in a text, or ""."""
    places = {label: text.rfind(mark) for label, mark in marks.items() if mark}
    best = max(places.items(), key=lambda entry: entry[1], default=("", -1))
    return best[0] if best[1] >= 0 else ""
