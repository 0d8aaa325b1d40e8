"""TFDS builders for Vero-600K and the built-in set: rows in, ArrayRecord files out, without TensorFlow.

TFDS's stock writer holds a split in memory and spills to disk through TensorFlow once it passes 1000 MiB, which every
source of Vero-600K does. The builders here stream through `SequentialWriter` instead: order is kept, memory stays flat.
Beside the records, each split gets a small index (Parquet): what selection and mixing need without touching images.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from vero_jax.data import images, mini, schema
from vero_jax.data.readers import Row
from vero_jax.types import DOMAINS, Example

FORMAT = 1
"""Raised when prepared files of an earlier version of this module can no longer be read."""
ROWS_PER_SHARD = 1024
ROWS_PER_WRITE = 64  # the writer rewrites its metadata at every call; fewer rows when their images are large
BYTES_PER_WRITE = 32 << 20
FULL_CHECK_PIXELS = 64_000_000
"""Images up to this size are decoded once while preparing; of larger ones only the header is read."""


@dataclasses.dataclass
class SourceConfig(tfds.core.BuilderConfig):
    """One folder of the hub (or one JSONL file, or one built-in source): its name and, per split, its rows."""

    rows: dict[str, Callable[[], Iterator[Row]]] = dataclasses.field(default_factory=dict)


class _StreamingBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has no types
    """Writes the rows of a `SourceConfig` in order, leaves out the unusable ones and counts them."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # no checksum files lie beside this module; the search for them needs one more package

    def __init__(self, *, config: SourceConfig, data_dir: str | Path):
        self.report = Report()
        super().__init__(config=config, data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "ability": tfds.features.Text(),
                    "data_source": tfds.features.Text(),
                    "images": tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=np.object_)),
                    "widths": tfds.features.Sequence(np.int32),
                    "heights": tfds.features.Sequence(np.int32),
                    "rest": tfds.features.Text(),
                }
            ),
            description="Rows of Vero-600K's format: one question with its images, its checker and its domain.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.builder_config.rows}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from ((place, features) for place, (_, features, _) in enumerate(self._usable(split)))

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[Any]:
        """Streams every split to disk; splits without a usable row are left out."""
        del dl_manager, download_config
        info = self._info()  # one that knows the folder TFDS works in until all is written
        writer = tfds.core.SequentialWriter(info, ROWS_PER_SHARD, file_format="array_record")
        for split in self.builder_config.rows:
            index = _Index(Path(self.data_dir).parent.parent.parent / f"index-{split}.parquet")
            usable = self._usable(split)
            started = False
            while chunk := _chunk(usable):
                if not started:
                    writer.initialize_splits([split])
                    started = True
                writer.add_examples({split: [features for _, features, _ in chunk]})
                index.add([(example, sizes) for example, _, sizes in chunk])
            index.close()
        writer.close_all()
        return list(info.splits.values())

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded; TFDS would print that the size is unknown."""

    def _log_download_done(self) -> None:
        """The table of rows says it."""

    def _usable(self, split: str) -> Iterator[_Usable]:
        for fallback_id, row, read_file in self.builder_config.rows[split]():
            try:
                example = schema.parse_row(row, fallback_id, read_file)
                sizes = [image_size(data) for data in example.images]
            except (schema.RowError, images.ImageError) as error:
                self.report.drop(split, str(row.get("data_source")), error.reason, str(row.get("id") or fallback_id))
                continue
            self.report.keep(split, example)
            yield example, schema.to_features(example, sizes), sizes


_Usable = tuple[Example, dict[str, Any], list[tuple[int, int]]]
"""(example, its features, the sizes of its images)"""


def _chunk(rows: Iterator[_Usable]) -> list[_Usable]:
    """The next rows to write at once; none at the end."""
    chunk: list[_Usable] = []
    held = 0
    for row in itertools.islice(rows, ROWS_PER_WRITE):
        chunk.append(row)
        held += sum(len(data) for data in row[0].images)
        if held >= BYTES_PER_WRITE:
            break
    return chunk


class Vero600k(_StreamingBuilder):
    """Vero-600K (or any data in its row format) from files on this machine."""

    name = "vero_600k"


class VeroMini(_StreamingBuilder):
    """The built-in set, drawn on the spot."""

    name = "vero_mini"


@dataclasses.dataclass
class Report:
    """What became of the rows: kept by (split, source, domain, reward type), dropped by (split, source, reason)."""

    kept: collections.Counter[tuple[str, str, str, str]] = dataclasses.field(default_factory=collections.Counter)
    dropped: collections.Counter[tuple[str, str, str]] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[tuple[str, str, str], str] = dataclasses.field(default_factory=dict)
    """For every entry of `dropped`, the id of the first such row."""

    def keep(self, split: str, example: Example) -> None:
        self.kept[split, example.source, example.domain, example.reward_type] += 1

    def drop(self, split: str, source: str, reason: str, row_id: str) -> None:
        self.dropped[split, source, reason] += 1
        self.examples.setdefault((split, source, reason), row_id)

    def merge(self, other: Report) -> None:
        self.kept.update(other.kept)
        self.dropped.update(other.dropped)
        self.examples = {**other.examples, **self.examples}

    def to_json(self) -> dict[str, Any]:
        return {
            "kept": [[*key, count] for key, count in self.kept.items()],
            "dropped": [[*key, count, self.examples[key]] for key, count in self.dropped.items()],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        report = cls()
        for split, source, domain, reward_type, count in value["kept"]:
            report.kept[split, source, domain, reward_type] = count
        for split, source, reason, count, row_id in value["dropped"]:
            report.dropped[split, source, reason] = count
            report.examples[split, source, reason] = row_id
        return report

    def unknown(self) -> list[str]:
        """A line for every reward type or domain that the recipe does not know."""
        types: collections.Counter[str] = collections.Counter()
        domains: collections.Counter[str] = collections.Counter()
        for (_, _, domain, reward_type), count in self.kept.items():
            if reward_type not in schema.REWARD_TYPES:
                types[reward_type] += count
            if domain not in DOMAINS:
                domains[domain] += count
        lines = [
            f"unknown reward type {name!r}: {count} rows, checked by the default rule" for name, count in types.items()
        ]
        return lines + [
            f"unknown domain {name!r}: {count} rows, drawn only if it has a weight" for name, count in domains.items()
        ]


class _Index:
    """The Parquet file of a split that holds everything but the images."""

    SCHEMA = pa.schema(
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

    def __init__(self, path: Path):
        self._writer = pq.ParquetWriter(path, self.SCHEMA)

    def add(self, rows: Sequence[tuple[Example, list[tuple[int, int]]]]) -> None:
        columns: dict[str, list[Any]] = {
            "id": [example.id for example, _ in rows],
            "domain": [example.domain for example, _ in rows],
            "source": [example.source for example, _ in rows],
            "reward_type": [example.reward_type for example, _ in rows],
            "widths": [[width for width, _ in sizes] for _, sizes in rows],
            "heights": [[height for _, height in sizes] for _, sizes in rows],
            "messages": [json.dumps(list(example.messages), ensure_ascii=False) for example, _ in rows],
        }
        self._writer.write_table(pa.table(columns, schema=self.SCHEMA))

    def close(self) -> None:
        self._writer.close()


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) as stored, after the pixels were decoded once.

    Raises:
      images.ImageError: no image, a broken one, or one that is too large.
    """
    image = images.open_image(data)
    size = image.size
    if size[0] * size[1] <= FULL_CHECK_PIXELS:
        image.draft("L", (size[0] // 8, size[1] // 8))  # JPEG: every byte is read, few pixels are made
        images.to_rgb(image)
    return size


def mini_configs(sizes: Mapping[str, int], seed: int) -> list[SourceConfig]:
    """One config per built-in source; `sizes` are the rows of each split over all sources."""
    configs = []
    for domain, sources in mini.SOURCES.items():
        for source in sources:
            rows = {
                split: _mini_reader(split, seed, domain, source, mini.sizes(size)[domain, source])
                for split, size in sizes.items()
            }
            configs.append(SourceConfig(name=mini.config_name(domain, source), version="1.0.0", rows=rows))
    return configs


def _mini_reader(split: str, seed: int, domain: str, source: str, count: int) -> Callable[[], Iterator[Row]]:
    def no_file(path: str) -> bytes:
        raise FileNotFoundError(path)

    def read() -> Iterator[Row]:
        for index in range(count):
            row = mini.make_row(split, seed, domain, source, index)
            yield row["id"], row, no_file

    return read
