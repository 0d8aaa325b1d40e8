"""Where the answer stands in a response: answer tags, boxes, format score. All scans are linear in the text."""

from __future__ import annotations

import re

BOXED_TYPES = frozenset(
    {
        "string_match",
        "multiple_choice",
        "number_list",
        "web_action",
        "numeric",
        "list_string_match",
        "counting",
        "search",
    }
)
"""Types whose answer belongs into one `\\boxed{...}`."""

POINTING_TYPES = frozenset({"grounding", "clicking"})

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_BOX = "\\boxed"
BRACES = re.compile(r"[{}]")
_BRACKETS = re.compile(r"[\[\]]")
_NOT_SPACE = re.compile(r"\S")


def answer_text(response: str) -> str:
    """Content of the first <answer>...</answer> pair, stripped; the whole response, stripped, when there is no pair."""
    start = response.find("<answer>")
    if start >= 0:
        start += len("<answer>")
        end = response.find("</answer>", start)
        if end >= 0:
            return response[start:end].strip()
    return response.strip()


def find_boxes(text: str) -> list[str]:
    """Contents of the well-formed boxes, stripped and freed of one enclosing `\\text{...}`.

    Every brace counts, escaped or quoted alike; a box that never closes ends the scan; a box inside a box is part of
    the outer one's content.
    """
    boxes = []
    for start, end in _spans(text, "{", BRACES):
        boxes.append(_without_text_command(text[start:end].strip()))
    return boxes


def find_bracket_boxes(text: str) -> list[str]:
    """Contents of the malformed `\\boxed[...]`, stripped."""
    return [text[start:end].strip() for start, end in _spans(text, "[", _BRACKETS)]


def boxed_answer(text: str) -> str:
    """The final answer of a boxed type: last box, else last `\\boxed[...]`, else the whole answer text."""
    boxes = find_boxes(text)
    if boxes and boxes[-1]:
        return boxes[-1]
    if _BOX in text:
        brackets = find_bracket_boxes(text)
        if brackets and brackets[-1]:
            return brackets[-1]
    return text


def pointing_source(text: str) -> str:
    """Where a grounding or clicking answer's JSON stands: the last well-formed box, else the whole answer text."""
    boxes = find_boxes(text)
    return boxes[-1] if boxes and boxes[-1] else text


def format_score(response: str, reward_type: str) -> float:
    """0, 0.5 or 1: are the tags exactly right, and is there exactly one box where the type wants one?"""
    if any(response.count(tag) != 1 for tag in _TAGS):
        return 0.0
    think_end, answer_start, answer_end = (response.find(tag) for tag in _TAGS[1:])
    if not response.startswith("<think>") or not think_end < answer_start < answer_end:
        return 0.0
    thought = response[len("<think>") : think_end]
    between = response[think_end + len("</think>") : answer_start]
    answer = response[answer_start + len("<answer>") : answer_end]
    after = response[answer_end + len("</answer>") :]
    if between.strip() or after.strip() or not thought.strip() or not answer.strip():
        return 0.0
    if reward_type in BOXED_TYPES:
        boxes = find_boxes(answer)
        return 1.0 if len(boxes) == 1 and boxes[0] else 0.5
    if reward_type in POINTING_TYPES:
        return 0.5 if answer.count(_BOX) >= 2 else 1.0
    return 1.0


def _spans(text: str, opening: str, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    """(start, end) of what stands between matching delimiters after each `\\boxed`, left to right, not nested."""
    spans = []
    at = text.find(_BOX)
    while at >= 0:
        at += len(_BOX)
        mark = _NOT_SPACE.search(text, at)
        if mark is None:
            break
        if mark.group() == opening:
            end = closing(text, mark.start(), opening, pattern)
            if end < 0:
                break
            spans.append((mark.end(), end))
            at = end + 1
        at = text.find(_BOX, at)
    return spans


def closing(text: str, start: int, opening: str, pattern: re.Pattern[str]) -> int:
    """Index of the delimiter that closes the one at `start`, or -1."""
    depth = 0
    for match in pattern.finditer(text, start):
        depth += 1 if match.group() == opening else -1
        if depth == 0:
            return match.start()
    return -1


def _without_text_command(content: str) -> str:
    if not content.startswith("\\text"):
        return content
    mark = _NOT_SPACE.search(content, len("\\text"))
    if mark is None or mark.group() != "{":
        return content
    if closing(content, mark.start(), "{", BRACES) != len(content) - 1:
        return content
    return content[mark.end() : -1].strip()
