"""What a checkpoint folder holds beside its weights: config.json, and the files that conversion only carries along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vero_jax.checkpoints.native import MARKER, PARAMS
from vero_jax.errors import UserError

CONFIG = "config.json"
_WEIGHTS = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data",
)  # fmt: skip


def copy_side_files(source: Path, out: Path) -> None:
    """Copies tokenizer, chat template, processor, licence and whatever else there is, but no weights and no config.

    Folders are searched too, except hidden ones (a download's own records, a draft).
    """
    for path in sorted(source.iterdir()):
        if path.is_dir():
            if not path.name.startswith(".") and path.name != PARAMS and not _is_checkpoint(path):
                copy_side_files(path, out / path.name)
        elif path.is_file() and path.name not in (CONFIG, MARKER) and not path.name.endswith(_WEIGHTS):
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / path.name)


def copy_config(source: Path, out: Path, dtype: np.dtype) -> None:
    """Copies config.json; where it names the type of the tensors, which each version of transformers does elsewhere,
    it names this one.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        text = (source / CONFIG).read_text(encoding="utf-8")
        raw = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{source / CONFIG} cannot be read ({error}); copy the checkpoint again") from None
    changed = _with_dtype(raw, str(dtype))
    if changed != raw:
        text = json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
    (out / CONFIG).write_text(text, encoding="utf-8")


def _with_dtype(raw: Any, dtype: str) -> Any:
    if not isinstance(raw, dict):
        return raw
    changed = {key: dtype if key in ("dtype", "torch_dtype") and value else value for key, value in raw.items()}
    for section in ("text_config", "vision_config"):
        if section in changed:
            changed[section] = _with_dtype(changed[section], dtype)
    return changed


def _is_checkpoint(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / MARKER).is_file()
