"""Reads the golden cases of losses, advantages, metrics and updates through their index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import golden_dir

LOSS = {"rtol": 2e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}
METRIC = {"rtol": 0, "atol": 1e-6}


def cases(*families: str) -> list[Any]:
    """All cases of the families as (settings, file) parameters; each family must have at least one."""
    folder = golden_dir("rl")
    found = [entry for entry in json.loads((folder / "index.json").read_text())["cases"] if entry["family"] in families]
    missing = set(families) - {entry["family"] for entry in found}
    if missing:
        raise RuntimeError(f"{folder} has no case of {sorted(missing)}")
    return [pytest.param(entry["hp"], folder / entry["file"], id=entry["id"]) for entry in found]


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
