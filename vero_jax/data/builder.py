"""TFDS builders for Vero-600K and the built-in set: rows in, ArrayRecord files out, without TensorFlow.

TFDS's stock writer holds a split in memory and spills to disk through TensorFlow once it passes 1000 MiB, which every
source of Vero-600K does. The builders here stream through `SequentialWriter` instead: order is kept, memory stays flat.
Beside the records, each split gets a small index (Parquet): what selection and mixing need without touching images.

Importing this module registers the builders, so that TFDS finds prepared data by name:

    import tensorflow_datasets as tfds
    import vero_jax.data.builder
    rows = tfds.data_source("vero_600k/stem-mmk12", data_dir="<the folder given as --out>", split="train")
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from vero_jax.data import images, mini, schema
from vero_jax.data.prepared import INDEX_SCHEMA, VERSION, index_name
from vero_jax.data.readers import Row
from vero_jax.data.report import Report
from vero_jax.types import Example

ROWS_PER_SHARD = 1024
ROWS_PER_WRITE = 64  # the writer rewrites its metadata at every call; fewer rows when their images are large
BYTES_PER_WRITE = 32 << 20
INDEX_ROWS = 4096  # a row group of the index
CHECK_THREADS = 2  # decoding, most of the work, leaves Python's lock alone
CHECK_AHEAD = 8  # rows being checked or waiting to be written
FULL_CHECK_PIXELS = 40_000_000
"""Images up to this size are decoded once while preparing; of larger ones only the header is read."""
JPEG_START = 16384  # bytes of its pixels that are decoded
JPEG_TAIL = 1024  # some cameras and sites write a little after the end
ALONE_PIXELS = 12_000_000
"""Larger images are decoded one at a time, so that threads do not multiply the memory for their pixels."""
_ALONE = threading.Lock()


@dataclasses.dataclass
class SourceConfig(tfds.core.BuilderConfig):
    """One folder of the hub (or one JSONL file, or one built-in source): its name and, per split, its rows."""

    rows: Mapping[str, Callable[[], Iterator[Row]]] = dataclasses.field(default_factory=dict)
    tick: Callable[[str, int], None] = lambda split, rows: None
    """Hears of every few rows: the split, and how many rows of it were read."""


class _StreamingBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has no types
    """Writes the rows of a `SourceConfig` in order, leaves out the unusable ones and counts them."""

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # no checksum files lie beside this module; the search for them needs one more package

    def __init__(self, *, config: SourceConfig, data_dir: str | Path):
        self.report = Report()
        self.counts: dict[str, int] = {}
        """Rows written by split."""
        self._content = hashlib.sha256()
        super().__init__(config=config, data_dir=str(data_dir), file_format="array_record")

    @property
    def content(self) -> str:
        """A hash of all rows written, their images included."""
        return self._content.hexdigest()[:16]

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
        yield from ((place, row.features) for place, row in enumerate(self._usable(split)))

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[Any]:
        """Streams every split to disk; splits without a usable row are left out."""
        del dl_manager, download_config
        info = self._info()  # one that knows the folder TFDS works in until all is written
        writer = tfds.core.SequentialWriter(info, ROWS_PER_SHARD, file_format="array_record")
        for split in self.builder_config.rows:
            started = False
            with _Index(Path(self.data_dir) / index_name(split)) as index:
                usable = self._usable(split)
                while chunk := _chunk(usable):
                    if not started:
                        writer.initialize_splits([split])
                        started = True
                    writer.add_examples({split: [row.features for row in chunk]})
                    for row in chunk:
                        index.add(row.example, row.sizes)
                        self._content.update(f"{split} {row.digest}\n".encode())
                    self.counts[split] = self.counts.get(split, 0) + len(chunk)
        writer.close_all()
        return list(info.splits.values())

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded; TFDS would print that the size is unknown."""

    def _log_download_done(self) -> None:
        """The table of rows says it."""

    def _usable(self, split: str) -> Iterator[_Checked]:
        """The rows of a split that can be used, in order; the others are counted."""
        number = 0
        for (fallback_id, row, _), checked in _in_threads(self.builder_config.rows[split](), _check):
            number += 1
            if number % ROWS_PER_WRITE == 0:
                self.builder_config.tick(split, number)
            try:
                usable = checked.result()
            except (schema.RowError, images.ImageError) as error:
                self.report.drop(split, row, error.reason, str(row.get("id") or fallback_id))
                continue
            self.report.keep(split, usable.example)
            yield usable
        self.builder_config.tick(split, number)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A row that can be used."""

    example: Example
    sizes: list[tuple[int, int]]
    """(width, height) of its images."""
    features: dict[str, Any]
    digest: str
    """Of all its content."""


def _check(row: Row) -> _Checked:
    """Reads and checks a row. Raises `RowError` or `ImageError`."""
    fallback_id, columns, read_file = row
    example = schema.parse_row(columns, fallback_id, read_file)
    sizes = [image_size(data) for data in example.images]
    features = schema.to_features(example, sizes)
    # A checksum for the images: it only has to tell other data from the same, and reads them at 2 GB/s.
    pictures = [(len(data), zlib.crc32(data)) for data in example.images]
    text = json.dumps({**features, "images": pictures}, ensure_ascii=False, sort_keys=True)
    return _Checked(example, sizes, features, hashlib.sha256(text.encode("utf-8")).hexdigest())


def _in_threads(rows: Iterator[Row], work: Callable[[Row], _Checked]) -> Iterator[tuple[Row, Future[_Checked]]]:
    """Each row with its `work`, in order, a few rows ahead; images of at most `BYTES_PER_WRITE` wait, or one row."""
    waiting: collections.deque[tuple[Row, Future[_Checked], int]] = collections.deque()
    held = 0
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        for row in rows:
            size = _stored_bytes(row[1])
            while waiting and (len(waiting) >= CHECK_AHEAD or held + size > BYTES_PER_WRITE):
                first, result, its_size = waiting.popleft()
                held -= its_size
                yield first, result
            waiting.append((row, pool.submit(work, row), size))
            held += size
        while waiting:
            first, result, _ = waiting.popleft()
            yield first, result


def _stored_bytes(row: Mapping[str, Any]) -> int:
    """Bytes of the images that a stored row holds (not of those that it names)."""
    stored = row.get("image") if row.get("image") is not None else row.get("images")
    items = stored if isinstance(stored, (list, tuple)) else [stored]
    return sum(
        len(item["bytes"]) for item in items if isinstance(item, Mapping) and isinstance(item.get("bytes"), bytes)
    )


def _chunk(rows: Iterator[_Checked]) -> list[_Checked]:
    """The next rows to write at once; none at the end."""
    chunk: list[_Checked] = []
    held = 0
    for row in itertools.islice(rows, ROWS_PER_WRITE):
        chunk.append(row)
        held += sum(len(data) for data in row.example.images)
        if held >= BYTES_PER_WRITE:
            break
    return chunk


class Vero600k(_StreamingBuilder):
    """Vero-600K (or any data in its row format) from files on this machine."""

    name = "vero_600k"


class VeroMini(_StreamingBuilder):
    """The built-in set, drawn on the spot."""

    name = "vero_mini"


class _Index(contextlib.AbstractContextManager["_Index"]):
    """The Parquet file of a split that holds everything but the images."""

    def __init__(self, path: Path):
        self._writer = pq.ParquetWriter(path, INDEX_SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def add(self, example: Example, sizes: Sequence[tuple[int, int]]) -> None:
        self._rows.append(
            {
                "id": example.id,
                "domain": example.domain,
                "source": example.source,
                "reward_type": example.reward_type,
                "widths": [width for width, _ in sizes],
                "heights": [height for _, height in sizes],
                "messages": json.dumps(list(example.messages), ensure_ascii=False),
            }
        )
        if len(self._rows) == INDEX_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=INDEX_SCHEMA))
        self._rows = []

    def __exit__(self, *exception: object) -> None:
        self._flush()
        self._writer.close()


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) as stored, after the pixels were decoded once; of a complete JPEG, the first of them.

    Raises:
      images.ImageError: no image, a broken one, or one that is too large.
    """
    image = images.open_image(data)
    size = image.size
    if size[0] * size[1] > FULL_CHECK_PIXELS:
        return size
    if (start := _start_of_jpeg(data)) is not None:
        image = images.open_image(start)
    image.draft("L", (size[0] // 8, size[1] // 8))  # JPEG: few pixels are made of what is read
    with _ALONE if image.width * image.height > ALONE_PIXELS else contextlib.nullcontext():
        try:
            image.load()
        except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:  # as for `images.to_rgb`
            raise images.ImageError("image not readable", f"{size[0]}x{size[1]} {image.mode}: {error}") from error
        images.to_rgb(image.crop((0, 0, 1, 1)))  # converting every pixel would take more time and memory than decoding
    return size


def _start_of_jpeg(data: bytes) -> bytes | None:
    """All tables and the first pixels of a JPEG whose end is there, as a JPEG of its own; None for anything else.

    Decoding all of it was more than half of the time of preparing, and finds no more: the decoder complains of tables,
    of kinds of coding that it does not know and of data that ends early, and makes grey of broken pixels in silence.
    """
    end = b"\xff\xd9"
    if data[:3] != b"\xff\xd8\xff" or data.rfind(end, -JPEG_TAIL) < 0:
        return None
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xDA:  # the pixels begin here
            return data[: place + JPEG_START] + end
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return None


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
