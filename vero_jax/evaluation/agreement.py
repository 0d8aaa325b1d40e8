"""Whether an evaluation may go on in a folder: what its answers were made with must be what the command asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.judges import TEXT, VISION
from vero_jax.evaluation.rows import Rows

FIXED = (
    "fingerprint",
    "variant",
    "samples",
    "seed",
    "context",
    "max_new_tokens",
    "max_pixels",
    "system",
    "dtype",
)
"""Settings on which answers depend. Tasks, their limit and the judges may change."""
_PARTS, _PART = 16, 4_096
_WORDS = {"fingerprint": "another checkpoint, or weights that have changed since"}


def checkpoint_fingerprint(*folders: Path | None, without: Path) -> str:
    """Of a checkpoint's files: their names and sizes, and samples of what they hold.

    Args:
      without: a folder that may lie inside of the checkpoint's and is no part of it: that of the results.
    """
    digest, results = hashlib.sha256(), without.resolve()
    for folder in filter(None, folders):
        inside = folder.resolve() in results.parents
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or (inside and results in path.resolve().parents):
                continue
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with open(path, "rb") as file:
                for part in range(_PARTS):
                    file.seek(max(size - _PART, 0) * part // (_PARTS - 1))  # the first and the last bytes among them
                    digest.update(file.read(_PART))
    return digest.hexdigest()[:32]


def data_fingerprint(rows: Rows) -> str:
    """Of the files that hold a benchmark's rows: their names and sizes."""
    digest = hashlib.sha256()
    for path in rows.files:
        digest.update(f"{path.relative_to(rows.folder)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:32]


def agreed(
    folder: ResultsFolder, settings: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The settings of an evaluation that begins, or goes on, in a folder, with what was asked there before.

    Args:
      settings: of this command.
      asked: its tasks, each with {"limit", "questions" (their ids), "data" (a fingerprint)}.

    Raises:
      UserError: answers that are there were made with other settings, or of other data.
    """
    if not folder.settings_file.exists():
        return {**settings, "asked": dict(asked)}
    before = folder.settings()
    elsewhere = "give another --output, or the settings of before"
    for name in FIXED:
        if before.get(name) != settings[name]:
            then = _WORDS.get(name) or f"{name.replace('_', ' ')} {before.get(name)!r} instead of {settings[name]!r}"
            raise UserError(f"the answers in {folder.path} were made with {then}: {elsewhere}")
    earlier = before.get("asked", {})
    for name, task in asked.items():
        if name in earlier and earlier[name].get("data") != task["data"]:
            raise UserError(f"the data of {name} has changed since its answers in {folder.path} were made: {elsewhere}")
    kept = {name: settings[name] or before.get(name) for name in (TEXT, VISION)}
    return {**settings, **kept, "asked": {**earlier, **asked}}
