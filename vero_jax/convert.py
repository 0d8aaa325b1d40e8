"""Checkpoints between Hugging Face's format and vero_jax's own, both ways, and out of training.

    python -m vero_jax.convert SOURCE OUT [--to hf|vero_jax] [--dtype source|bfloat16|float32] [--step N|best]

SOURCE is a Hugging Face folder, an id of the model hub, a folder in vero_jax's format, or the run directory of a
training, whose newest checkpoint is taken. What is written is read again and compared with the source, bit by bit.
Nothing is ever in memory as a whole.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vero_jax.checkpoints import native
from vero_jax.checkpoints.boxes import BFLOAT16, Box, as_type, cut, same_bits, whole
from vero_jax.checkpoints.export_files import copy_config, copy_side_files
from vero_jax.checkpoints.names import by_tensor, sources
from vero_jax.checkpoints.origin import Origin, open_origin, source_experts
from vero_jax.checkpoints.safetensors_io import Checkpoint, SafetensorsWriter
from vero_jax.checkpoints.saved_params import SavedParams
from vero_jax.checkpoints.transfer import (
    BLOCK_BYTES,
    Comparison,
    TensorParams,
    TensorSink,
    read_into,
    run_all,
    write_from,
)
from vero_jax.checkpoints.weights import MAX_SHARD_BYTES, open_checkpoint, save_params
from vero_jax.data.folder_settings import write_system_prompt
from vero_jax.data.prompts import system_prompt
from vero_jax.errors import UserError, friendly
from vero_jax.models.policy import ModelDef, ParamPath, Params
from vero_jax.runtime.output_folder import check_free, new_folder

FORMATS = ("hf", "vero_jax")


def export_hf(
    params: Params,
    model_def: ModelDef,
    source_folder: str | Path,
    out_folder: str | Path,
    *,
    dtype: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    system_prompt: str = "",
) -> Path:
    """Writes weights, the source's config and all its other files as a Hugging Face folder.

    The folder appears under its name only when it is complete. With several processes all must call this; the first
    one writes.

    Args:
        source_folder: the checkpoint that training started from, in either format.
        out_folder: must not exist, or be empty.
        dtype: of the tensors on disk; None keeps that of the parameters.
        system_prompt: what the policy was trained with, to be the chat template's own; "" leaves the template alone.

    Returns:
        the folder that was written.

    Raises:
        UserError: the folder exists, or the disk refuses.
    """
    source, out = Path(source_folder).expanduser(), Path(out_folder).expanduser()
    check_free(out)
    dtype = np.dtype(model_def.param_dtype if dtype is None else dtype)
    experts = source_experts(source, model_def)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export_hf")  # all have looked at `out` before the first one fills it
    if jax.process_index() > 0:
        save_params(out, model_def, params, max_shard_bytes, dtype, experts)
        return out
    with new_folder(out) as draft:
        save_params(draft, model_def, params, max_shard_bytes, dtype, experts)
        copy_config(source, draft, dtype)
        copy_side_files(source, draft)
        if system_prompt:
            write_system_prompt(draft, system_prompt)
    return out


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str | None = None,
    dtype: str = "source",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    step: int | str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Converts a checkpoint and checks the result.

    Args:
        source: see the head of this file.
        out: must not exist, or be an empty folder.
        to: "hf" or "vero_jax"; None takes Hugging Face's for what is not, and vero_jax's for what is.
        dtype: of the weights written; "source" keeps every tensor's own.
        max_shard_bytes: largest size of one safetensors file.
        step: of a run directory's checkpoint; None takes the newest, "best" the one with the best validation.
        say: is told what was done.

    Returns:
        the folder that was written.

    Raises:
        UserError: the source is missing or damaged or does not fit its config, `out` exists, or the disk refuses.
    """
    out = Path(out).expanduser()
    check_free(out)
    if max_shard_bytes < 1:
        raise UserError(f"--max-shard-bytes {max_shard_bytes} must be positive")
    with open_origin(source, step) as origin:
        to = to or ("vero_jax" if origin.kind == "hf" else "hf")
        dtypes = {
            path: kept if dtype == "source" else (BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype))
            for path, kept in origin.dtypes.items()
        }
        start = time.perf_counter()
        with new_folder(out) as draft:
            differing = _TO[to](origin, draft, dtypes, dtype != "source", max_shard_bytes, say)
            if differing:
                raise RuntimeError(f"{len(differing)} tensors changed on the way, among them {sorted(differing)[:4]}")
            most = max(dtypes, key=lambda path: math.prod(origin.shapes[path]))
            copy_config(origin.folder, draft, dtypes[most])
            copy_side_files(origin.folder, draft)
            if origin.system_prompt:
                write_system_prompt(draft, system_prompt(origin.system_prompt))
        numbers = origin.model_def.num_params()
        kinds = ", ".join(sorted({str(found) for found in dtypes.values()}))
        say(
            f"{out}: {numbers:,} parameters in {kinds}, every tensor equal to the source's"
            f"{'' if dtype == 'source' else ', rounded'} ({time.perf_counter() - start:.0f} s)"
        )
    return out


def _to_vero_jax(
    origin: Origin,
    draft: Path,
    dtypes: Mapping[ParamPath, np.dtype],
    cast: bool,
    max_shard_bytes: int,
    say: Callable[[str], None],
) -> set[str]:
    """Writes this package's format; returns what is not equal to the source."""
    layout = sources(origin.model_def, origin.experts)
    stacked = {path for path, layers in layout.items() if layers[0].layer is not None}
    writer = native.NativeWriter(draft, {path: (shape, dtypes[path]) for path, shape in origin.shapes.items()}, stacked)
    with _timed(say, "written", origin.shapes, dtypes):
        origin.feed(writer, writer)
        if isinstance(origin.params, SavedParams):
            origin.params.check()
    writer.finish(origin.experts)
    with native.NativeFolder(draft) as written, _timed(say, "compared", origin.shapes, dtypes):
        comparison = Comparison(origin.shapes, written, dtypes)
        origin.feed(comparison, writer)
    return {".".join(path) for path in comparison.differing}


def _to_hf(
    origin: Origin,
    draft: Path,
    dtypes: Mapping[ParamPath, np.dtype],
    cast: bool,
    max_shard_bytes: int,
    say: Callable[[str], None],
) -> set[str]:
    """Writes Hugging Face's format; returns what is not equal to the source."""
    layout = sources(origin.model_def, origin.experts)
    tensors = by_tensor(layout)
    kinds = {name: dtypes[pieces[0][0]] for name, pieces in tensors.items()}
    if origin.tensors is not None and not cast:
        kinds = {name: origin.tensors.dtype(name) for name in tensors}
    announced = {name: (pieces[0][1].shape, kinds[name]) for name, pieces in tensors.items()}
    with _timed(say, "written", origin.shapes, dtypes), SafetensorsWriter(draft, announced, max_shard_bytes) as writer:
        if origin.tensors is not None:
            _copy_tensors(origin.tensors, writer)
        elif isinstance(origin.params, SavedParams):
            origin.feed(TensorSink(origin.shapes, layout, writer))
            origin.params.check()
        elif origin.params is not None:
            write_from(origin.params, layout, kinds, writer, grid=lambda name: (native.CHUNK,))
    with _timed(say, "compared", origin.shapes, dtypes), open_checkpoint(draft, origin.model_def) as (written, _):
        if origin.tensors is not None and isinstance(written, Checkpoint):
            return _differing_tensors(origin.tensors, written)
        if origin.params is None:
            raise ValueError(f"a checkpoint of kind {origin.kind} without a reader")
        if isinstance(origin.params, SavedParams):
            comparison = Comparison(origin.shapes, TensorParams(written, layout), dtypes)
            origin.feed(comparison)
        else:
            comparison = Comparison(origin.shapes, origin.params, dtypes)
            read_into(written, layout, comparison, grid=lambda name: (native.CHUNK,))
    return {".".join(path) for path in comparison.differing}


_TO = {"hf": _to_hf, "vero_jax": _to_vero_jax}


def _copy_tensors(source: Checkpoint, writer: SafetensorsWriter) -> None:
    """From safetensors to safetensors: the tensors as they are, in other files or in another type."""

    def job(name: str, shape: tuple[int, ...], box: Box) -> None:
        first = sum(start * math.prod(shape[axis + 1 :]) for axis, (start, _) in enumerate(box))
        writer.write(name, first, as_type(source.read(name, shape, box), writer.tensors[name][1]))

    run_all(
        functools.partial(job, name, source.shape(name), box)
        for name in source.in_order(writer.tensors)
        for box in cut(whole(source.shape(name)), BLOCK_BYTES // source.dtype(name).itemsize)
    )


def _differing_tensors(source: Checkpoint, out: Checkpoint) -> set[str]:
    """Names of the tensors of `out` that are not those of `source` rounded to their type."""
    differing: set[str] = set()

    def job(name: str, box: Box) -> None:
        before, after = (checkpoint.read(name, out.shape(name), box) for checkpoint in (source, out))
        if not same_bits(as_type(before, after.dtype), after):
            differing.add(name)

    run_all(
        functools.partial(job, name, box)
        for name in out.in_order(out.names)
        for box in cut(whole(out.shape(name)), BLOCK_BYTES // out.dtype(name).itemsize)
    )
    return differing


@contextlib.contextmanager
def _timed(
    say: Callable[[str], None],
    done: str,
    shapes: Mapping[ParamPath, tuple[int, ...]],
    dtypes: Mapping[ParamPath, np.dtype],
) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    size = sum(math.prod(shape) * dtypes[path].itemsize for path, shape in shapes.items())
    say(f"{done}: {size / 1e9:.2f} GB in {seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s")


def number_or_best(text: str) -> int | str:
    return text if text == "best" else int(text)


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m vero_jax.convert",
        description=summary,
        epilog=rest.rpartition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="Hugging Face folder, hub id, vero_jax folder or run directory")
    parser.add_argument("out", help="folder to write; must not exist yet")
    parser.add_argument("--to", choices=FORMATS, help="default: the other format, and hf from a run directory")
    parser.add_argument(
        "--dtype", choices=["source", "bfloat16", "float32"], default="source", help="of the weights; default: source"
    )
    parser.add_argument("--max-shard-bytes", type=int, default=MAX_SHARD_BYTES, help="largest size of one file")
    parser.add_argument(
        "--step", type=number_or_best, help="a run directory's checkpoint, or best; default: the newest"
    )
    options = parser.parse_args(argv)
    convert(
        options.source,
        options.out,
        to=options.to,
        dtype=options.dtype,
        max_shard_bytes=options.max_shard_bytes,
        step=options.step,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
