"""The rows of `vero_mini`: sources with their shares, numbering, and the text the mini tokenizer is trained on.

Row `index` of a source is drawn from a generator seeded with (seed, split, source, index) alone: any row can be made
again without the others, and training and validation never share a generator.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

from vero_jax.data.mini import alignment, charts, recognition, search, spatial, stem
from vero_jax.data.mini.task import Task
from vero_jax.types import DOMAINS

PREFIXES = {**{name: name for name in DOMAINS}, "visual_alignment": "captioning_IF"}
"""First part of a hub config's name, by domain: one of Vero-600K's prefixes differs from its domain."""

SOURCES: dict[str, dict[str, tuple[float, Callable[[random.Random], Task]]]] = {
    "chart_ocr": {
        "mini_barchart": (0.4, charts.bar_chart),
        "mini_linechart": (0.3, charts.line_chart),
        "mini_printed": (0.3, charts.printed),
    },
    "knowledge_recognition": {
        "mini_colors": (0.45, recognition.colors),
        "mini_shapes": (0.35, recognition.shapes),
        "mini_letters": (0.2, recognition.letters),
    },
    "spatial_action": {
        "mini_relation": (0.45, spatial.relation),
        "mini_panels": (0.3, spatial.panels),
        "mini_buttons": (0.25, spatial.buttons),
    },
    "counting_grounding_search": {
        "mini_counting": (0.35, search.counting),
        "mini_boxes": (0.2, search.boxes),
        "mini_click": (0.2, search.click),
        "mini_search": (0.25, search.odd_one),
    },
    "stem": {
        "mini_angles": (0.35, stem.angles),
        "mini_polygons": (0.35, stem.polygons),
        "mini_sums": (0.3, stem.sums),
    },
    "visual_alignment": {
        "mini_rules": (0.95, alignment.rules),
        "mini_captions": (0.05, alignment.captions),
    },
}
"""For each domain its sources: the share of the domain's rows, and what draws a row."""

DOUBT_SHARE = 0.75
"""Share of reference responses that think everything twice. They are as right as the others, but where an answer has
little room they end before they answer: how much thinking pays is left to reinforcement."""


def config_name(domain: str, source: str) -> str:
    """The hub's config name of a source, `<prefix>-<source>`."""
    return f"{PREFIXES[domain]}-{source}"


def shares(total: int, weights: list[float]) -> list[int]:
    """`total` split in proportion to `weights`: floors, then one more to the largest remainders, earlier ones first."""
    whole = sum(weights)
    exact = [total * weight / whole for weight in weights]
    counts = [int(value + 1e-9) for value in exact]
    order = sorted(range(len(weights)), key=lambda place: (-round(exact[place] - counts[place], 9), place))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def make_task(split: str, seed: int, domain: str, source: str, index: int) -> Task:
    """The question number `index` of a source, drawn but not encoded."""
    rng = random.Random(f"vero_mini/{seed}/{split}/{source}/{index}")  # text seeds are hashed: the same on any machine
    task = SOURCES[domain][source][1](rng)
    return dataclasses.replace(task, doubts=rng.random() < DOUBT_SHARE)


def make_row(split: str, seed: int, domain: str, source: str, index: int) -> dict[str, Any]:
    """One row in the hub's columns, `extra_info.solution` added."""
    task = make_task(split, seed, domain, source, index)
    name = f"{source}_{split}_{index:06d}"
    return {
        "id": name,
        "data_source": source,
        "prompt": [{"role": "user", "content": f"<image>\n{task.question}"}],
        "image": {"bytes": task.canvas.png(), "path": f"{name}.png"},
        "ability": domain,
        "reward_model": {"style": "rule", "ground_truth": task.ground_truth},
        "extra_info": {
            "id": name,
            "split": split,
            "index": index,
            "question": task.question,
            "answer": task.answer,
            "reward_type": task.reward_type,
            "tolerance": task.tolerance,
            "solution": task.solution,
        },
    }


def sizes(size: int) -> dict[tuple[str, str], int]:
    """Rows of every (domain, source) of a split of `size` rows: equal domains, then each source's share."""
    counts = {}
    for domain, count in zip(DOMAINS, shares(size, [1.0] * len(DOMAINS)), strict=True):
        sources = SOURCES[domain]
        for source, number in zip(sources, shares(count, [share for share, _ in sources.values()]), strict=True):
            counts[domain, source] = number
    return counts


def generate_rows(split: str, size: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """All rows of a split as (config name, hub row), source by source."""
    for (domain, source), count in sizes(size).items():
        for index in range(count):
            yield config_name(domain, source), make_row(split, seed, domain, source, index)


def text_corpus(seed: int, rows_per_source: int = 120) -> list[str]:
    """Questions and reference responses to train a tokenizer on; deterministic, drawn from a split of its own."""
    texts = []
    for domain, sources in SOURCES.items():
        for source in sources:
            for index in range(rows_per_source):
                task = make_task("corpus", seed, domain, source, index)
                texts += [task.question, task.solution]
    return texts
