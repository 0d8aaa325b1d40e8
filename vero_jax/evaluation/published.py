"""What the paper of Vero gives for its base models and for what it made of them (`published.csv`: arXiv, version 2).

The means of categories and the overall figure are plain means of rows, so only rows are kept. A base's figure is from
its makers' report, unless Vero's authors measured it. MiMo-VL-7B-SFT is not printed there; its figures are Vero's minus
the gain.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

_FILE = Path(__file__).parent / "published.csv"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two columns of the published table."""

    key: str
    base: str
    vero: str


PAIRS = (
    Pair("qwen25", "Qwen2.5-VL-7B-Instruct", "Vero-Qwen25-7B"),
    Pair("qwen3", "Qwen3-VL-8B-Instruct", "Vero-Qwen3I-8B"),
    Pair("qwen3_thinking", "Qwen3-VL-8B-Thinking", "Vero-Qwen3T-8B"),
    Pair("mimo", "MiMo-VL-7B-SFT", "Vero-MiMo-7B"),
)


@dataclasses.dataclass(frozen=True)
class Published:
    """A row for one base model, on the published scale."""

    base: float
    vero: float
    measured: bool
    """The base's figure was measured by Vero's authors; else it is its makers'."""


@functools.cache
def published() -> Mapping[str, Mapping[str, Published]]:
    """The figures by row of the table and key of the pair."""
    with _FILE.open(encoding="utf-8", newline="") as file:
        return {
            line["row"]: {
                pair.key: Published(
                    float(line[f"{pair.key}_base"]),
                    float(line[f"{pair.key}_vero"]),
                    pair.key in line["measured_by_vero"].split(";"),
                )
                for pair in PAIRS
            }
            for line in csv.DictReader(file)
        }


def published_means(rows: Iterable[str], key: str) -> tuple[float, float] | None:
    """(base, Vero): the means over these rows; None without any published row among them."""
    known = [published()[row][key] for row in rows if row in published()]
    if not known:
        return None
    return sum(row.base for row in known) / len(known), sum(row.vero for row in known) / len(known)


def likely_pair(checkpoint: str, variant: str) -> Pair:
    """The pair that a checkpoint belongs beside, by its name, else by the decoding variant."""
    name = checkpoint.lower().replace("_", "-").replace("qwen-", "qwen")
    by_key = {pair.key: pair for pair in PAIRS}
    thinking = "think" in name or "qwen3t" in name or variant == "qwen3_thinking_zs"
    if "mimo" in name:
        return by_key["mimo"]
    if "qwen2.5" in name or "qwen25" in name or "qwen2-5" in name:
        return by_key["qwen25"]
    if "qwen3" in name:
        return by_key["qwen3_thinking" if thinking else "qwen3"]
    if variant == "mimo_zs":
        return by_key["mimo"]
    if "q3" in variant or variant.startswith("qwen3"):
        return by_key["qwen3_thinking" if thinking else "qwen3"]
    return by_key["qwen25"]
