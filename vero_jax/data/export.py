"""Writes rows as the official export of Vero-600K does, byte for byte: one JSONL file per split, image files beside.

It works on the rows as stored, so also on those that training leaves out. Image files that are there already are kept,
and the JSONL files appear when all is written, so that the command can be repeated after an interruption.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vero_jax.data import schema
from vero_jax.data.disk import friendly_disk
from vero_jax.data.origins import Origin
from vero_jax.data.readers import Row
from vero_jax.data.schema import as_text
from vero_jax.errors import UserError

_IMAGE_PART = ("image", "image_url")


def jsonl_name(split: str) -> str:
    """The official name of a split's file."""
    return f"vero_600k_{split}.verl.jsonl"


def export_jsonl(
    origins: Sequence[Origin], folder: Path, splits: Sequence[str], *, say: Callable[[str], None]
) -> dict[Path, int]:
    """Writes all rows of all configs, in their order.

    Args:
      origins: the configs.
      folder: gets `vero_600k_<split>.verl.jsonl` and `images/<split>/<config>/`.
      splits: which, one file each.
      say: gets a line before each config, and one for every row whose image is not to be had, which is left out.

    Returns:
      Rows written, by file.

    Raises:
      UserError: the disk is full or does not let us write, or rows cannot be read.
    """
    counts = dict.fromkeys((folder / jsonl_name(split) for split in splits), 0)
    with friendly_disk(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        drafts = {}
        files: dict[str, IO[str]] = {}
        for split in splits:
            drafts[split] = folder / f".{jsonl_name(split)}.{os.getpid()}.part"
            stack.callback(drafts[split].unlink, missing_ok=True)
            files[split] = stack.enter_context(drafts[split].open("w", encoding="utf-8", newline="\n"))
        for origin in origins:
            say(f"exporting {origin.name}")
            rows = origin.rows(say)
            for split in splits:
                place = f"images/{split}/{schema.file_name(origin.name, 'config')}"
                for number, row in enumerate(rows[split]() if split in rows else ()):
                    record = _export_row(folder, place, origin.name, split, number, row, say)
                    if record is not None:
                        files[split].write(json.dumps(record, ensure_ascii=False) + "\n")
                        counts[folder / jsonl_name(split)] += 1
            origin.discard()
        for split in splits:
            files[split].close()
            drafts[split].replace(folder / jsonl_name(split))
    return counts


def _export_row(
    folder: Path, place: str, config: str, split: str, number: int, row: Row, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Writes the images of a row, and gives its line; None where an image is not to be had."""
    _, columns, read_file = row
    extra = columns.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    row_id = as_text(columns.get("id")) or as_text(extra.get("id")) or f"{config}_{split}_{number}"
    stored = columns.get("image") if columns.get("image") is not None else columns.get("images")
    items = stored if isinstance(stored, (list, tuple)) else [] if stored is None else [stored]
    paths = []
    for place_of_image, item in enumerate(items):
        name, data = _image(item)
        mark = f"_{place_of_image}" if len(items) > 1 else ""  # the official export knows one image a row
        suffix = PurePosixPath(name).suffix.lower() or ".png"
        path = f"{place}/{number:08d}_{schema.file_name(row_id, 'sample')}{mark}{suffix}"
        if not (folder / path).exists():
            try:
                content = data if data is not None else read_file(name)
            except (OSError, UserError) as error:
                say(f"{config}, {split}, row {number} ({row_id}) is left out: its image cannot be read ({error})")
                return None
            _write_new(folder / path, content)
        paths.append(path)
    if not paths and "image" in columns:
        say(f"{config}, {split}, row {number} ({row_id}) is left out: it has no image")
        return None
    return _record(columns, extra, row_id, paths, split, number)


def _write_new(path: Path, content: bytes) -> None:
    """A file of this name is complete, whenever the process may end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(content)
    draft.replace(path)


def _image(item: Any) -> tuple[str, bytes | None]:
    """(path, bytes) of a stored image, whichever it has."""
    if isinstance(item, Mapping):
        return as_text(item.get("path")), item["bytes"] if item.get("bytes") else None
    return ("", item) if isinstance(item, bytes) else (as_text(item), None)


def _record(
    columns: Mapping[str, Any], extra: Mapping[str, Any], row_id: str, paths: list[str], split: str, number: int
) -> dict[str, Any]:
    """The line of a row as it is stored."""
    model = columns.get("reward_model")
    model = model if isinstance(model, Mapping) else {}
    question = as_text(extra.get("question"))
    messages = _messages(columns.get("prompt")) or [{"role": "user", "content": question}]
    return schema.official_record(
        row_id=row_id,
        source=as_text(columns.get("data_source")),
        messages=messages,
        image_paths=paths,
        domain=as_text(columns.get("ability")),
        reward_model={name: as_text(model.get(name)) for name in ("style", "ground_truth")},
        extra=extra,
        split=split,
        index=number,
    )


def _messages(prompt: Any) -> list[dict[str, str]]:
    """Role and text of every message of a struct of lists, a list of messages, one message, or a bare question."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt else []
    if isinstance(prompt, Mapping):
        roles, contents = prompt.get("role"), prompt.get("content")
        if isinstance(roles, (list, tuple)):
            prompt = [{"role": role, "content": content} for role, content in zip(roles, contents or (), strict=False)]
        else:
            prompt = [prompt]
    if not isinstance(prompt, (list, tuple)):
        return []
    turns = [turn for turn in prompt if isinstance(turn, Mapping)]
    return [{"role": as_text(turn.get("role")) or "user", "content": _content(turn.get("content"))} for turn in turns]


def _content(content: Any) -> str:
    if isinstance(content, (list, tuple)):
        return "".join(_content(part) if isinstance(part, Mapping) else as_text(part) for part in content)
    if not isinstance(content, Mapping):
        return as_text(content)
    if content.get("type") in _IMAGE_PART:
        return "<image>"
    return (
        as_text(content["text"]) if content.get("text") is not None else json.dumps(dict(content), ensure_ascii=False)
    )
