"""Rows of a benchmark's data set in a local folder: Parquet in the hub's layout, JSONL, or JSON annotations."""

from __future__ import annotations

import abc
import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vero_jax.data import json_rows
from vero_jax.data.formats import BrokenRow
from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import Source

GROUPS_HELD = 2
"""Row groups in memory; the hub's image sets have 100 rows or fewer in each."""
_JSON = (".jsonl", ".json")


class MissingData(ValueError):
    """A benchmark's data is not there, or none of it can be read: the benchmark is not run."""


def open_rows(source: Source, root: Path) -> Rows:
    """The rows of a source under `root`, the folder of all data sets.

    A data set lies in `root/owner/name`, `root/name`, or as the hub's own cache keeps it; inside are
    `<config>/<split>-*.parquet` or `data/<split>-*.parquet`, or `<split>.jsonl` with pictures beside it.

    Raises:
      MissingData: the folder, a config, or the split is missing, or a file is no Parquet file.
    """
    folder = _folder(source.repo, root)
    if source.annotations:
        files = sorted(path for path in (folder / source.annotations).glob("*.json"))
        if not files:
            raise MissingData(f"{folder / source.annotations} has no .json files")
        return JsonRows(folder, files)
    parquet = [path for config in source.configs or ("",) for path in _parquet_files(folder, config, source.split)]
    if parquet:
        return ParquetRows(folder, parquet)
    if source.configs and folder.is_dir() and any(folder.rglob("*.parquet")):
        raise MissingData(f"{folder} has no {source.split} files of {', '.join(source.configs)}")
    files = [folder / f"{source.split}{suffix}" for suffix in _JSON]
    files = [path for path in files if path.is_file()]
    if not files:
        raise MissingData(f"{folder} has no {source.split}-*.parquet and no {source.split}.jsonl")
    return JsonRows(folder, files[:1])


class Rows(abc.ABC):
    """Rows by number; a row that can't be read is a `BrokenRow`."""

    folder: Path
    files: Sequence[Path]
    """That hold the rows."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @abc.abstractmethod
    def without_pictures(self) -> Sequence[Mapping[str, Any]]:
        """All rows without their columns of pictures."""


class JsonRows(Rows):
    """The rows of JSONL files, or of JSON files that hold a list each; all in memory."""

    def __init__(self, folder: Path, files: Sequence[Path]):
        self.folder, self.files = folder, tuple(files)
        try:
            self._rows = [row for path in files for _, row in json_rows.read(path)]
        except UserError as error:
            raise MissingData(str(error)) from None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._rows[index]

    def without_pictures(self) -> Sequence[Mapping[str, Any]]:
        return self._rows


class ParquetRows(Rows):
    """The rows of Parquet files, read a row group at a time."""

    def __init__(self, folder: Path, files: Sequence[Path]):
        self.folder, self.files = folder, tuple(files)
        self._groups: list[tuple[Path, int]] = []
        counts = [0]
        for path in files:
            try:
                metadata = pq.read_metadata(path)
            except (pa.ArrowException, OSError) as error:
                raise MissingData(f"{path} is not readable as Parquet ({' '.join(str(error).split())})") from None
            for group in range(metadata.num_row_groups):
                self._groups.append((path, group))
                counts.append(metadata.row_group(group).num_rows)
        self._starts = list(itertools.accumulate(counts))
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        group = bisect.bisect_right(self._starts, index) - 1
        try:
            with self._lock:
                table = self._group(group)
            row: Mapping[str, Any] = table.slice(index - self._starts[group], 1).to_pylist()[0]
            return row
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            return BrokenRow(self._groups[group][0].stem, "row not readable", " ".join(str(error).split())[:200])

    def __getstate__(self) -> dict[str, Any]:
        """For Grain's worker processes: what is held and the lock stay here."""
        return self.__dict__ | {"_held": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def without_pictures(self) -> Sequence[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = []
        for path, group in self._groups:
            with pq.ParquetFile(path) as file:
                names = [field.name for field in file.schema_arrow if not _holds_bytes(field.type)]
                try:
                    rows += file.read_row_group(group, columns=names).to_pylist()
                except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
                    count = file.metadata.row_group(group).num_rows
                    rows += [BrokenRow(path.stem, "row not readable", str(error)[:200])] * count
        return rows

    def _group(self, group: int) -> pa.Table:
        table = self._held.pop(group, None)
        if table is None:
            path, number = self._groups[group]
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(number)
        self._held[group] = table
        while len(self._held) > GROUPS_HELD:
            self._held.popitem(last=False)
        return table


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _folder(repo: str, root: Path) -> Path:
    owner, _, name = repo.partition("/")
    cached = sorted((root / f"datasets--{owner}--{name}" / "snapshots").glob("*/"))
    for folder in (root / owner / name, root / name, *cached[-1:]):
        if folder.is_dir():
            return folder
    raise MissingData(f"{root} has no folder {repo} or {name}")


def _parquet_files(folder: Path, config: str, split: str) -> list[Path]:
    """The files of a split: in the config's folder, else in `data` or anywhere in the data set."""
    places = [folder / config] if config else [folder / "data", folder]
    for place in places:
        files = sorted(
            [*place.glob(f"{split}-*.parquet"), *place.glob(f"{split}.parquet"), *place.glob(f"{split}/*.parquet")]
        )
        if files:
            return files
    return [] if config else sorted(folder.glob(f"*/{split}-*.parquet"))
