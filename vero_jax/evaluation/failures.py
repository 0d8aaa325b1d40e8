"""Which answers of an evaluation are worth looking at, and as much of each as a page can hold.

In: the rows of a results folder. Out: plain JSON for the page's script, which shows every text as text.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.score import Score
from vero_jax.runtime.pages import printable, thumbnail

KINDS = {
    "wrong": "wrong",
    "strict": "right by the reference, wrong by the strict figure",
    "unjudged": "unjudged",
    "cut": "cut off by the limit of tokens",
    "unasked": "not asked or not scored",
}
"""What can be wrong with an answer, in words."""

MOST = 50
"""Answers of a benchmark in the page."""
PICTURES = 24
"""Pictures of a benchmark in the page; further ones are shown from the folder beside it."""
SIDE = 240
"""Longest side of a picture in CSS pixels."""
_HEAD, _TAIL = 4_000, 4_000
"""Characters of a text that are kept at its beginning and its end."""
_FIELD = 1_500
"""Characters of a field of the row."""
_TRUTH = re.compile(
    r"(?!.*(?:option|type))(?:.*(?:answer|solution|truth|label|bbox|component|constraint|number)|reward_model$|.*_a$)",
    re.IGNORECASE,
)
"""Names of fields that say what was expected."""
_STORED = re.compile(r"images/[A-Za-z0-9_-]+(?:\.[A-Za-z0-9]+)?")


def half_marks(benchmark: Benchmark | None) -> float:
    """An answer is right from here on: half of the full marks, on the answers' own scale."""
    return 0.5 if benchmark is None else benchmark.half_marks


def kinds_of(row: Mapping[str, Any], half: float) -> list[str]:
    """What is wrong with an answer; nothing: [].

    Args:
      half: from this figure on it is right.
    """
    if row.get("sample") is None:
        return ["unasked"]
    value, strict, missing = row.get("value"), row.get("strict"), row.get("missing") or ""
    found = []
    if value is not None and value < half:
        found.append("wrong")
    if value is not None and value >= half and strict is not None and strict < half:
        found.append("strict")
    if missing == "unjudged":
        found.append("unjudged")
    elif missing:
        found.append("unasked")
    if row.get("stop_reason") == "length":
        found.append("cut")
    return found


@dataclasses.dataclass(frozen=True)
class Failures:
    """Those of one task."""

    task: str
    counts: Mapping[str, int]
    """All of them, by kind; an answer can be of several."""
    answers: int
    """Of which some kind is wrong."""
    kept: Sequence[tuple[list[str], Mapping[str, Any]]]
    """(kinds, row) of those that the page shows, in the order of the file."""


def failures(folder: ResultsFolder, task: str, benchmark: Benchmark | None) -> Failures:
    """Reads a task's rows once, and keeps at most `MOST`: of each kind its share, the first ones of the file."""
    half = half_marks(benchmark)
    counts: Counter[str] = Counter()
    first: dict[str, list[int]] = {kind: [] for kind in KINDS}
    waiting: dict[int, tuple[list[str], Mapping[str, Any]]] = {}
    answers = 0
    for index, row in enumerate(folder.rows(task)):
        Score.of_row(row, f"{folder.path}: {task}, question {row.get('id')!r}")  # a broken row is told here
        kinds = kinds_of(row, half)
        if not kinds:
            continue
        answers += 1
        counts.update(kinds)
        for kind in kinds:
            if len(first[kind]) < MOST:
                first[kind].append(index)
                waiting[index] = kinds, row
    chosen: set[int] = set()
    for turn in zip(*(_padded(places) for places in first.values()), strict=True):
        for index in turn:
            if index is not None and len(chosen) < MOST:
                chosen.add(index)
    return Failures(task, dict(counts), answers, [waiting[index] for index in sorted(chosen)])


def _padded(places: Sequence[int]) -> list[int | None]:
    return [*places, *[None] * (MOST - len(places))]


def embedded(folder: ResultsFolder, found: Sequence[Failures], rows: Mapping[str, str]) -> dict[str, Any]:
    """What the page's script reads.

    Args:
      rows: row of the table by task.
    """
    pictures: dict[str, str] = {}
    items = []
    for place, task in enumerate(found):
        room = PICTURES
        for kinds, row in task.kept:
            names = [name for name in _list(row.get("images")) if isinstance(name, str) and _STORED.fullmatch(name)]
            for name in names:
                if name not in pictures and room:
                    shown = _thumbnail(folder, name)
                    if shown:
                        pictures[name] = shown
                        room -= 1
            items.append(_item(place, kinds, row, names))
    tasks = [
        {
            "task": task.task,
            "row": rows.get(task.task, task.task),
            "counts": task.counts,
            "answers": task.answers,
            "kept": len(task.kept),
        }
        for task in found
    ]
    return {"kinds": KINDS, "tasks": tasks, "pictures": pictures, "items": items}


def _thumbnail(folder: ResultsFolder, name: str) -> str | None:
    try:
        return thumbnail((folder.path / name).read_bytes(), SIDE)
    except OSError:
        return None


def _item(task: int, kinds: list[str], row: Mapping[str, Any], images: list[str]) -> dict[str, Any]:
    judge = [item for item in _list(row.get("judge")) if isinstance(item, Mapping)]
    stored = row.get("row")
    fields = stored if isinstance(stored, Mapping) else {}
    return {
        "task": task,
        "kinds": kinds,
        "id": printable(row.get("id", "")),
        "sample": row.get("sample"),
        "images": images,
        "facts": dict(_facts(row)),
        "prompt": _text(row.get("prompt")),
        "response": _text(row.get("response")),
        "judge": [[_text(item.get("prompt")), _text(item.get("reply"))] for item in judge],
        "expected": [_field(*field) for field in fields.items() if _TRUTH.match(field[0])],
        "fields": [_field(*field) for field in fields.items() if not _TRUTH.match(field[0])],
    }


def _facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of an answer beside its texts, in the order in which it is shown."""
    for name in ("value", "strict", "extracted", "prediction", "group"):
        if row.get(name) not in (None, ""):
            yield name, shortened(_plain(row[name]))
    for name, value in (row.get("parts") or {}).items():
        yield printable(name), _plain(value)
    if row.get("tokens") is not None:
        yield "tokens", _plain(row["tokens"])
    for name, field in (("stopped by", "stop_reason"), ("no figure", "missing"), ("detail", "detail")):
        if row.get(field):
            yield name, shortened(row[field])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    """For a text that the page leaves out where there is none."""
    return None if value is None else shortened(value)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, (str, int)) else json.dumps(value, ensure_ascii=False)


def _field(name: str, value: Any) -> list[str]:
    return [printable(name), shortened(_plain(value), _FIELD, 0)]


def shortened(value: Any, head: int = _HEAD, tail: int = _TAIL) -> str:
    """A text without its middle, where it is long."""
    text = str(value)
    if len(text) > head + tail:
        left = len(text) - head - tail
        text = f"{text[:head]}\n[… {left:,} characters are not in this page …]\n{text[len(text) - tail :]}"
    return printable(text)
