"""Rows from files: a snapshot of the hub (one folder of Parquet per source), or a JSONL export with image files.

A reader gives rows as they are stored; `schema.parse_row` says what they mean.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vero_jax.data import schema
from vero_jax.errors import UserError

Row = tuple[str, Mapping[str, Any], Callable[[str], bytes]]
"""(id of a row without one, columns, how to read an image file the row names)"""


@dataclasses.dataclass(frozen=True)
class RowFiles:
    """One folder of a hub snapshot, or one JSONL export."""

    name: str
    rows: Mapping[str, Callable[[], Iterator[Row]]]
    """By split: starts reading from the first row."""
    files: tuple[Path, ...]
    """What the rows are read from, in order."""
    pictures: tuple[Path, ...] = ()
    """Image files that rows may name, where rows name files."""


def find_row_files(path: Path, splits: Sequence[str]) -> list[RowFiles]:
    """What `path` (a folder in the hub's layout, or a JSONL file) holds of these splits, in order of names.

    Raises:
      UserError: nothing of the kind is there.
    """
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        return [_jsonl_export(path, splits)]
    if path.is_dir():
        return _hub_folders(path, splits)
    raise UserError(
        f"data.source {str(path)!r} is neither a folder, nor a .jsonl file, nor vero_mini; give the folder that holds "
        "a snapshot of Vero-600k"
    )


def _hub_folders(folder: Path, splits: Sequence[str]) -> list[RowFiles]:
    """Every sub-folder (and the folder itself) that holds `<split>*.parquet`."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = []
    for place in [*folders, folder]:
        files = {
            split: sorted(place.glob(f"{split}-*.parquet")) + sorted(place.glob(f"{split}.parquet")) for split in splits
        }
        if any(files.values()):
            rows = {split: _parquet_reader(place.name, split, paths) for split, paths in files.items() if paths}
            found.append(RowFiles(place.name, rows, tuple(path for paths in files.values() for path in paths)))
    if not found:
        wanted = " or ".join(f"{split}-*.parquet" for split in splits)
        raise UserError(
            f"{folder} has no data: expected one folder per source with {wanted} in it, as a snapshot of the hub's "
            "Vero-600k has; set data.source to that folder"
        )
    return found


def _parquet_reader(config: str, split: str, paths: Sequence[Path]) -> Callable[[], Iterator[Row]]:
    def read() -> Iterator[Row]:
        number = 0
        for path in paths:
            try:
                with pq.ParquetFile(path) as file:
                    missing = [
                        name
                        for name in ("prompt", "image", "ability", "extra_info")
                        if name not in file.schema_arrow.names
                    ]
                    if missing:
                        raise UserError(f"{path} has no column {missing[0]!r}; it is not in Vero-600K's row format")
                    for batch in file.iter_batches(batch_size=16):
                        for row in batch.to_pylist():
                            yield f"{config}_{split}_{number}", row, schema.read_beside(path.parent)
                            number += 1
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path} is not readable as Parquet ({error}); download it again") from error

    return read


def _jsonl_export(path: Path, splits: Sequence[str]) -> RowFiles:
    """A JSONL export: `path` and the files of the other splits beside it.

    The split of a row is its `extra_info.split` where that is one of `splits`, else the one the file's name tells, else
    the first. Image paths are relative to the file.
    """
    files = [path]
    for split in splits:
        for other in splits:
            sibling = path.with_name(path.name.replace(split, other))
            if split in path.name and sibling != path and sibling.is_file():
                files.append(sibling)

    def reader(wanted: str) -> Callable[[], Iterator[Row]]:
        def read() -> Iterator[Row]:
            for file in files:
                named = next((split for split in splits if split in file.name), splits[0])
                for number, row in enumerate(_jsonl_rows(file)):
                    extra = row.get("extra_info")
                    own = extra.get("split") if isinstance(extra, Mapping) else None
                    if (own if own in splits else named) == wanted:
                        yield f"{file.stem}_{number}", row, schema.read_beside(file.parent)

        return read

    others = [*path.parent.glob(f"*{path.suffix}")]
    pictures = sorted(item for item in path.parent.rglob("*") if item.is_file() and item not in others)
    return RowFiles("jsonl", {split: reader(split) for split in splits}, tuple(files), tuple(pictures))


def _jsonl_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON ({error}); export the file again") from error
            yield row if isinstance(row, Mapping) else {}
