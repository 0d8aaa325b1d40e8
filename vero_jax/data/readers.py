"""Rows from files: a snapshot of the hub (one folder of Parquet per source), other Parquet files, JSONL or JSON.

A reader gives rows in Vero's columns, one at a time, whatever the size of the file; `schema.parse_row` says what they
mean. A file that cannot be read stops with a sentence; a line that cannot be read is one row that says why.

Splits: the name of a file tells its split (`train-00000-of-00002.parquet`, `my_val.jsonl`). Where it tells none, all
rows of a Parquet file belong to the first split, and those of a JSONL file to their own `extra_info.split`, if any.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vero_jax.data import formats, json_rows, schema
from vero_jax.errors import UserError

Row = tuple[str, Mapping[str, Any], Callable[[str], bytes]]
"""(id of a row without one, columns, how to read an image file the row names)"""
Place = tuple[Path, int]
"""(file, number of the row in it from 1; of a JSONL file the number of the line)"""

JSON_SUFFIXES = (".jsonl", ".json")
BATCH_BYTES = 4 << 20  # of rows that are Python objects at a time
STREAM_BYTES = 1 << 20
"""Buffer of a Parquet column. Without one, pyarrow holds a whole row group: 1.2 GB for 3,400 images in one, against 0.3
with it."""
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".avif")
_SPLIT_WORDS = frozenset(("train", "training", "val", "validation", "valid", "test", "dev", "eval"))


@dataclasses.dataclass(frozen=True)
class RowFiles:
    """One folder of a hub snapshot, or one file (or folder of files) of another kind."""

    name: str
    rows: Mapping[str, Callable[[], Iterator[Row]]]
    """By split: starts reading from the first row."""
    files: tuple[Path, ...]
    """What the rows are read from, in order."""
    pictures: tuple[Path, ...] = ()
    """Image files that rows may name, where rows name files."""
    places: Mapping[str, Callable[[], Iterator[tuple[Place, Row]]]] = dataclasses.field(default_factory=dict)
    """As `rows`, with the place of each."""


def find_row_files(path: Path, splits: Sequence[str]) -> list[RowFiles]:
    """What `path` holds of these splits, in order of names.

    Args:
      path: a folder in the hub's layout, a folder of Parquet or JSONL files, or one such file (files of the other
        splits that lie beside it and are named alike are found too).
      splits: names; the first takes the files that name no split.

    Raises:
      UserError: nothing of the kind is there.
    """
    try:
        path.stat()
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); allow reading the folders around it") from error
    except OSError:
        pass  # said below
    if path.is_file() and path.suffix in JSON_SUFFIXES:
        return [_json_files(_with_siblings(path, splits), splits)]
    if path.is_file() and path.suffix == ".parquet":
        return [_loose_parquet(path.stem, _with_siblings(path, splits), splits)]
    if path.is_dir():
        return _folder(path, splits)
    if not path.exists():
        raise UserError(f"data.source {str(path)!r} does not exist; give a folder or a file with rows, or vero_mini")
    raise UserError(
        f"data.source {str(path)!r} is neither a folder, nor a .parquet, .jsonl or .json file, nor vero_mini; give the "
        "folder that holds a snapshot of Vero-600k, or a file of rows"
    )


def column_names(path: Path) -> list[str]:
    """The columns of a file; of a JSONL or JSON file those of its first row that can be read.

    Raises:
      UserError: the file cannot be read.
    """
    if path.suffix in JSON_SUFFIXES:
        rows = (row for _, row in json_rows.read(path) if not isinstance(row, formats.BrokenRow))
        return list(next(rows, {}))
    with _open_parquet(path) as file:
        return list(file.schema_arrow.names)


def _folder(folder: Path, splits: Sequence[str]) -> list[RowFiles]:
    own = _listing(folder)
    folders = [path for path in own if path.is_dir() and not path.name.startswith(".")]
    found = []
    for place in [*folders, folder]:
        inside = own if place == folder else _listing(place)
        files = {split: _named_for(inside, split) for split in splits}
        files = {split: paths for split, paths in files.items() if paths}
        if files:
            # "data" is where sets without configs have their files; the folder around it has a name that says more.
            usual = place.name == "data" and not any(_named_for(own, split) for split in splits)
            found.append(_row_files(_name(folder) if usual or place == folder else place.name, files))
    if found:
        return found
    for suffix in (".parquet", *JSON_SUFFIXES):
        files_of_rows = [path for path in own if path.suffix == suffix and path.is_file()]
        named = [path for path in files_of_rows if _named_split(path, splits)]
        # A .json file that names no split is more likely a description of the data than data.
        rest = [path for path in files_of_rows if not _SPLIT_WORDS & _words(path)] if suffix != ".json" else []
        if suffix == ".parquet" and rest:
            return [_loose_parquet(_name(folder), rest, splits)]
        if named or rest:
            return [_json_files(named or rest, splits)]
    others = {word for path in folder.rglob("*.parquet") for word in _SPLIT_WORDS & _words(path)} - set(splits)
    wanted = " or ".join(f"{split}-*.parquet" for split in splits)
    advice = "set data.source to that folder"
    if others:
        advice = f"its files are named for {', '.join(sorted(others))}: set data.train_split and data.val_split"
    raise UserError(
        f"{folder} has no data: expected one folder per source with {wanted} in it, as a snapshot of the hub's "
        f"Vero-600k has, or .parquet or .jsonl files; {advice}"
    )


def _row_files(name: str, files: Mapping[str, Sequence[Path]], pictures: Sequence[Path] = ()) -> RowFiles:
    """Parquet files by split."""
    places = {split: functools.partial(_parquet_rows, name, split, paths) for split, paths in files.items()}
    return _with_rows(name, places, [path for paths in files.values() for path in paths], pictures)


def _loose_parquet(name: str, paths: Sequence[Path], splits: Sequence[str]) -> RowFiles:
    """Parquet files that lie in no folder of the hub's layout."""
    files: dict[str, list[Path]] = {}
    for path in paths:
        files.setdefault(_named_split(path, splits) or splits[0], []).append(path)
    pictures = _pictures_beside(paths[0].parent) if _names_pictures(paths[0]) else []
    name = schema.file_name(name, "parquet")
    return _row_files(name, {split: files[split] for split in splits if split in files}, pictures)


def _json_files(paths: Sequence[Path], splits: Sequence[str]) -> RowFiles:
    """JSONL or JSON files. Image paths are relative to the file."""
    places = {}
    for split in splits:
        files = [path for path in paths if _named_split(path, splits) in (split, None)]
        if files:
            places[split] = functools.partial(_json_rows, files, split, tuple(splits))
    return _with_rows("jsonl", places, paths, _pictures_beside(paths[0].parent))


def _with_rows(
    name: str,
    places: Mapping[str, Callable[[], Iterator[tuple[Place, Row]]]],
    files: Sequence[Path],
    pictures: Sequence[Path],
) -> RowFiles:
    rows = {split: functools.partial(_without_places, read) for split, read in places.items()}
    return RowFiles(name, rows, tuple(files), tuple(pictures), places)


def _without_places(read: Callable[[], Iterator[tuple[Place, Row]]]) -> Iterator[Row]:
    return (row for _, row in read())


def _json_rows(paths: Sequence[Path], wanted: str, splits: Sequence[str]) -> Iterator[tuple[Place, Row]]:
    for path in paths:
        read_file = schema.read_beside(path.parent)
        named = _named_split(path, splits)
        for count, (number, row) in enumerate(json_rows.read(path)):
            split = named or (formats.mapping(row.get("extra_info")) or {}).get("split")
            if (split if split in splits else splits[0]) == wanted:
                yield (path, number), (f"{path.stem}_{count}", formats.as_vero_row(row, path.stem), read_file)


def _parquet_rows(config: str, split: str, paths: Sequence[Path]) -> Iterator[tuple[Place, Row]]:
    number = 0
    for path in paths:
        read_file = schema.read_beside(path.parent)
        for place, stored in enumerate(_stored_rows(path), 1):
            row = formats.as_vero_row(stored, config)
            if place == 1 and not _has_pictures(stored) and schema.IMAGE_MARKER in str(row.get("prompt")):
                raise UserError(
                    f"{path} has no column 'image' or 'images', but its questions have {schema.IMAGE_MARKER} markers; "
                    "add the images, or remove the markers"
                )
            yield (path, place), (f"{config}_{split}_{number}", row, read_file)
            number += 1


def _stored_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file with the columns it has."""
    with _open_parquet(path) as file:
        _check_columns(path, file.schema_arrow)
        for batch in file.iter_batches(batch_size=_batch_size(file.metadata)):
            yield from _row_objects(batch, path)


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file; whatever goes wrong while it is open is a sentence that names it."""
    try:
        with pq.ParquetFile(path, buffer_size=STREAM_BYTES, pre_buffer=False) as file:
            yield file
    except (FileNotFoundError, PermissionError) as error:
        why = os.strerror(error.errno) if error.errno else error
        raise UserError(f"{path} cannot be read ({why}); give a file that you may read") from error
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} is not readable as Parquet ({why}); download it again") from error


def _row_objects(batch: pa.RecordBatch, path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a batch; one with a value that Python cannot hold (text that is not UTF-8) is a broken row."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            why = "text is not UTF-8" if isinstance(error, UnicodeDecodeError) else "value of a wrong type"
            yield formats.BrokenRow(path.stem, why, str(error)[:120])
            return
    for place in range(batch.num_rows):
        yield from _row_objects(batch.slice(place, 1), path)


def _check_columns(path: Path, columns: pa.Schema) -> None:
    """Raises UserError where no row of the file could be used."""
    problem = formats.columns_problem(columns.names)
    if problem:
        raise UserError(f"{path} {problem}")
    expected = dict.fromkeys(("prompt", "problem", "question"), "text or messages")
    expected |= dict.fromkeys(formats.IMAGE_COLUMNS, "images (bytes or paths)")
    expected |= dict.fromkeys(("reward_model", "extra_info"), "an object")
    for name, what in expected.items():
        kind = columns.field(name).type if name in columns.names else None
        if kind is not None and pa.types.is_primitive(kind):
            raise UserError(f"{path} has numbers ({kind}) in its column {name!r}, where {what} belong; write it again")


def _batch_size(metadata: pq.FileMetaData) -> int:
    """Rows to hold as Python objects at a time."""
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
    return max(1, min(64, int(BATCH_BYTES / max(largest, 1.0))))


def _has_pictures(columns: Mapping[str, Any]) -> bool:
    return any(name in columns for name in formats.IMAGE_COLUMNS)


def _names_pictures(path: Path) -> bool:
    """Whether the images of a Parquet file lie in files of their own. False where it cannot be told."""
    try:
        columns = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False  # reading the rows will say what is wrong
    kinds = [columns.field(name).type for name in formats.IMAGE_COLUMNS if name in columns.names]
    inner = [kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind for kind in kinds]
    return any(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or (pa.types.is_struct(kind) and kind.get_field_index("bytes") < 0)
        for kind in inner
    )


def _pictures_beside(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in sorted(names) if name.lower().endswith(_PICTURES)]
    return found


def _name(folder: Path) -> str:
    """The name of a folder that may be given as `.`."""
    return Path(os.path.abspath(folder)).name


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:  # a glob would pass over a folder that it may not read
        raise UserError(f"{folder} cannot be read ({error.strerror or error}); allow reading it") from error


def _named_for(paths: Sequence[Path], split: str) -> list[Path]:
    """The Parquet files of a split: `<split>-*.parquet` and `<split>.parquet`, else those whose names hold its name."""
    files = [path for path in paths if path.suffix == ".parquet" and path.is_file()]
    strict = [path for path in files if path.stem == split or path.name.startswith(f"{split}-")]
    return strict or [path for path in files if _named_split(path, (split,))]


def _named_split(path: Path, splits: Sequence[str]) -> str | None:
    """The split that the name of a file holds as a word, the longest of several."""
    named = [split for split in splits if re.search(_word(split), path.stem)]
    return max(named, key=len, default=None)


def _word(split: str) -> str:
    return rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])"


def _words(path: Path) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", path.stem.lower()))


def _with_siblings(path: Path, splits: Sequence[str]) -> list[Path]:
    """A file, and those of the other splits beside it whose names differ in the split alone."""
    split = _named_split(path, splits)
    others = [] if split is None else [other.join(re.split(_word(split), path.name)) for other in splits]
    siblings = [path.with_name(name) for name in others if name != path.name]
    return [path, *(sibling for sibling in siblings if sibling.is_file())]
