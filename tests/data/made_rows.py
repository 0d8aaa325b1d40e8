"""Rows in the hub's columns, and a folder in the hub's layout with them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(width: int = 32, height: int = 32, kind: str = "PNG") -> bytes:
    """An encoded image of noise."""
    stream = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(stream, kind)
    return stream.getvalue()


def hub_row(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"row{number}",
        "data_source": "made",
        "prompt": [{"role": "user", "content": "<image>\nWhich?"}],
        "image": {"bytes": picture(), "path": None},
        "ability": "stem",
        "reward_model": {"style": "rule", "ground_truth": "A"},
        "extra_info": {
            "question": "Which?",
            "answer": "A",
            "reward_type": "string_match",
            "tolerance": None,
            "index": number,
        },
    }
    return {**row, **changes}


def write_hub(folder: Path, rows: list[dict[str, Any]], split: str = "train", source: str = "stem-made") -> Path:
    """Adds a Parquet file to a snapshot, and returns the snapshot."""
    (folder / source).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / source / f"{split}-00000-of-00001.parquet")
    return folder
