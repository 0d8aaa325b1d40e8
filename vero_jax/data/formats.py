r"""The row formats that other trainers use, recognised by their columns and turned into Vero's.

    format   question              truth (the first that is not empty)   pictures
    vero     prompt, with          reward_model.ground_truth             image | images
             reward_model or
             extra_info            (also what verl writes)
    trl      prompt                ground_truth, answer, solution        image | images
    easyr1   problem               ground_truth, answer, solution        image | images
    plain    question              ground_truth, answer, solution        image | images

A `solution` may hold a whole reasoning: the truth is what stands in its last <answer>...</answer>, or in the last
\boxed{...} of that (or of the solution), or all of it where there is neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

VERO_COLUMNS = ("id", "data_source", "prompt", "image", "images", "ability", "reward_model", "extra_info")
IMAGE_COLUMNS = ("image", "images")
TRUTH_COLUMNS = ("ground_truth", "answer", "solution")
QUESTION_COLUMNS = {"trl": "prompt", "easyr1": "problem", "plain": "question"}
TITLES = {
    "vero": "Vero or verl (prompt, reward_model, extra_info)",
    "trl": "TRL (prompt, image or images, and solution, answer or ground_truth)",
    "easyr1": "EasyR1 (problem, answer, images)",
    "plain": "plain (question, answer, image)",
}
MAX_EXTRA_LENGTH = 500
"""Characters of the longest text column that goes along in `extra_info`."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")


class BrokenRow(dict[str, Any]):
    """A place of a file where a row should be and none can be read; `schema.parse_row` raises its reason."""

    def __init__(self, source: str, reason: str, detail: str, row_id: Any = None):
        super().__init__(data_source=source, id=row_id)
        self.reason = reason
        self.detail = detail


def recognise(columns: Collection[str]) -> str | None:
    """The format of rows with these columns: a key of `TITLES`, or None."""
    own_truth = any(column in columns for column in TRUTH_COLUMNS)
    if "prompt" in columns and ("reward_model" in columns or ("extra_info" in columns and not own_truth)):
        return "vero"
    return next((name for name, question in QUESTION_COLUMNS.items() if question in columns), None)


def columns_problem(columns: Collection[str]) -> str | None:
    """Why rows with these columns cannot be used at all, as the end of a sentence about their file; None if they can.

    A row without columns for pictures is a question of text alone.
    """
    name = recognise(columns)
    if name is None:
        listed = ", ".join(repr(column) for column in list(columns)[:12]) or "no columns"
        if "reward_model" in columns or "ability" in columns:
            return f"has no column 'prompt', which rows of Vero's format have; it has {listed}"
        return (
            f"has columns of no known row format ({listed}); rename them to question, answer and image, or to "
            "the names of Vero, verl, EasyR1 or TRL"
        )
    if name == "vero" and "reward_model" not in columns:
        return "has no column 'reward_model' with the ground truths, which rows of Vero's format have"
    if name != "vero" and not any(column in columns for column in TRUTH_COLUMNS):
        return f"has a column {QUESTION_COLUMNS[name]!r} but none of {', '.join(TRUTH_COLUMNS)} to check answers by"
    return None


def as_vero_row(row: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """A row of any known format in Vero's columns; other columns stay as they are.

    Args:
      row: columns by name. One of no known format becomes a `BrokenRow`.
      source: name of the file or folder, the `data_source` of rows that have none.
    """
    if isinstance(row, BrokenRow):
        return row
    name = recognise(row)
    if name is None:
        problem = columns_problem(row) or ""
        return BrokenRow(source, "columns of no known format", problem, row.get("id"))
    if name == "vero":
        return row if "data_source" in row else {**row, "data_source": source}
    column = QUESTION_COLUMNS[name]
    question = row[column]
    truth, response = _truth(row)
    extra = mapping(row.get("extra_info")) or {}
    stated = {"question": question if isinstance(question, str) else None, "answer": truth, "solution": response}
    rest = {key: value for key, value in row.items() if key != column and key not in TRUTH_COLUMNS}
    return {
        **rest,
        "data_source": row.get("data_source") or source,
        "prompt": question,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {**{key: value for key, value in stated.items() if value}, **extra},
    }


def extra_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The further columns of a row in Vero's columns that are small: numbers, truth values and short texts."""
    return {
        name: value
        for name, value in row.items()
        if name not in VERO_COLUMNS
        and (isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= MAX_EXTRA_LENGTH))
    }


def mapping(value: Any) -> dict[str, Any] | None:
    """An object as it is, or as the JSON text that holds it; None for anything else."""
    if isinstance(value, str):
        text = value
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not writable(value, text):
            return None
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else None


def json_list(text: str) -> list[Any] | None:
    """The list that a JSON text holds; None for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def writable(value: Any, text: str) -> bool:
    r"""Whether a value that was read from JSON can be written as UTF-8: half of a \ud83d\ude00 can not."""
    if "\\ud" not in text.lower():
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def truth_text(value: Any) -> str:
    """A ground truth as text: lists and objects as JSON, null as ""."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, bytes):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def truth_of_solution(solution: str) -> str:
    r"""The truth in a whole reasoning: its last <answer>...</answer>, there or else anywhere the last \boxed{...}."""
    answers = _ANSWER.findall(solution)
    text = answers[-1] if answers else solution
    boxed = _last_boxed(text)
    return (text if boxed is None else boxed).strip()


def _truth(row: Mapping[str, Any]) -> tuple[str, str]:
    """(the truth, a reference response or "") of a row that is not in Vero's format."""
    texts = {column: truth_text(row.get(column)) for column in TRUTH_COLUMNS}
    solution = texts["solution"]
    # Only a response in the answer format can be imitated; a bare derivation would teach another one.
    response = solution if "</think>" in solution and _ANSWER.search(solution) else ""
    texts["solution"] = truth_of_solution(solution)
    return next((text for text in texts.values() if text.strip()), ""), response


def _last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} with matching braces holds."""
    opened: list[re.Match[str]] = []
    last: tuple[int, int] | None = None
    for brace in _BRACES.finditer(text):
        if brace.group() != "}":
            opened.append(brace)
        elif opened:
            start = opened.pop()
            if len(start.group()) > 1 and (last is None or start.end() > last[0]):
                last = start.end(), brace.start()
    return None if last is None else text[last[0] : last[1]]
