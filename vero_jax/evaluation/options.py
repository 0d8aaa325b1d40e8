"""Options inside questions: finding them, taking them out, writing them as lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vero_jax.evaluation.scorers.letters import place_label

ONLY_LETTER = re.compile(r"\s*Please answer directly with only the letter of the correct option and nothing else\.?")
ONE_WORD = re.compile(r"\s*Please answer directly with a single word or number\.?")
OPTION_LETTER = re.compile(r"\s*Answer with the option's letter from the given choices directly\.?")
_MARK = re.compile(r"(?<!\w)\(?([A-Da-d])[).:]\s+")
_BRACKETED = re.compile(r"\([A-D]\)\s*([^()]*?)\s*(?=\([A-D]\)|$)")
_CHOICES = re.compile(r"\s*Choices:\s*$")


def option_lines(options: Sequence[object], form: str = "{}. {}") -> str:
    """One line for each option, A first."""
    return "\n".join(form.format(place_label(index), option) for index, option in enumerate(options))


def has_options(question: str) -> bool:
    """Does a question hold at least two option marks ("A.", "(B)", "c)")?"""
    return len(_MARK.findall(question)) >= 2


def inline_options(question: str) -> list[str]:
    """The texts of the options inside a question; none where there are fewer than two marks."""
    return [text for _, text in _split(question)[1]]


def with_option_lines(question: str) -> str:
    """The question with its inline options as lines under "Choices:"; unchanged where there are fewer than two."""
    stem, options = _split(question)
    if not options:
        return question.strip()
    lines = "\n".join(f"{label}. {text}" for label, text in options)
    return f"{stem}\nChoices:\n{lines}".strip()


def with_bracketed_lines(question: str) -> str:
    """The question with its "(A) ..." options as lines, lettered anew.

    As in the reference, an option with parentheses in its own text gets lost.
    """
    start = re.search(r"\([A-D]\)", question)
    options = _BRACKETED.findall(question)
    if start is None or not options:
        return question.strip()
    return f"{question[: start.start()].strip()}\n{option_lines(options)}"


def _split(question: str) -> tuple[str, list[tuple[str, str]]]:
    marks = list(_MARK.finditer(question))
    if len(marks) < 2:
        return question, []
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    options = [(m.group(1).upper(), question[m.end() : end].strip()) for m, end in zip(marks, ends, strict=True)]
    return _CHOICES.sub("", question[: marks[0].start()]).strip(), options
