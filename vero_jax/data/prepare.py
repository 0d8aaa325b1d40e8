"""Prepares data once: rows from the hub's files, a JSONL export or the built-in set become ArrayRecord files.

Prepared files lie in `<cache_dir>/prepared/`, one folder per source of rows, named by a fingerprint of what they were
made from. A folder appears by one rename when it is complete, so a killed or a second process can do no harm.

    python -m vero_jax.data.prepare --source <folder | file.jsonl | vero_mini> --out <dir>
"""

from __future__ import annotations

import argparse
import bisect
import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from absl import logging

from vero_jax.config import DataConfig, MiniConfig
from vero_jax.data import builder, mini, readers, schema
from vero_jax.data.builder import Report, SourceConfig
from vero_jax.errors import UserError, friendly
from vero_jax.types import Example

# TFDS loads parts of itself when first used, with the import statement patched meanwhile: one thread at a time.
_OPENING = threading.Lock()
_SAMPLE = 65536  # bytes read at each place of a large file for its fingerprint


@dataclasses.dataclass(frozen=True)
class Part:
    """The prepared files of one source of rows."""

    config: str
    folder: Path
    counts: dict[str, int]
    """Usable rows by split."""


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Everything prepared from one `data.source`. Rows of a split are numbered through, part after part."""

    source: str
    fingerprint: str
    """Of everything the rows were made from; the same rows in the same order have the same fingerprint."""
    parts: tuple[Part, ...]
    report: Report
    seconds: float = 0.0
    """How long preparing took; near 0 when everything was there."""

    def count(self, split: str) -> int:
        return sum(part.counts.get(split, 0) for part in self.parts)

    def examples(self, split: str) -> ExampleSource:
        """The rows of a split, by number."""
        return ExampleSource(tuple((str(part.folder), part.counts.get(split, 0)) for part in self.parts), split)

    def index(
        self, split: str, columns: Sequence[str] = ("id", "domain", "source", "reward_type")
    ) -> dict[str, list[Any]]:
        """Columns of a split's index by name, in the order of the rows.

        Also there: `widths` and `heights` (lists, one entry per image) and `messages` (JSON text).
        """
        tables = [
            pq.read_table(part.folder / f"index-{split}.parquet", columns=list(columns))
            for part in self.parts
            if part.counts.get(split, 0)
        ]
        if not tables:
            return {name: [] for name in columns}
        table = pa.concat_tables(tables)
        return {name: table.column(name).to_pylist() for name in columns}

    def table(self) -> str:
        """Rows kept and dropped, as text for a terminal."""
        return report_table(self.report)


class ExampleSource(Sequence[Example]):
    """Random access to the prepared rows of one split. Files are opened when first read; can be pickled for workers."""

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
                    self._open[part] = _open_split(self._parts[part][0], self._split)
                reader = self._open[part]
        return schema.from_features(reader[place - (self._ends[part - 1] if part else 0)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __repr__(self) -> str:
        # Grain prints its source into error messages and fingerprints.
        return f"ExampleSource({self._split}, {len(self)} rows)"


def _open_split(folder: str, split: str) -> Any:
    """A TFDS data source (its `[i]` gives the features of row i)."""
    for info in Path(folder).glob("*/*/*/dataset_info.json"):
        return tfds.builder_from_directory(info.parent).as_data_source(split)
    raise UserError(f"the prepared data in {folder} is damaged; delete that folder and start again")


def prepare(source: str, data_cfg: DataConfig, *, say: Callable[[str], None] = lambda line: None) -> PreparedData:
    """Prepares what is not prepared yet and returns all of it.

    Args:
      source: "vero_mini", a folder in the hub's layout, or a JSONL file of the official export.
      data_cfg: cache folder, split names and the built-in set's sizes and seed.
      say: gets a line before each piece of work.

    Raises:
      UserError: the source is missing or broken, or no row of it can be used.
    """
    started = time.monotonic()
    root = Path(data_cfg.cache_dir).expanduser() / "prepared"
    splits = tuple(dict.fromkeys((data_cfg.train_split, data_cfg.val_split)))
    sources, kind = _sources(source, data_cfg, splits)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the cache folder {root} ({error.strerror}); set data.cache_dir") from error
    _remove_leftovers(root)
    parts, report = [], builder.Report()
    fingerprints = []
    for config, fingerprint in sources:
        folder = root / f"{config.name}-{fingerprint}"
        if not (folder / "report.json").is_file():
            say(f"preparing {config.name}")
            _prepare_one(kind, config, folder)
        own = builder.Report.from_json(json.loads((folder / "report.json").read_text()))
        counts: collections.Counter[str] = collections.Counter()
        for (split, *_), count in own.kept.items():
            counts[split] += count
        parts.append(Part(config.name, folder, dict(counts)))
        report.merge(own)
        fingerprints.append(f"{config.name}-{fingerprint}")
    data = PreparedData(source, _digest(fingerprints), tuple(parts), report, time.monotonic() - started)
    if not any(data.count(split) for split in splits):
        raise UserError(f"no row of {source} can be used:\n{data.table()}")
    return data


def _sources(source: str, data_cfg: DataConfig, splits: tuple[str, ...]) -> tuple[list[tuple[SourceConfig, str]], str]:
    """The configs of a source with their fingerprints, and which builder prepares them."""
    if source == "vero_mini":
        settings = data_cfg.mini
        sizes = {data_cfg.train_split: settings.train_size, data_cfg.val_split: settings.val_size}
        for name, size in (("train_size", settings.train_size), ("val_size", settings.val_size)):
            if size < 1:
                raise UserError(f"data.mini.{name} is {size}; it must be at least 1")
        code = sorted(Path(mini.__file__).parent.glob("*.py"))
        made_from = [builder.FORMAT, sizes, settings.seed, [path.read_text() for path in code]]
        configs = builder.mini_configs(sizes, settings.seed)
        return [(config, _digest([config.name, *made_from])) for config in configs], "vero_mini"
    path = Path(source).expanduser()
    found = []
    for files in readers.find_row_files(path, splits):
        made_from = [builder.FORMAT, files.name, splits, [_file_identity(file) for file in files.files]]
        made_from.append([(str(item.relative_to(path.parent)), item.stat().st_size) for item in files.pictures])
        config = SourceConfig(name=files.name, version="1.0.0", rows=dict(files.rows))
        found.append((config, _digest(made_from)))
    return found, "vero_600k"


def _prepare_one(kind: str, config: SourceConfig, folder: Path) -> None:
    """Writes the folder of one config under another name, then renames it."""
    tfds.disable_progress_bar()
    scratch = folder.parent / f".making-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS tells of every step and of every config that it does not know
    try:
        scratch.mkdir()
        made = (builder.VeroMini if kind == "vero_mini" else builder.Vero600k)(config=config, data_dir=scratch)
        made.download_and_prepare(download_dir=str(scratch / "downloads"))
        shutil.rmtree(scratch / "downloads", ignore_errors=True)
        (scratch / "report.json").write_text(json.dumps(made.report.to_json(), indent=1))
        try:
            scratch.rename(folder)
        except OSError:
            # Another process was faster: its folder is complete, ours goes. Any other cause is ours to raise.
            if not (folder / "report.json").is_file():
                raise
    except OSError as error:
        raise UserError(f"cannot prepare {config.name} in {folder.parent} ({error}); set data.cache_dir") from error
    finally:
        logging.set_verbosity(verbosity)
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    """Removes half-made folders of processes of this machine that no longer live."""
    host = socket.gethostname()
    for path in root.glob(f".making-{host}-*"):
        pid = path.name.removeprefix(f".making-{host}-").split("-")[0]
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # alive, and somebody else's


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _file_identity(path: Path) -> tuple[str, int, str]:
    """(name, size, hash). Of files over 64 MiB, 64 places are hashed, both ends among them, and the time of change."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= 64 << 20:
            for block in iter(functools.partial(file.read, 1 << 20), b""):
                digest.update(block)
        else:
            for place in np.linspace(0, size - _SAMPLE, 64).astype(np.int64).tolist():
                file.seek(place)
                digest.update(file.read(_SAMPLE))
            digest.update(str(path.stat().st_mtime_ns).encode())
    return path.name, size, digest.hexdigest()


def report_table(report: Report) -> str:
    """The report as text: rows by source, domain and reward type, then what was dropped and why."""
    splits = list(dict.fromkeys([key[0] for key in report.kept] + [key[0] for key in report.dropped]))
    lines = []
    for split in splits:
        kept = {key[1:]: count for key, count in report.kept.items() if key[0] == split}
        dropped = {key: count for key, count in report.dropped.items() if key[0] == split}
        lines.append(f"{split}: {sum(kept.values())} rows kept, {sum(dropped.values())} dropped")
        lines += _columns(
            [(*key, str(count)) for key, count in kept.items()], ("source", "domain", "reward type", "rows")
        )
        if dropped:
            rows = [
                (source, reason, report.examples[split, source, reason], str(count))
                for (_, source, reason), count in dropped.items()
            ]
            lines += ["", *_columns(rows, ("dropped from", "reason", "first such row", "rows"))]
        lines.append("")
    return "\n".join([*lines, *report.unknown()]).rstrip()


def _columns(rows: Sequence[tuple[str, ...]], titles: tuple[str, ...]) -> Iterator[str]:
    widths = [max(len(row[place]) for row in [titles, *rows]) for place in range(len(titles))]
    for row in [titles, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  " + "  ".join([*cells, row[-1].rjust(widths[-1])])


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command: prepares a source and prints what became of its rows."""
    defaults = DataConfig()
    parser = argparse.ArgumentParser(prog="python -m vero_jax.data.prepare", description="Prepare training data.")
    parser.add_argument("--source", required=True, help="folder of a hub snapshot, .jsonl file, or vero_mini")
    parser.add_argument("--out", default=defaults.cache_dir, help="cache folder (data.cache_dir); default: %(default)s")
    parser.add_argument("--train-split", default=defaults.train_split)
    parser.add_argument("--val-split", default=defaults.val_split)
    parser.add_argument("--mini-seed", type=int, default=defaults.mini.seed)
    arguments = parser.parse_args(argv)
    data_cfg = dataclasses.replace(
        defaults,
        source=arguments.source,
        cache_dir=arguments.out,
        train_split=arguments.train_split,
        val_split=arguments.val_split,
        mini=dataclasses.replace(MiniConfig(), seed=arguments.mini_seed),
    )
    data = prepare(arguments.source, data_cfg, say=print)
    print(data.table())
    print(f"\n{len(data.parts)} parts in {Path(data_cfg.cache_dir).expanduser() / 'prepared'}, {data.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
