"""Rows of a benchmark's data set in a local folder: Parquet in the hub's layout, JSONL, or JSON annotations."""

from __future__ import annotations

import abc
import bisect
import itertools
import os
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
from vero_jax.evaluation.layout import MissingData, row_files, unfinished_mark

GROUPS_HELD = 2
"""Row groups in memory; the hub's image sets have 100 rows or fewer in each."""
README = "README.md"
_SUFFIXES = (".parquet", ".jsonl", ".json")
_DEEPEST = 3
"""Folders above a file of rows."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, LookupError)
"""What pyarrow raises for damaged files; LookupError, where a group has not the rows that its file says."""


def open_rows(source: Source, root: Path, *, unfinished: bool = False) -> Rows:
    """The rows of a source under `root`, the folder of all data sets.

    A data set lies in `root/owner/name`, `root/name`, or as the hub's own cache keeps it; `layout.row_files` says which
    of its files are read.

    Args:
      unfinished: also those of a download that has not ended, whose pictures may be missing.

    Raises:
      MissingData: the folder, a config, the split or one of its files is missing, or a file can't be read.
    """
    folder = find_folder(source.repo, root)
    if not unfinished and (folder / unfinished_mark(source)).exists():
        raise MissingData(f"the download to {folder} has not ended; start it again (--download)")
    names = _names(folder)
    readme = folder / README
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    files = [folder / name for name in row_files(source, names, text, str(folder))]
    return ParquetRows(folder, files) if files[0].suffix == ".parquet" else JsonRows(folder, files)


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

    @property
    @abc.abstractmethod
    def embed_pictures(self) -> bool:
        """Whether the rows have columns of pictures; else they can only name them."""


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

    @property
    def embed_pictures(self) -> bool:
        return False


class ParquetRows(Rows):
    """The rows of Parquet files, read a row group at a time."""

    def __init__(self, folder: Path, files: Sequence[Path]):
        self.folder, self.files = folder, tuple(files)
        self._groups: list[tuple[Path, int]] = []
        self._embed_pictures = False
        counts = [0]
        for path in files:
            try:
                with pq.ParquetFile(path) as file:
                    metadata = file.metadata
                    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                    self._embed_pictures |= any(_holds_bytes(field.type) for field in file.schema_arrow)
            except _UNREADABLE as error:
                raise MissingData(f"{path} is not readable as Parquet ({' '.join(str(error).split())})") from None
            if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
                raise MissingData(f"{path} is not readable as Parquet (its row groups do not hold its rows)")
            self._groups += [(path, group) for group in range(len(rows))]
            counts += rows
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
        except _UNREADABLE as error:
            return BrokenRow(self._groups[group][0].stem, "row not readable", " ".join(str(error).split())[:200])

    def __getstate__(self) -> dict[str, Any]:
        """For Grain's worker processes: what is held and the lock stay here."""
        return self.__dict__ | {"_held": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def without_pictures(self) -> Sequence[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for place, (path, group) in enumerate(self._groups):
            count = self._starts[place + 1] - self._starts[place]
            try:
                with pq.ParquetFile(path) as file:
                    names = [field.name for field in file.schema_arrow if not _holds_bytes(field.type)]
                    # A table without columns has no rows.
                    rows = file.read_row_group(group, columns=names).to_pylist() if names else [{}] * count
                if len(rows) != count:
                    raise ValueError(f"{len(rows)} rows in a group of {count}")
            except _UNREADABLE as error:
                rows = [BrokenRow(path.stem, "row not readable", str(error)[:200])] * count
            found += rows
        return found

    @property
    def embed_pictures(self) -> bool:
        return self._embed_pictures

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


def find_folder(repo: str, root: Path) -> Path:
    """The folder of a data set under `root`.

    Raises:
      MissingData: there is none.
    """
    owner, _, name = repo.partition("/")
    cached = sorted((root / f"datasets--{owner}--{name}" / "snapshots").glob("*/"))
    for folder in (root / owner / name, root / name, *cached[-1:]):
        if folder.is_dir():
            return folder
    raise MissingData(f"{root} has no folder {repo} or {name}")


def _names(folder: Path) -> list[str]:
    """The files that may hold rows, down to folders of folders, without hidden ones."""
    found: list[str] = []
    # Folders may be links, also in a circle.
    for place, folders, files in os.walk(folder, followlinks=True):
        inside = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and len(inside.parts) < _DEEPEST]
        found += [(inside / name).as_posix() for name in files if name.endswith(_SUFFIXES) and not name.startswith(".")]
    return found
