"""The options that a multiple-choice question lists, and questions whose answer is one of two."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vero_jax.rewards.literals import NotData, read_literal
from vero_jax.rewards.string_match import normalise

_LINE = re.compile(r"^[ \t]*\(?([A-Z])[).:][ \t]+(\S.*)$|^[ \t]*\(([A-Z])\)[ \t]*(\S.*)$", re.MULTILINE)
_INLINE = re.compile(r"(?<![\w(])\(?([A-Z])[).:]\s+(?=\S)|\(([A-Z])\)\s*(?=\S)")
_BINARY = frozenset({"yes", "no", "true", "false"})


def options(question: str) -> dict[str, str]:
    """{"A": text, "B": text, ...} of the options in a question; empty where it lists none.

    Options are marked "A.", "A)", "A:" or "(A)", on lines of their own or one after the other in a line. They must
    begin with A, go on without a gap, and be at least two.
    """
    lines = [(match[1] or match[3], (match[2] or match[4]).strip()) for match in _LINE.finditer(question)]
    return _in_order(lines) or _in_order(_inline(question))


def _inline(question: str) -> list[tuple[str, str]]:
    marks = list(_INLINE.finditer(question))
    ends = [*(match.start() for match in marks[1:]), len(question)][: len(marks)]
    return [
        (match[1] or match[2], question[match.end() : end].splitlines()[0].strip(" \t,;"))
        for match, end in zip(marks, ends, strict=True)
        if question[match.end() : end].strip()
    ]


def _in_order(found: list[tuple[str, str]]) -> dict[str, str]:
    """The last run A, B, C, ... in what was found: what stands before may be a label in the text."""
    best: dict[str, str] = {}
    run: dict[str, str] = {}
    for letter, text in found:
        if letter == "A":
            run = {}
        if letter != chr(ord("A") + len(run)):
            run = {}
            continue
        run[letter] = text
        if len(run) >= 2:
            best = run
    return dict(best)


def is_binary(question: str, truth: str, choices: Mapping[str, str] | None = None) -> bool:
    """Whether the answer is yes or no, true or false: as a text, as all accepted texts, or as one of two options."""
    texts = {normalise(text) for text in (options(question) if choices is None else choices).values()}
    if texts and texts <= _BINARY:
        return True
    found = {normalise(text) for text in accepted(truth)}
    return bool(found) and found <= _BINARY


def accepted(truth: str) -> list[str]:
    """The texts that a ground truth accepts: the items of a list literal, else the text itself."""
    if truth.lstrip().startswith(("[", "(", "{")):
        try:
            value = read_literal(truth.strip())
        except NotData:
            return [truth]
        if isinstance(value, list | tuple | set) and value:
            return [str(item) for item in value]
    return [truth]
