"""Rows as Vero-600K stores them, the records they are kept as, and the `Example` they become.

A row comes from the hub's Parquet (image bytes inside) or from the official JSONL export (image files beside it).
Columns are read by name, extra ones are ignored. A row that cannot be used raises `RowError`, whose reason callers
count by.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vero_jax.types import Example

REWARD_TYPES = (
    "string_match",
    "multiple_choice",
    "numeric",
    "number_list",
    "list_string_match",
    "web_action",
    "counting",
    "search",
    "grounding",
    "clicking",
    "instruction_following",
    "instruction_following_llm_judge",
    "llm_judge",
)
JUDGE_TYPES = ("llm_judge", "instruction_following_llm_judge")
"""Reward types that need a judge model."""
ALIASES = {"exact_match": "string_match", "list_match": "list_string_match", "ordering": "number_list"}
"""Names found in the data set's documentation, and the reward types they mean."""

IMAGE_MARKER = "<image>"

Sizes = Sequence[tuple[int, int]]


class RowError(ValueError):
    """A row that cannot be used. `reason` is a short phrase to count by, the message has the particulars."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.detail)


def parse_row(row: Mapping[str, Any], fallback_id: str, read_file: Callable[[str], bytes]) -> Example:
    """A row of the hub's Parquet or of the JSONL export as an `Example`.

    Args:
      row: columns by name.
      fallback_id: the id of a row without one.
      read_file: gives the bytes of an image that the row names by path only; raises OSError.

    Raises:
      RowError: the row cannot be used.
    """
    extra = _plain(row.get("extra_info"))
    extra = extra if isinstance(extra, dict) else {}
    reward_model = row.get("reward_model")
    reward_model = reward_model if isinstance(reward_model, Mapping) else {}
    images = _images(row, read_file)
    messages = _messages(row.get("prompt"), _text(extra.get("question")), len(images))
    reward_type = _text(extra.get("reward_type")).strip().lower()
    reward_type = ALIASES.get(reward_type, reward_type)
    if not reward_type:
        raise RowError("no reward type")
    domain = _text(row.get("ability"))
    if not domain:
        raise RowError("no ability")
    ground_truth = _text(reward_model.get("ground_truth"))
    problem = ground_truth_problem(reward_type, ground_truth)
    if problem:
        raise RowError(problem, ground_truth[:80])
    return Example(
        id=_text(row.get("id")) or _text(extra.get("id")) or fallback_id,
        domain=domain,
        source=_text(row.get("data_source")),
        messages=messages,
        images=images,
        reward_type=reward_type,
        ground_truth=ground_truth,
        extra_info=extra,
        solution=_text(extra.get("solution")),
    )


def ground_truth_problem(reward_type: str, ground_truth: str) -> str | None:
    """Why no answer could ever score with this ground truth, or None."""
    if not ground_truth.strip():
        return None if reward_type == "llm_judge" else "empty ground truth"
    if reward_type in ("grounding", "clicking") and '"bbox_2d"' not in ground_truth:
        return "ground truth without boxes"
    if reward_type.startswith("instruction_following"):
        value = _literal(ground_truth)
        value = _literal(value) if isinstance(value, str) else value  # some rows are encoded twice
        if not isinstance(value, dict) or not isinstance(value.get("instructions"), list) or not value["instructions"]:
            return "ground truth without instructions"
    if reward_type == "web_action" and not isinstance(_literal(ground_truth), dict):
        return "ground truth is no action"
    return None


def to_features(example: Example, sizes: Sizes) -> dict[str, Any]:
    """The record of an example, as TFDS features. `sizes` are (width, height) of its images.

    Only what selects and mixes rows has a field of its own; all else is one JSON text, so that rows with other
    `extra_info` keys need no other schema.
    """
    rest = {
        "messages": [dict(message) for message in example.messages],
        "reward_type": example.reward_type,
        "ground_truth": example.ground_truth,
        "extra_info": dict(example.extra_info),
    }
    return {
        "id": example.id,
        "ability": example.domain,
        "data_source": example.source,
        "images": list(example.images),
        "widths": [width for width, _ in sizes],
        "heights": [height for _, height in sizes],
        "rest": json.dumps(rest, ensure_ascii=False),
    }


def from_features(record: Mapping[str, Any]) -> Example:
    """The example of a record that `to_features` made, as TFDS gives it back (text as bytes)."""
    rest = json.loads(_decoded(record["rest"]))
    return Example(
        id=_decoded(record["id"]),
        domain=_decoded(record["ability"]),
        source=_decoded(record["data_source"]),
        messages=tuple(rest["messages"]),
        images=tuple(bytes(data) for data in record["images"]),
        reward_type=rest["reward_type"],
        ground_truth=rest["ground_truth"],
        extra_info=rest["extra_info"],
        solution=_text(rest["extra_info"].get("solution")),
    )


def export_record(example: Example, image_paths: Sequence[str], split: str, index: int) -> dict[str, Any]:
    """The line that the official JSONL export writes for an example: its keys, their order, its defaults.

    Args:
      example: the row.
      image_paths: paths of its image files, relative to the JSONL file, with forward slashes.
      split, index: name of the split, and place of the row in its config and split.
    """
    extra = example.extra_info
    number = extra.get("index")
    tolerance = extra.get("tolerance")
    users = [message["content"] for message in example.messages if message["role"] == "user" and message["content"]]
    return {
        "id": example.id,
        "data_source": example.source,
        "prompt": [{"role": message["role"], "content": message["content"]} for message in example.messages],
        "images": list(image_paths),
        "ability": example.domain,
        "reward_model": {"style": "rule", "ground_truth": example.ground_truth},
        "extra_info": {
            "id": example.id,
            "split": split,
            "index": int(number) if number is not None else index,
            "question": _text(extra.get("question")) or (users[0] if users else ""),
            "answer": _text(extra.get("answer")),
            "reward_type": _text(extra.get("reward_type")),
            "tolerance": float(tolerance) if tolerance is not None else None,
        },
    }


def _messages(prompt: Any, question: str, images: int) -> tuple[dict[str, str], ...]:
    """Chat messages from any of the stored forms; the bare question where the prompt is unusable."""
    if isinstance(prompt, Mapping):
        roles, contents = prompt.get("role"), prompt.get("content")
        if isinstance(roles, Sequence) and not isinstance(roles, str):  # a struct of lists
            contents = contents if isinstance(contents, Sequence) else []
            pairs = list(zip(roles, contents, strict=False))
        else:
            pairs = [(roles, contents)]
    elif isinstance(prompt, str):
        pairs = [("user", prompt)]
    elif isinstance(prompt, Sequence):
        pairs = [(item.get("role"), item.get("content")) for item in prompt if isinstance(item, Mapping)]
    else:
        pairs = []
    messages = [{"role": _text(role) or "user", "content": _content(content)} for role, content in pairs]
    messages = [message for message in messages if message["content"].strip()]
    if not any(message["role"] == "user" for message in messages):
        if not question.strip():
            raise RowError("no question")
        messages = [{"role": "user", "content": question}]
    markers = sum(message["content"].count(IMAGE_MARKER) for message in messages)
    if markers == 0 and images:  # the place of an image that no marker names is before the first question
        user = next(message for message in messages if message["role"] == "user")
        user["content"] = IMAGE_MARKER * images + "\n" + user["content"]
    elif markers != images:
        raise RowError("image markers do not match the images", f"{markers} markers, {images} images")
    return tuple(messages)


def _content(content: Any) -> str:
    """A message's text: typed parts are joined, an image part becomes the marker."""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence) or isinstance(content, str):
        return _text(content)
    parts = []
    for part in content:
        if not isinstance(part, Mapping):
            parts.append(_text(part))
        elif part.get("type") in ("image", "image_url") or (part.get("type") is None and "image" in part):
            parts.append(IMAGE_MARKER)
        elif part.get("text") is not None:
            parts.append(_text(part["text"]))
        else:
            parts.append(json.dumps(_plain(part), ensure_ascii=False))
    return "".join(parts)


def _images(row: Mapping[str, Any], read_file: Callable[[str], bytes]) -> tuple[bytes, ...]:
    stored = row.get("image") if row.get("image") is not None else row.get("images")
    if stored is None:
        raise RowError("no image")
    items = stored if isinstance(stored, Sequence) and not isinstance(stored, (str, bytes)) else [stored]
    images = []
    for item in items:
        path: Any = item
        if isinstance(item, bytes):
            images.append(item)
            continue
        if isinstance(item, Mapping):
            if item.get("bytes"):
                images.append(bytes(item["bytes"]))
                continue
            path = item.get("path") or item.get("image")
        if not isinstance(path, str) or not path:
            raise RowError("no image", "neither bytes nor a path")
        try:
            images.append(read_file(path))
        except OSError as error:
            raise RowError("image file missing", f"{path} ({error.strerror or error})") from error
    if not images:
        raise RowError("no image")
    return tuple(images)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: arrow's dates and the like become text, NaN becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (Sequence, set)):
        return [_plain(item) for item in value]
    return str(value)


def _literal(text: str) -> Any:
    """JSON, else a Python literal (both occur in the stored ground truths), else None."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _decoded(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def read_beside(folder: Path) -> Callable[[str], bytes]:
    """Reads image files named relative to `folder`."""

    def read(path: str) -> bytes:
        return (folder / path).read_bytes()

    return read
