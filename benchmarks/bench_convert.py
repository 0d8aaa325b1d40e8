"""Speed and memory of reading and converting a checkpoint of a released model's shapes. Prints a table.

    python benchmarks/bench_convert.py --folder SCRATCH [--model Qwen3-VL-8B] [--no-load]

Writes a checkpoint of random bytes in bfloat16 (files of 5 GB), deletes it at the end; twice its size must be free on
the disk. Every line is a process of its own that finds none of its files in the page cache. "ratio" is to reading the
files and doing nothing else, for a conversion to copying them. "anon" is the most anonymous memory above what the
process had before (of a load, above the parameters too), "rss" the highest resident size. "cpu s" (with the check)
tells slow code from a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests" / "models"
PHASES = ("read", "copy", "load", "load_native", "to_vero_jax", "to_hf")
WIDTHS = (34, 8, 9, 8, 8, 8, 9, 9)


def write_checkpoint(folder: Path, model: str) -> None:
    """A Hugging Face folder with the names and shapes of the model, and random bytes for weights."""
    sys.path.insert(0, str(TESTS))
    from hf_configs import hf_config

    from vero_jax.checkpoints.boxes import BFLOAT16
    from vero_jax.checkpoints.names import disk_tensors
    from vero_jax.checkpoints.safetensors_io import SafetensorsWriter
    from vero_jax.models.policy import ModelDef
    from vero_jax.models.released import released_config

    config = released_config(model)
    tensors = {
        name: (pieces[0][1].shape, np.dtype(BFLOAT16)) for name, pieces in disk_tensors(ModelDef(config)).items()
    }
    rng = np.random.default_rng(0)
    noise = np.frombuffer(rng.bytes(2**26), np.uint16).view(BFLOAT16)
    folder.mkdir(parents=True)
    with SafetensorsWriter(folder, tensors, 5 * 10**9) as writer:
        for name, (shape, _) in tensors.items():
            size, done = int(np.prod(shape)), 0
            while done < size:
                start = int(rng.integers(0, len(noise) // 2))
                piece = noise[start : start + min(size - done, len(noise) // 2)]
                writer.write(name, done, piece)
                done += len(piece)
    (folder / "config.json").write_text(json.dumps(hf_config(config, "bfloat16"), indent=2))


def forget(folder: Path) -> None:
    """Takes the files of a folder out of the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def memory(name: str) -> int:
    """A line of /proc/self/status in bytes: "RssAnon", "VmHWM"."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def watched(work: Callable[[], int]) -> dict[str, float]:
    """Runs the work, which returns the bytes that it leaves in memory on purpose, and looks at memory meanwhile."""
    before, peak, done = memory("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, memory("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    kept = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    watcher.join()
    return {"seconds": seconds, "cpu": cpu, "anon": max(peak - before - kept, 0), "rss": memory("VmHWM")}


def phase(name: str, source: Path, out: Path) -> dict[str, float]:
    """One line of the table, in this process."""
    if name == "read":
        return watched(lambda: _read_files(source))
    if name == "copy":
        return watched(lambda: _read_files(source, out))
    import jax

    from vero_jax import convert
    from vero_jax.checkpoints.weights import load_params
    from vero_jax.models.config import ModelConfig
    from vero_jax.models.policy import ModelDef

    if name.startswith("load"):
        model_def = ModelDef(ModelConfig.from_folder(source), param_dtype="bfloat16")
        size = 2 * model_def.num_params()
        jax.block_until_ready(jax.numpy.zeros(8))

        def load() -> int:
            params = jax.block_until_ready(load_params(source, model_def))
            return size if params else 0

        return watched(load)
    said: list[str] = []

    def convert_all() -> int:
        convert.convert(source, out, say=said.append)
        return 0

    result = watched(convert_all)
    # The comparison with the source is a second pass, which is told apart here.
    result["total"] = result["seconds"]
    result["seconds"] = float(re.findall(r"written: .* in ([\d.]+) s", "\n".join(said))[0])
    return result


def _read_files(folder: Path, out: Path | None = None) -> int:
    buffer = bytearray(2**23)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file, open(out or os.devnull, "ab", buffering=0) as copy:
            while count := file.readinto(buffer):
                copy.write(memoryview(buffer)[:count])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to write; a temporary folder is made in it")
    parser.add_argument("--model", default="Qwen3-VL-8B")
    parser.add_argument("--no-load", action="store_true", help="only convert, which never holds the model")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        print(json.dumps(phase(args.phase, args.source, args.out)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench_convert.") as name:
        folder = Path(name)
        hf, ours, back = folder / "hf", folder / "vero_jax", folder / "back"
        write_checkpoint(hf, args.model)
        size = sum(path.stat().st_size for path in hf.glob("*.safetensors"))
        print("".join(text.rjust(width) for text, width in zip(
            (args.model, "GB", "seconds", "cpu s", "MB/s", "ratio", "anon MB", "rss MB"), WIDTHS, strict=True
        )))  # fmt: skip
        steps = [("read", hf, None), ("copy", hf, folder / "copy"), ("load", hf, None), ("to_vero_jax", hf, ours)]
        steps += [("load_native", ours, None), ("to_hf", ours, back)]
        plain: dict[str, float] = {}
        for step, source, out in steps:
            if args.no_load and step.startswith("load"):
                continue
            if step == "load" or (args.no_load and step == "to_vero_jax"):
                (folder / "copy").unlink()
            if step == "load_native" or (args.no_load and step == "to_hf"):
                shutil.rmtree(hf)
            forget(folder)
            command = [sys.executable, __file__, "--folder", name, "--phase", step, "--source", str(source)]
            command += ["--out", str(out)] if out else []
            environment = {**os.environ, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
            output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            speed = size / result["seconds"]
            if step in ("read", "copy"):
                plain[step] = speed
            base = plain["copy" if out else "read"]
            label = {
                "read": "plain read",
                "copy": "plain copy",
                "load": "load_params, hf",
                "load_native": "load_params, vero_jax",
            }.get(step)
            label = label or f"convert {step} (+{result['total'] - result['seconds']:.0f} s check)"
            cells = [label, f"{size / 1e9:.2f}", f"{result['seconds']:.1f}", f"{result['cpu']:.1f}"]
            cells += [f"{speed / 1e6:.0f}", f"{speed / base:.2f}"]
            cells += [f"{result[kind] / 1e6:.0f}" for kind in ("anon", "rss")]
            print("".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)


if __name__ == "__main__":
    main()
