"""Speed and memory of preparing: Parquet in the hub's layout to ArrayRecord, in a process of its own.

    python benchmarks/bench_prepare.py [--megabytes 1500] [--folder <where there is room>]

The split is written three times: with row groups of 100 rows, as the hub has them; as one row group; and as one whose
pages hold 1024 rows each, which is what pyarrow writes when nothing is said, and what a reader must hold two of. The
images are JPEGs of about 300 kB and 1 megapixel (a few are encoded, the rows differ in their last bytes). Seconds
include starting Python; CPU seconds, of all threads together, are what does not depend on other programs. Needs three
times the size on the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CHILD = """
import resource, sys, time
started = time.monotonic()
from vero_jax.data.prepare import main
assert main(["--source", sys.argv[1], "--out", sys.argv[2]]) == 0
usage = resource.getrusage(resource.RUSAGE_SELF)
print("figures", time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def photo(seed: int, width: int = 1150, height: int = 880) -> bytes:
    """A JPEG with detail on several scales, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 6, width // 6, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(pixels + rng.integers(-6, 7, pixels.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=83)
    return stream.getvalue()


def rows(photos: list[bytes], first: int, count: int) -> pa.Table:
    """Rows in the hub's columns; bytes after the end of a JPEG make each image another."""
    numbers = range(first, first + count)
    extra = {"question": "Which?", "answer": "A", "reward_type": "string_match", "tolerance": None}
    return pa.table(
        {
            "id": [f"row{number}" for number in numbers],
            "data_source": ["made"] * count,
            "prompt": [{"role": ["user"], "content": ["<image>\nWhich?"]}] * count,
            "image": [
                {"bytes": photos[number % len(photos)] + number.to_bytes(8), "path": "a.jpg"} for number in numbers
            ],
            "ability": ["stem"] * count,
            "reward_model": [{"style": "rule", "ground_truth": "A"}] * count,
            "extra_info": [{**extra, "index": number} for number in numbers],
        }
    )


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a Parquet file is cut."""

    name: str
    group: int | None
    """Rows of a row group; None: all."""
    page: int
    """Rows of a page."""


SHAPES = (Shape("groups of 100", 100, 100), Shape("one group", None, 64), Shape("one, large pages", None, 1024))


def write_split(path: Path, photos: list[bytes], count: int, shape: Shape) -> None:
    group = shape.group or count
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_batch_size": shape.page}
    with pq.ParquetWriter(path, rows(photos, 0, 1).schema, **options) as writer:
        for first in range(0, count, group):
            size = min(group, count - first)
            writer.write_table(rows(photos, first, size), row_group_size=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1500, help="size of the split")
    parser.add_argument("--folder", help="where to work (default: the system's folder for temporary files)")
    args = parser.parse_args()
    photos = [photo(seed) for seed in range(12)]
    count = int(args.megabytes * 1e6 / np.mean([len(data) for data in photos]))
    print(f"{count} rows, images of {np.mean([len(data) for data in photos]) / 1e3:.0f} kB, {os.cpu_count()} cores")
    print(f"{'Parquet':>16}      MB       s  rows/s  MB/s  CPU s  rows/CPU s  peak MB")
    for shape in SHAPES:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / "hub" / "stem-made" / "train-00000-of-00001.parquet"
            path.parent.mkdir(parents=True)
            # In a child as well: a process hands its own peak on to those it starts.
            writer = os.fork()
            if writer == 0:
                write_split(path, photos, count, shape)
                os._exit(0)
            if os.waitpid(writer, 0)[1]:
                raise SystemExit("the split could not be written")
            out = Path(folder) / "out"
            done = subprocess.run(
                [sys.executable, "-c", CHILD, str(path.parent.parent), str(out)], capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            seconds, cpu, peak = map(float, done.stdout.split("figures")[1].split())
            report = json.loads((out / "vero_600k" / "stem-made" / "1.0.0" / "report.json").read_text())
            if report["counts"] != {"train": count}:
                raise SystemExit(f"{report['counts']} rows arrived, {count} were written")
            size = path.stat().st_size / 1e6
            print(
                f"{shape.name:>16}  {size:>6.0f}  {seconds:>6.1f}  {count / seconds:>6.0f}  {size / seconds:>4.0f}  "
                f"{cpu:>5.1f}  {count / cpu:>10.0f}  {peak * 1024 / 1e6:>7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
