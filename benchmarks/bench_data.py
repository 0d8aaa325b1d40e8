"""From prepared rows to prompts: images per second, a 256-prompt step with worker processes, and large sets.

    python benchmarks/bench_data.py images [--photos FOLDER]
    python benchmarks/bench_data.py step [--photos FOLDER] [--workers 2]
    python benchmarks/bench_data.py large [--rows 600000]

Pictures are drawn at 1 to 2 megapixels, or made to that size from the photos of a folder (any Parquet files in the
hub's layout, or image files), and stored as JPEG of quality 90. Times of `images` are processor seconds of one core.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

QUALITY = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "step", "large"))
    parser.add_argument("--photos", type=Path, help="folder of Parquet or image files to take pictures from")
    parser.add_argument("--count", type=int, default=48, help="different pictures")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--first", nargs=2, metavar=("FOLDER", "SAMPLE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first:
        first_question(Path(options.first[0]), int(options.first[1]))
    elif options.what == "images":
        images_per_second(pictures(options.count, options.photos))
    elif options.what == "step":
        whole_step(pictures(options.count, options.photos), options.workers)
    else:
        large_set(options.rows)


def pictures(count: int, folder: Path | None) -> list[bytes]:
    """JPEG files of 1 to 2 megapixels, from photos where there are some."""
    from PIL import Image

    rng = np.random.default_rng(0)
    found = photos(folder, count) if folder else []
    made = []
    for number in range(count):
        if found:
            image = Image.open(io.BytesIO(found[number % len(found)])).convert("RGB")
        else:  # smooth colours with edges and grain, so that a file is about as large as a photo's
            small = rng.integers(0, 255, (12, 16, 3), np.uint8)
            image = Image.fromarray(small).resize((800, 600), Image.Resampling.BICUBIC)
        scale = (rng.uniform(1e6, 2e6) / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        if not found:
            grain = rng.normal(0, 6, (image.height, image.width, 1))
            image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=QUALITY)
        made.append(stream.getvalue())
    return made


def photos(folder: Path, count: int) -> list[bytes]:
    import pyarrow.parquet as pq

    found: list[bytes] = []
    for path in sorted(folder.rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            rows = next(file.iter_batches(batch_size=4, columns=["image"])).to_pylist()
            found += [row["image"]["bytes"] for row in rows]
    names = ("*.jpg", "*.jpeg", "*.png")
    found += [path.read_bytes() for name in names for path in sorted(folder.rglob(name))][: count - len(found)]
    return found[:count]


def settings() -> Any:
    """Qwen3-VL's own limits."""
    from vero_jax.data.images import ImageSettings

    return ImageSettings(16, 2, 2, 65_536, 16_777_216, (0.5,) * 3, (0.5,) * 3)


def images_per_second(files: Sequence[bytes]) -> None:
    from vero_jax.data import geometry, images

    limits = settings()
    stages: dict[str, list[float]] = {"decode": [], "resize": [], "cut into patches": []}
    for _ in range(5):
        spent = dict.fromkeys(stages, 0.0)
        for data in files:
            start = time.process_time()
            opened = images.open_image(data)
            image = images.to_rgb(opened)
            decoded = time.process_time()
            height, width = geometry.smart_resize(
                image.height, image.width, limits.factor, limits.min_pixels, limits.max_pixels
            )
            pixels = images.resize(image, height, width)
            resized = time.process_time()
            images.patchify(pixels, limits.patch_size)
            for name, seconds in zip(
                stages, (decoded - start, resized - decoded, time.process_time() - resized), strict=True
            ):
                spent[name] += seconds
        for name, seconds in spent.items():
            stages[name].append(seconds / len(files))
    print(f"{len(files)} JPEG files, {statistics.fmean(map(len, files)) / 1e3:.0f} kB on average")
    total = 0.0
    for name, seconds in stages.items():
        total += statistics.median(seconds)
        print(f"{name:18}{1e3 * statistics.median(seconds):8.1f} ms{1 / total:10.1f} images/s with all before it")


def hub_rows(files: Sequence[bytes], count: int, domain: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{domain}-{number}",
            "data_source": "bench",
            "prompt": [{"role": "user", "content": f"<image>\nHow many things are there in picture {number}?"}],
            "image": {"bytes": files[number % len(files)], "path": f"{number}.jpg"},
            "ability": domain,
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"question": "How many?", "answer": "4", "reward_type": "counting", "index": number},
        }
        for number in range(count)
    ]


def prepared_set(folder: Path, files: Sequence[bytes], rows_each: int) -> Path:
    """Six configs, one for each domain, prepared below `folder`; the folder to train from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vero_jax.types import DOMAINS

    for domain in DOMAINS:
        place = folder / "hub" / f"{domain}-bench"
        place.mkdir(parents=True)
        table = pa.Table.from_pylist(hub_rows(files, rows_each, domain))
        for split in ("train", "val"):
            pq.write_table(table.slice(0, None if split == "train" else 1), place / f"{split}-0.parquet")
            (place / f"{split}-0.parquet").rename(place / f"{split}-00000-of-00001.parquet")
    out = folder / "prepared"
    command = [sys.executable, "-m", "vero_jax.data.prepare", "--source", str(folder / "hub"), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def policy(folder: Path) -> Path:
    """A policy folder with Qwen3-VL's limits for images."""
    from vero_jax.config import BuildConfig
    from vero_jax.data.policy_folder import write_policy_files

    path = folder / "policy"
    build = BuildConfig(vocab_size=600, min_pixels=65_536, max_pixels=16_777_216)
    write_policy_files(path, build, ["How many things are there in the picture?"])
    return path


def whole_step(files: Sequence[bytes], workers: int) -> None:
    from vero_jax.config import DataConfig
    from vero_jax.data.pipeline import QuestionStream
    from vero_jax.data.prepare import prepare
    from vero_jax.data.processor import Processor
    from vero_jax.data.selection import select_rows

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = DataConfig(source=str(prepared_set(folder, files, 200)), cache_dir=name, workers=workers)
        data = prepare(config.source, config)
        processor = Processor.from_folder(policy(folder), system_prompt="", max_prompt_length=18432)
        rows = select_rows(data, "train", processor=processor)
        with QuestionStream(data, config, batch_size=256, transform=processor.prompt, selection=rows) as stream:
            waits, used = [], []
            for step in range(4):
                before, start = cpu_seconds(), time.perf_counter()
                stream.batch(step)
                waits.append(time.perf_counter() - start)
                used.append(cpu_seconds() - before)
            print(f"{workers} workers, 256 prompts a step, nothing else to do; largest prompt "
                  f"{rows.largest_prompt / 2**20:.1f} MB of patches")  # fmt: skip
            for step, (wait, cpu) in enumerate(zip(waits, used, strict=True)):
                print(f"step {step}: {wait:6.2f} s waited, {256 / wait:6.1f} prompts/s, {cpu:6.2f} processor seconds "
                      "of this process and its workers")  # fmt: skip


def cpu_seconds() -> float:
    """Processor seconds of this process and of its living children."""
    total = time.process_time()
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def large_set(rows: int) -> None:
    """A set of many rows, made of hard links to one config's files under other names."""
    from vero_jax.types import DOMAINS

    each = 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = io.BytesIO()
        from PIL import Image

        Image.effect_noise((64, 64), 40).convert("RGB").save(stream, "JPEG")
        start = time.perf_counter()
        out = prepared_set(folder, [stream.getvalue()], each)
        print(f"prepared {6 * each:,} rows in {time.perf_counter() - start:.0f} s")
        for domain in DOMAINS:
            for copy in range(1, rows // (6 * each)):
                clone(out / "vero_600k" / f"{domain}-bench", f"{domain}-bench{copy:02d}")
        policy(folder)
        print(f"{'sample':>10}{'found':>12}{'first question s':>18}{'of it importing':>17}{'peak MB':>9}")
        for label, sample in (("nothing kept", 0), ("all kept", 0), ("all kept", 1_000_000), ("all kept", 1_000_000)):
            command = [sys.executable, __file__, "large", "--first", str(folder), str(sample)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            print(f"{sample:10,}{label:>14}{figures['seconds']:16.2f}{figures['imports']:17.2f}{figures['peak']:9.0f}"
                  f"   {figures['rows']:,} rows")  # fmt: skip


def clone(config: Path, name: str) -> None:
    """The same prepared rows as another config."""
    target = config.with_name(name)
    shutil.copytree(config, target, copy_function=os.link)
    version = target / "1.0.0"
    info, report = version / "dataset_info.json", version / "report.json"
    for path in (info, report):
        text = path.read_text().replace(config.name, name)
        path.unlink()  # the link, not the file of the other config
        path.write_text(text)
    values = json.loads(report.read_text())
    values["fingerprint"] = f"{values['fingerprint']}-{name}"
    values["files"][info.name]["size"] = info.stat().st_size
    report.write_text(json.dumps(values))


def first_question(folder: Path, sample: int) -> None:
    """In a process of its own: opens the set, selects its rows and takes one question of the stream."""
    start = time.perf_counter()
    from vero_jax.config import DataConfig
    from vero_jax.data.pipeline import QuestionStream
    from vero_jax.data.prepare import prepare
    from vero_jax.data.processor import Processor
    from vero_jax.data.selection import select_rows

    imported = time.perf_counter()
    config = DataConfig(source=str(folder / "prepared"), cache_dir=str(folder))
    data = prepare(config.source, config)
    processor = Processor.from_folder(folder / "policy", max_prompt_length=18432)
    rows = select_rows(data, "train", processor=processor, cache_dir=config.cache_dir)
    with QuestionStream(
        data, config, batch_size=256, start_step=sample // 256, transform=processor.prompt, selection=rows, hosts=256
    ) as stream:  # the share of one host of 256 is one question
        stream.batch(sample // 256)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"seconds": done - start, "imports": imported - start, "peak": peak, "rows": len(rows.rows)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
