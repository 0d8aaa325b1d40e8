r"""Where the final answer stands in a completion. Every scan is linear in the text.

Completions normally start inside the reasoning, because the chat template has already opened `<think>`. An unfinished
one, without `</think>` and `<answer>`, is read as a whole, so that a `\boxed{}` inside its reasoning counts.
"""

from __future__ import annotations

import enum
import re
from typing import Any

from vero_jax.rewards.extraction import BRACES
from vero_jax.rewards.extraction import closing as closing_brace

MAX_LENGTH = 400_000
"""Characters of a completion that are read, from its end; 32,768 tokens are about a third of this."""

_BOX = "\\boxed{"
_TEXT = "\\text{"
_BOX_OR_BRACE = re.compile(r"\\boxed\{|[{}]")


class Mode(enum.Enum):
    """What happens to LaTeX boxes once the answer's place is found."""

    LAST_BOX = "last box"
    r"""Only the content of the last balanced `\boxed{...}` is the answer, where there is one."""
    UNWRAPPED = "unwrapped"
    r"""Every balanced `\boxed{...}` is replaced by its content, in place."""
    PLAIN = "plain"
    """The text stays as it is."""


def final_answer(completion: Any, mode: Mode) -> str:
    """The answer in a completion, stripped; "" where there is none.

    The first `<answer>` block counts, then what follows the first `</think>` in it. Tags are case-sensitive.
    """
    text = answer_place(completion)
    if mode is Mode.LAST_BOX:
        text = _unwrap_text(_last_box(text))
    elif mode is Mode.UNWRAPPED:
        text = _unwrap_text(_without_boxes(text))
    return text.strip()


def answer_place(completion: Any) -> str:
    """The part of a completion that holds the answer, boxes included."""
    text = "" if completion is None else str(completion).strip()[-MAX_LENGTH:]
    start = text.find("<answer>")
    if start >= 0 and "</answer>" in text:
        start += len("<answer>")
        end = text.find("</answer>", start)
        text = text[start:end] if end >= 0 else text[start:]
    _, found, rest = text.partition("</think>")
    return (rest if found else text).strip()


def _last_box(text: str) -> str:
    """Content of the last balanced box, else the text. A box that never closes ends the scan; earlier ones count."""
    found = text
    at = text.find(_BOX)
    while at >= 0:
        start = at + len(_BOX)
        end = closing_brace(text, start - 1, "{", BRACES)
        if end < 0:
            break
        found = text[start:end]
        at = text.find(_BOX, end + 1)
    return found


def _without_boxes(text: str) -> str:
    """The text with every balanced box replaced by its content, also boxes inside boxes."""
    drop: list[tuple[int, int]] = []
    opened: list[tuple[int, int] | None] = []  # the span of an opening box; None for a plain brace
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if token == "}":
            box = opened.pop() if opened else None
            if box is not None:
                drop += [box, match.span()]
        else:
            opened.append(match.span() if token == _BOX else None)
    kept, at = [], 0
    for start, end in sorted(drop):
        kept.append(text[at:start])
        at = end
    return "".join(kept) + text[at:]


def _unwrap_text(text: str) -> str:
    r"""The text without the `\text{...}` around all of it, however often it is wrapped."""
    text = text.strip()
    start, end = 0, len(text)
    while text.startswith(_TEXT, start) and text[end - 1] == "}":
        start += len(_TEXT)
        end -= 1
        # Spaces around the content may hide a further wrapper.
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
    if start == 0:
        return text
    return _peeled(text)


def _peeled(text: str) -> str:
    """As `_unwrap_text`, for a text that begins and ends like a wrapper: each wrapper must close at the very end."""
    closes = _matching_braces(text)
    start, end = 0, len(text)
    while text.startswith(_TEXT, start) and closes.get(start + len(_TEXT) - 1) == end - 1:
        inner = text[start + len(_TEXT) : end - 1]
        start += len(_TEXT) + len(inner) - len(inner.lstrip())
        end -= 1 + len(inner) - len(inner.rstrip())
    return text[start:end] if start < end else ""


def _matching_braces(text: str) -> dict[int, int]:
    closes: dict[int, int] = {}
    opened: list[int] = []
    for match in BRACES.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif opened:
            closes[opened.pop()] = match.start()
    return closes
