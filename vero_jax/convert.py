"""Hugging Face <-> vero_jax: writes a policy as a Hugging Face folder, and checks that a folder survives the way.

    python -m vero_jax.convert SOURCE OUT [--dtype bfloat16|float32] [--max-shard-bytes N]

reads a Hugging Face folder into vero_jax, writes it back as one, and compares every tensor with the source.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vero_jax.errors import UserError, friendly
from vero_jax.models.config import ModelConfig
from vero_jax.models.policy import ModelDef, Params
from vero_jax.models.weights import Checkpoint, disk_tensors, load_params, save_params, stored_dtype

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
"""Files that a checkpoint needs beside its weights and config, and that training does not change."""

MAX_SHARD_BYTES = 5 * 10**9


def export_hf(
    params: Params,
    model_def: ModelDef,
    source_folder: str | Path,
    out_folder: str | Path,
    *,
    dtype: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes weights, config and the source's tokenizer, template and processor files as a Hugging Face folder.

    The folder appears under its name only when it is complete. With several processes all must call this; the first
    one writes.

    Args:
        source_folder: the checkpoint that training started from.
        out_folder: must not exist, or be empty.
        dtype: of the tensors on disk; None keeps that of the parameters.

    Returns:
        the folder that was written.
    """
    source, out = Path(source_folder).expanduser(), Path(out_folder).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; give a new folder, or remove it first")
    dtype = np.dtype(model_def.param_dtype if dtype is None else dtype)
    draft = out.with_name(f".{out.name}.partial")
    writer = jax.process_index() == 0
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export_hf")  # all have looked at `out` before the first one fills it
    if writer:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    save_params(draft, model_def, params, max_shard_bytes, dtype)
    if writer:
        text = json.dumps(model_def.config.to_hf(dtype.name), indent=2)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, draft / name)
        os.replace(draft, out)
    return out


def differing_tensors(source: str | Path, out: str | Path, model_def: ModelDef, dtype: Any) -> list[str]:
    """Names of the tensors of `out` that are not those of `source` rounded to `dtype`."""
    with Checkpoint(source) as before, Checkpoint(out) as after:
        return [
            name
            for name in disk_tensors(model_def)
            if not np.array_equal(before.read(name).astype(dtype), after.read(name))
        ]


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vero_jax.convert", description=__doc__.split("\n")[0])
    parser.add_argument("source", help="Hugging Face folder: config.json and safetensors files")
    parser.add_argument("out", help="folder to write; must not exist yet")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the tensors; default: as in the source")
    parser.add_argument("--max-shard-bytes", type=int, default=MAX_SHARD_BYTES, help="largest size of one file")
    options = parser.parse_args(argv)
    config = ModelConfig.from_folder(options.source)
    dtype = options.dtype or ("bfloat16" if stored_dtype(options.source).itemsize == 2 else "float32")
    model_def = ModelDef(config, param_dtype=dtype)
    params = load_params(options.source, model_def)
    out = export_hf(params, model_def, options.source, options.out, max_shard_bytes=options.max_shard_bytes)
    if differing := differing_tensors(options.source, out, model_def, dtype):
        raise RuntimeError(f"{len(differing)} tensors changed on the way, among them {differing[:4]}")
    print(f"{out}: {model_def.num_params():,} parameters in {dtype}, every tensor equal to the source")
    return 0


if __name__ == "__main__":
    sys.exit(main())
