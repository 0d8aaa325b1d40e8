"""Rows as Vero-600K stores them, the records they are kept as, and the `Example` they become.

A row comes from the hub's Parquet (image bytes inside) or from the official JSONL export (image files beside it);
`formats.as_vero_row` makes one of the rows of other trainers. Columns are read by name, and small extra ones go along
in `extra_info`. A row that cannot be used raises `RowError`, whose reason callers count by.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vero_jax.data import formats
from vero_jax.data.ground_truth import ground_truth_doubt, ground_truth_problem, guess_reward_type
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

CUSTOM_DOMAIN = "custom"
"""The domain of rows without a column `ability`."""
GUESSED_KEY = "reward_type_guessed"
"""True in the `extra_info` of a row whose reward type is a guess."""
DOUBT_KEY = "ground_truth_doubt"
"""In the `extra_info` of a row whose ground truth looks odd for its type: a phrase that says how."""
IMAGE_MARKER = "<image>"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")

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
    """A row in Vero's columns as an `Example`.

    A row without a reward type gets the one that `ground_truth.guess_reward_type` guesses, and is marked
    (`GUESSED_KEY`); so is one with an odd ground truth (`DOUBT_KEY`). Without the column `ability` its domain is
    `CUSTOM_DOMAIN`.

    A row has no images if it has no image column, or an empty list in it; null instead of an image is an error, because
    something is missing there.

    Args:
      row: columns by name.
      fallback_id: the id of a row without one.
      read_file: gives the bytes of an image that the row names by path only; raises OSError.

    Raises:
      RowError: the row cannot be used.
    """
    if isinstance(row, formats.BrokenRow):
        raise RowError(row.reason, row.detail)
    stated = _object(row, "extra_info")
    surplus = {key: value for key, value in formats.extra_columns(row).items() if stated.get(key) is None}
    extra = _plain({**stated, **surplus})
    reward_model = _object(row, "reward_model")
    if row.get("videos") or row.get("video"):
        raise RowError("videos are not read", "rows may hold images only")
    images = tuple(_image_bytes(item, read_file) for item in _stored_images(row))
    messages = _messages(row.get("prompt"), as_text(extra.get("question")), len(images))
    domain = as_text(row.get("ability")) if "ability" in row else CUSTOM_DOMAIN
    if not domain:
        raise RowError("no ability")
    ground_truth = formats.truth_text(reward_model.get("ground_truth"))
    reward_type = as_text(extra.get("reward_type")).strip().lower()
    reward_type = ALIASES.get(reward_type, reward_type)
    if not reward_type and ground_truth.strip():
        questions = [message["content"] for message in messages if message["role"] == "user"]
        reward_type = guess_reward_type("\n".join(questions), ground_truth)
        extra[GUESSED_KEY] = True
    problem = ground_truth_problem(reward_type, ground_truth)
    if problem:
        raise RowError(problem, ground_truth[:80])
    doubt = ground_truth_doubt(reward_type, ground_truth)
    if doubt:
        extra[DOUBT_KEY] = doubt
    return Example(
        id=as_text(row.get("id")) or as_text(extra.get("id")) or fallback_id,
        domain=domain,
        source=as_text(row.get("data_source")),
        messages=messages,
        images=images,
        reward_type=reward_type,
        ground_truth=ground_truth,
        extra_info=extra,
        solution=as_text(extra.get("solution")),
    )


def image_paths(row: Mapping[str, Any]) -> list[str | None]:
    """The name that a row gives each of its images, None for one without a name."""
    names = []
    for item in _stored_images(row):
        path = item.get("path") or item.get("image") if isinstance(item, Mapping) else item
        names.append(path if isinstance(path, str) and not path.startswith("data:") else None)
    return names


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
        solution=as_text(rest["extra_info"].get("solution")),
    )


def export_record(example: Example, image_paths: Sequence[str], split: str, index: int) -> dict[str, Any]:
    """The line that the official JSONL export writes for an example: its keys, their order, its defaults.

    Args:
      example: the row.
      image_paths: paths of its image files, relative to the JSONL file, with forward slashes.
      split, index: name of the split, and place of the row in its config and split.
    """
    return official_record(
        row_id=example.id,
        source=example.source,
        messages=[{"role": message["role"], "content": message["content"]} for message in example.messages],
        image_paths=image_paths,
        domain=example.domain,
        reward_model={"style": "rule", "ground_truth": example.ground_truth},
        extra=example.extra_info,
        split=split,
        index=index,
    )


def official_record(
    *,
    row_id: str,
    source: str,
    messages: Sequence[Mapping[str, str]],
    image_paths: Sequence[str],
    domain: str,
    reward_model: Mapping[str, str],
    extra: Mapping[str, Any],
    split: str,
    index: int,
) -> dict[str, Any]:
    """Keys, order and defaults of a line of the official export; `extra` is the row's extra_info."""
    said = (message["content"] for message in messages if message["role"] == "user" and message["content"])
    return {
        "id": row_id,
        "data_source": source,
        "prompt": list(messages),
        "images": list(image_paths),
        "ability": domain,
        "reward_model": dict(reward_model),
        "extra_info": {
            "id": row_id,
            "split": split,
            "index": _number(extra.get("index"), int, index),
            "question": as_text(extra.get("question")) or next(said, ""),
            "answer": as_text(extra.get("answer")),
            "reward_type": as_text(extra.get("reward_type")),
            "tolerance": _number(extra.get("tolerance"), float, None),
        },
    }


def _number(value: Any, kind: Callable[[Any], Any], default: Any) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return number if math.isfinite(number) else default


def _messages(prompt: Any, question: str, images: int) -> tuple[dict[str, str], ...]:
    """Chat messages from any of the stored forms; the bare question where the prompt is unusable."""
    pairs = [(turn.get("role"), turn.get("content")) for turn in _turns(prompt)]
    messages = [{"role": as_text(role) or "user", "content": _content(content)} for role, content in pairs]
    messages = [message for message in messages if message["content"].strip()]
    if not any(message["role"] == "user" for message in messages):
        if not question.strip():
            what = "the prompt has no turn of the user" if prompt else "the prompt is empty"
            odd = not isinstance(prompt, (str, Mapping, Sequence)) and prompt is not None
            raise RowError("no question", f"the prompt is a {type(prompt).__name__}" if odd else what)
        messages = [{"role": "user", "content": question}]
    markers = sum(message["content"].count(IMAGE_MARKER) for message in messages)
    if markers == 0 and images:  # the place of an image that no marker names is before the first question
        user = next(message for message in messages if message["role"] == "user")
        user["content"] = IMAGE_MARKER * images + "\n" + user["content"]
    elif markers != images:
        raise RowError("image markers do not match the images", f"{markers} markers, {images} images")
    return tuple(messages)


def _turns(prompt: Any) -> list[Mapping[str, Any]]:
    """The turns of a prompt: text, one message, a list of them (or the JSON text of one), or a struct of lists."""
    if isinstance(prompt, str):
        turns = formats.json_list(prompt) if prompt.lstrip().startswith("[") else None
        if turns and all(isinstance(turn, Mapping) and "content" in turn for turn in turns):
            return turns
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, Mapping):
        roles, contents = prompt.get("role"), prompt.get("content")
        if not isinstance(roles, Sequence) or isinstance(roles, str):
            return [prompt]
        contents = contents if isinstance(contents, Sequence) else []
        return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    if isinstance(prompt, Sequence):
        return [turn for turn in prompt if isinstance(turn, Mapping)]
    return []


def _parts(content: Any) -> Sequence[Any]:
    """The typed parts of a content; none where it is text."""
    if isinstance(content, Mapping):
        return [content]
    return content if isinstance(content, Sequence) and not isinstance(content, str) else []


def _is_image(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") in ("image", "image_url") or (part.get("type") is None and part.get("image") is not None)


def _content(content: Any) -> str:
    """A message's text: typed parts are joined, an image part becomes the marker."""
    if not isinstance(content, (Mapping, Sequence)) or isinstance(content, str):
        return as_text(content)
    parts = []
    for part in _parts(content):
        if not isinstance(part, Mapping):
            parts.append(as_text(part))
        elif _is_image(part):
            parts.append(IMAGE_MARKER)
        elif part.get("text") is not None:
            parts.append(as_text(part["text"]))
        else:
            parts.append(json.dumps(_plain(part), ensure_ascii=False))
    return "".join(parts)


def _stored_images(row: Mapping[str, Any]) -> list[Any]:
    """What a row holds of images, one entry each: bytes, a path, or an object with either."""
    if not any(column in row for column in formats.IMAGE_COLUMNS):
        return list(_images_in_parts(row.get("prompt")))
    stored = row.get("image") if row.get("image") is not None else row.get("images")
    if stored is None or (stored == [] and row.get("image", stored) is None):
        raise RowError("no image", "null instead of an image; an empty list says that there is none")
    return list(stored) if isinstance(stored, (list, tuple)) else [stored]


def _images_in_parts(prompt: Any) -> Iterator[Any]:
    """The pictures that stand inside the parts of the messages."""
    for turn in _turns(prompt):
        for part in _parts(turn.get("content")):
            if _is_image(part):
                picture = part.get("image") if part.get("image") is not None else part.get("image_url")
                yield picture.get("url", picture) if isinstance(picture, Mapping) else picture


def _image_bytes(item: Any, read_file: Callable[[str], bytes]) -> bytes:
    """The encoded image of one entry; RowError where there is none."""
    path: Any = item
    if isinstance(item, Mapping):
        data = item.get("bytes")
        if isinstance(data, (bytes, bytearray)) and data:
            return bytes(data)
        if isinstance(data, str) and data:
            return _from_base64(data)
        path = item.get("path") or item.get("image")
    if isinstance(path, (bytes, bytearray)):
        return bytes(path)
    if path is not None and not isinstance(path, str):
        raise RowError("image of a wrong type", f"a {type(path).__name__} where bytes or a path belong")
    if not path:
        raise RowError("no image", "neither bytes nor a path")
    if path.startswith("data:"):
        return _from_base64(path.partition(",")[2])
    if path.startswith(("http://", "https://")):
        raise RowError("image is a web address", path[:80])
    try:
        return read_file(path.removeprefix("file://"))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise RowError("image file missing", f"{path[:200]} ({getattr(error, 'strerror', None) or error})") from error


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("image not readable", f"its text is no base64 ({error})") from error


def _object(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    """A column that holds an object (or its JSON text, or null)."""
    value = row.get(column)
    if value is None or value == "":
        return {}
    found = formats.mapping(value)
    if found is None:
        raise RowError(f"{column} is no object", f"{value!r:.80}")
    return found


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


def as_text(value: Any) -> str:
    """A value of a column as text; nothing is no text."""
    return "" if value is None else value if isinstance(value, str) else str(value)


def _decoded(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def file_name(name: str, default: str) -> str:
    """A name as the official export makes it fit for a file; `default` where nothing is left of it."""
    return _UNSAFE.sub("_", name).strip("._") or default


def read_beside(folder: Path) -> Callable[[str], bytes]:
    """Reads image files named relative to `folder`."""

    def read(path: str) -> bytes:
        return (folder / path).read_bytes()

    return read
