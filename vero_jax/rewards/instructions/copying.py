"""Checks that compare the answer with a text that was to be repeated or rephrased."""

from __future__ import annotations

import re
from collections import Counter

from vero_jax.rewards.instructions.arguments import Arguments, Check, Unusable

_CHANGED_SPAN = re.compile(r"\*.*?\*")
_WORD = re.compile(r"\w+")


def rephrased(text: str, arguments: Arguments) -> bool:
    """Only what stands between stars has changed."""
    original = arguments.text("original_message")
    if not _CHANGED_SPAN.search(original):
        raise Unusable("argument 'original_message' marks nothing with stars")
    return bool(_CHANGED_SPAN.search(text)) and _CHANGED_SPAN.sub("", text) == _CHANGED_SPAN.sub("", original)


def rephrased_paragraph(text: str, arguments: Arguments) -> bool:
    """The number of words shared with the original, repeats counted, lies in a range."""
    original = Counter(_WORD.findall(arguments.text("original_paragraph").lower()))
    shared = (original & Counter(_WORD.findall(text.lower()))).total()
    return arguments.bound("low") <= shared <= arguments.bound("high")


def repeats_prompt(text: str, arguments: Arguments) -> bool:
    prompt = arguments.text("prompt_to_repeat", empty=False).strip().lower()
    return text.strip().lower().startswith(prompt)


def copies(text: str, arguments: Arguments) -> bool:
    return _same(text, arguments.text("prompt_to_repeat", empty=False))


def copies_times(text: str, arguments: Arguments) -> bool:
    prompt, times = arguments.text("prompt_to_repeat", empty=False), arguments.number("N", positive=True)
    pieces = text.split("******")
    return len(pieces) == times and all(_same(piece, prompt) for piece in pieces)


def copies_span(text: str, arguments: Arguments) -> bool:
    prompt = arguments.text("prompt_to_repeat", empty=False)
    start, end = (int(arguments.bound(name)) for name in ("n_start", "n_end"))
    if not start or not end:
        raise Unusable("arguments 'n_start' and 'n_end' must not be zero: the data means them to be drawn")
    return _same(text, prompt[start:end])


def repeats_phrase(text: str, arguments: Arguments) -> bool:
    """The phrase stands `small_n` times, once with exactly one inner word changed."""
    phrase = arguments.text("phrase", empty=False).split()
    wanted = arguments.number("small_n", positive=True)
    if not phrase:
        raise Unusable("argument 'phrase' is blank")
    words = _WORD.findall(text)
    changes = []
    for start in range(len(words) - len(phrase) + 1):
        window = words[start : start + len(phrase)]
        if window[0] == phrase[0] and window[-1] == phrase[-1]:
            changes.append(sum(a != b for a, b in zip(window, phrase, strict=True)))
    return len(changes) == wanted and sorted(changes) == [0] * (len(changes) - 1) + [1]


def _same(text: str, other: str) -> bool:
    return text.strip().lower() == other.strip().lower()


CHECKS: dict[str, Check] = {
    "RephraseChecker": rephrased,
    "RephraseParagraph": rephrased_paragraph,
    "RepeatPromptThenAnswer": repeats_prompt,
    "CopyChecker": copies,
    "CopyingSimpleChecker": copies,
    "CopyingMultipleChecker": copies_times,
    "CopySpanIdxChecker": copies_span,
    "RepeatPhraseChecker": repeats_phrase,
}
