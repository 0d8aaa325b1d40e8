"""Prepared data: opening what `prepare` made, its rows by number, and its index without images.

A part is one config of the TFDS data set `vero_600k` (or `vero_mini`), a folder

    <data_dir>/vero_600k/<config>/1.0.0/    *.array_record-*, dataset_info.json, features.json (TFDS's own)
                                            index-<split>.parquet, report.json             (ours)

so that `tfds.builder_from_directory` and `tfds.data_source` read it too.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from vero_jax.data import schema
from vero_jax.data.report import Report, duplicate_ids
from vero_jax.errors import UserError
from vero_jax.types import Example

FORMAT = 2
"""Raised when prepared files of an earlier version can no longer be read."""
VERSION = "1.0.0"
BUILDERS = ("vero_600k", "vero_mini")
REPORT = "report.json"
INDEX_COLUMNS = ("id", "domain", "source", "reward_type")

# TFDS loads parts of itself when first used, with the import statement patched meanwhile: one thread at a time.
_OPENING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Part:
    """The prepared rows of one config."""

    config: str
    fingerprint: str
    """Of the rows themselves: the same rows in the same order have the same one, whatever files they came from."""
    folder: Path
    """Where its files lie."""
    counts: Mapping[str, int]
    """Usable rows by split."""


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Everything prepared from one `data.source`. Rows of a split are numbered through, part after part."""

    source: str
    fingerprint: str
    """Of all parts in their order."""
    parts: tuple[Part, ...]
    report: Report
    seconds: float = 0.0
    """How long preparing took; near 0 when everything was there."""

    def count(self, split: str) -> int:
        return sum(part.counts.get(split, 0) for part in self.parts)

    def examples(self, split: str) -> ExampleSource:
        """The rows of a split, by number."""
        return ExampleSource(tuple((str(part.folder), part.counts.get(split, 0)) for part in self.parts), split)

    def index_table(self, split: str, columns: Sequence[str] = INDEX_COLUMNS) -> pa.Table:
        """Columns of a split's index, in the order of the rows, without images.

        There are `id`, `domain`, `source`, `reward_type`, `widths` and `heights` (lists, one entry per image) and
        `messages` (JSON text).

        Raises:
          UserError: an index file is damaged.
        """
        tables = [schema_of(columns).empty_table()]
        for part in self.parts:
            if part.counts.get(split, 0):
                path = part.folder / index_name(split)
                try:
                    tables.append(pq.read_table(path, columns=list(columns)))
                except (OSError, pa.ArrowException) as error:
                    raise UserError(f"{path} cannot be read ({error}); {remedy(part.folder)}") from error
        return pa.concat_tables(tables)

    def index(self, split: str, columns: Sequence[str] = INDEX_COLUMNS) -> dict[str, list[Any]]:
        """`index_table` as lists by column."""
        return self.index_table(split, columns).to_pydict()

    def table(self) -> str:
        """Rows kept and dropped, as text for a terminal."""
        return self.report.table()

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have rows."""
        return tuple(dict.fromkeys(split for part in self.parts for split, count in part.counts.items() if count))


INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("source", pa.string()),
        ("reward_type", pa.string()),
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
        ("messages", pa.string()),
    ]
)


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """The index's schema, of some columns."""
    return pa.schema([INDEX_SCHEMA.field(name) for name in columns])


def index_name(split: str) -> str:
    return f"index-{split}.parquet"


def part_folder(data_dir: Path, builder: str, config: str) -> Path:
    """Where TFDS looks for a config below `data_dir`."""
    return data_dir / builder / config / VERSION


def find_parts(data_dir: Path) -> list[Path]:
    """The folders of all complete parts below `data_dir`, in no particular order; none where nothing was prepared."""
    return [path.parent for name in BUILDERS for path in data_dir.glob(f"{name}/*/{VERSION}/{REPORT}")]


def read_report(folder: Path) -> dict[str, Any]:
    """What `report.json` of a part says.

    Raises:
      UserError: it is damaged, or of a version that cannot be read.
    """
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        version = report["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy(folder)}") from error
    if version != FORMAT:
        raise UserError(
            f"{folder} has prepared files of format {version}, this version reads {FORMAT}; {remedy(folder)}"
        )
    return report


def open_part(folder: Path) -> tuple[Part, Report]:
    """A prepared part, after a look at the size of each of its files.

    Raises:
      UserError: a file is missing or was cut off.
    """
    report = read_report(folder)
    check_sizes(folder, report)
    return (
        Part(report["config"], report["fingerprint"], folder, dict(report["counts"])),
        Report.from_json(report["rows"]),
    )


def open_prepared(source: str, data_dir: Path) -> PreparedData:
    """Everything below a `--out` folder, in the order of the source it was made from. Nothing is written.

    Raises:
      UserError: a part is damaged.
    """
    folders = find_parts(data_dir)
    order = {folder: (read_report(folder)["position"], folder.parent.name) for folder in folders}
    return gather(source, sorted(folders, key=order.__getitem__))


def gather(source: str, folders: Sequence[Path], seconds: float = 0.0) -> PreparedData:
    """The parts in these folders, in this order, as one data set."""
    parts, report = [], Report()
    for folder in folders:
        part, own = open_part(folder)
        parts.append(part)
        report.merge(own)
    names = [f"{part.config}-{part.fingerprint}" for part in parts]
    data = PreparedData(source, digest(names), tuple(parts), report, seconds)
    return data


def count_duplicates(data: PreparedData) -> None:
    """Puts the duplicate ids over all parts into the report; takes about half a second for 600,000 rows."""
    data.report.duplicates.clear()
    for split in data.splits:
        if found := duplicate_ids(data.index_table(split, ["id"])["id"]):
            data.report.duplicates[split] = found


def report_text(data: PreparedData) -> str:
    """All that is known of the rows, as JSON text."""
    parts = [
        {"config": part.config, "fingerprint": part.fingerprint, "counts": dict(part.counts)} for part in data.parts
    ]
    value = {"source": data.source, "fingerprint": data.fingerprint, "configs": parts, "rows": data.report.to_json()}
    return json.dumps(value, indent=1, ensure_ascii=False)


def digest(value: Any) -> str:
    """16 hexadecimal digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def remedy(folder: Path) -> str:
    return f"delete {folder.parent} and prepare it again"


def check_sizes(folder: Path, report: Mapping[str, Any]) -> None:
    """UserError if a file of a part is not as long as it was written."""
    for name, wanted in report["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise UserError(
                f"the prepared data is damaged: {folder / name} cannot be read ({error.strerror}); {remedy(folder)}"
            ) from error
        if size != wanted["size"]:
            raise UserError(
                f"the prepared data is damaged: {folder / name} has {size:,} bytes instead of {wanted['size']:,}; "
                f"{remedy(folder)}"
            )


def verify(part: Part) -> Iterator[tuple[str, int]]:
    """Reads every file of a part again and compares checksums; gives (name, bytes) of each that is as it was written.

    Raises:
      UserError: a file is not what was written.
    """
    report = read_report(part.folder)
    check_sizes(part.folder, report)
    for name, wanted in report["files"].items():
        if file_sha256(part.folder / name) != wanted["sha256"]:
            raise UserError(
                f"the prepared data is damaged: {part.folder / name} is not what was written (its checksum differs); "
                f"{remedy(part.folder)}"
            )
        yield name, wanted["size"]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ExampleSource(Sequence[Example]):
    """Random access to the prepared rows of one split. Files are opened when first read; can be pickled for workers.

    A row whose record is damaged raises `schema.RowError`.
    """

    def __init__(self, parts: tuple[tuple[str, int], ...], split: str):
        self._parts = tuple((folder, count) for folder, count in parts if count)
        self._split = split
        self._ends = list(itertools.accumulate(count for _, count in self._parts))
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> Example:  # type: ignore[override]
        place = index.__index__()
        place = place + len(self) if place < 0 else place
        if not 0 <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        part = bisect.bisect_right(self._ends, place)
        reader = self._open.get(part)
        if reader is None:
            with _OPENING:
                if part not in self._open:
                    self._open[part] = _open_split(Path(self._parts[part][0]), self._split)
                reader = self._open[part]
        try:
            features = reader[place - (self._ends[part - 1] if part else 0)]
        except Exception as error:  # whatever TFDS and array_record raise for a record that is damaged
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise schema.RowError("record not readable", f"row {place} of {self._parts[part][0]}: {reason}") from error
        return schema.from_features(features)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __repr__(self) -> str:
        # Grain prints its source into error messages and fingerprints.
        return f"ExampleSource({self._split}, {len(self)} rows)"


def _open_split(folder: Path, split: str) -> Any:
    """A TFDS data source (its `[i]` gives the features of row i)."""
    check_sizes(folder, read_report(folder))  # again: a worker may open it hours after the run began
    return tfds.builder_from_directory(folder).as_data_source(split)
