"""Rows in, rows out: any source that training reads, and the JSONL layout that training reads back."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from vero_jax.data import readers, schema
from vero_jax.data.images import ImageError, open_image
from vero_jax.errors import UserError
from vero_jax.types import Example

SPLITS = ("train", "val")
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One usable row of a source, and where it stands there."""

    example: Example
    split: str
    config: str
    """Name of the folder of Parquet files, or of the kind of file, that it comes from."""
    index: int
    """Counts the rows of its config and split, unusable ones included."""
    files: tuple[Path, ...] = ()
    """Its image files on disk, where the row names files."""

    @property
    def source(self) -> str:
        """Name of the data set that the question comes from."""
        return self.example.source or self.config

    @property
    def question(self) -> str:
        """The user's turns as text, without the marks of images."""
        turns = [str(turn.get("content", "")) for turn in self.example.messages if turn.get("role") == "user"]
        return "\n".join(turns).replace(schema.IMAGE_MARKER, "").strip()


class Rows:
    """The rows of a source, from its beginning each time they are iterated over.

    Args:
      source: a folder in the hub's layout, Parquet or JSONL.
      splits: names of the splits that are read, in this order.
      only: names of the only sources (`data_source`, or a folder's name) that are given; empty: all.

    Raises:
      UserError: nothing of the kind is there, or (when iterated over) a file is broken.
    """

    def __init__(self, source: str | Path, splits: Sequence[str] = SPLITS, only: Sequence[str] = ()) -> None:
        # A reader gives files that name no split to the first: it must know all of them to tell.
        known = SPLITS if set(splits) <= set(SPLITS) else tuple(splits)
        self._splits = tuple(splits)
        self._found = readers.find_row_files(Path(source).expanduser(), known)
        self._only = frozenset(only)
        self.unusable: Counter[tuple[str, str]] = Counter()
        """(config, reason) of the rows that the latest iteration left out."""

    def __iter__(self) -> Iterator[Row]:
        self.unusable.clear()
        met: set[str] = set()
        for found in self._found:
            folder = found.files[0].parent
            for split in self._splits:
                start = found.rows.get(split)
                for index, (fallback, columns, read) in enumerate(start() if start is not None else ()):
                    names: list[str] = []
                    try:
                        example = schema.parse_row(columns, fallback, _noted(read, names))
                    except schema.RowError as error:
                        self.unusable[found.name, error.reason] += 1
                        continue
                    files = tuple(folder / name for name in names)
                    if len(files) != len(example.images) or not all(file.is_file() for file in files):
                        files = ()
                    row = Row(example, split, found.name, index, files)
                    met.update((row.source, found.name))
                    if not self._only or self._only & {row.source, found.name}:
                        yield row
        check_names("--sources", self._only, met)

    def unusable_lines(self) -> list[str]:
        """The rows that the latest iteration left out, as text for a terminal."""
        return [f"{count:,} unusable rows in {config}: {reason}" for (config, reason), count in self.unusable.items()]


def _noted(read: Any, names: list[str]) -> Any:
    def reading(name: str) -> bytes:
        data = read(name)
        names.append(name)
        return data

    return reading


def check_names(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """UserError for the first name that is not known; it names the nearest ones."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5) or known[:10]
            raise UserError(
                f"{option} names {name!r}, which the data does not have; it has {', '.join(near) or 'none'}"
            )


def listed(text: str) -> tuple[str, ...]:
    """The names in "a, b,c"."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


class RowWriter:
    """Writes rows as `<split>.jsonl` with their images beside it, in the layout of the official export.

    A context manager. `data.source=<folder>/train.jsonl` trains on the result, with `val.jsonl` as its validation
    rows. Images that are files already are linked (copied where the disk cannot link), never changed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, row: Row) -> None:
        """Appends a row. Raises OSError."""
        paths = [self._image(row, number) for number in range(len(row.example.images))]
        if row.split not in self._files:
            self._files[row.split] = (self._folder / f"{row.split}.jsonl").open("w", encoding="utf-8")
        self._files[row.split].write(json.dumps(exported(row, paths), ensure_ascii=False) + "\n")

    def _image(self, row: Row, number: int) -> str:
        data = row.example.images[number]
        suffix = row.files[number].suffix.lower() if row.files else _suffix(data)
        several = f"_{number}" if number else ""
        name = f"{row.index:08d}_{schema.file_name(row.example.id, 'sample')[:120]}{several}{suffix}"
        path = Path("images") / schema.file_name(row.split, "split") / schema.file_name(row.config, "config") / name
        place = self._folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if row.files:
            try:
                os.link(row.files[number], place)
            except OSError:  # another disk, a file system without links, or one that forbids them
                shutil.copyfile(row.files[number], place)
        else:
            place.write_bytes(data)
        return path.as_posix()


def exported(row: Row, image_paths: Sequence[str]) -> dict[str, Any]:
    """The row as the official export writes it, with the rest of its extra_info after the official keys."""
    extra = row.example.extra_info
    record = schema.export_record(row.example, image_paths, row.split, row.index)
    record["extra_info"]["reward_type"] = row.example.reward_type
    record["extra_info"] |= {key: value for key, value in extra.items() if key not in record["extra_info"]}
    return record


def _suffix(data: bytes) -> str:
    try:
        return _SUFFIXES.get(open_image(data).format or "", ".png")
    except ImageError:
        return ".png"


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One object a line. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def table(rows: Sequence[Sequence[str]], titles: Sequence[str]) -> list[str]:
    """Lines of a table for a terminal; a column whose title ends in a space is flush left, the others right."""
    widths = [max(len(line[place]) for line in [titles, *rows]) for place in range(len(titles))]
    left = [title.endswith(" ") for title in titles]
    return [
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in [titles, *rows]
    ]
