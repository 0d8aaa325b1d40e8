"""What became of the rows of a data set while it was prepared: counts, and the tables that show them."""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vero_jax.data import schema
from vero_jax.types import DOMAINS, Example

Kept = tuple[str, str, str, str]
"""(split, source, domain, reward type)"""
Dropped = tuple[str, str, str, str, str]
"""(split, source, domain, reward type, reason)"""


@dataclasses.dataclass(frozen=True)
class ImageSizes:
    """Stored sizes of the images of one source, in pixels."""

    source: str
    count: int
    median: tuple[int, int]
    """Median width and median height."""
    largest: tuple[int, int]
    """Width and height of the image of the largest area."""
    megapixels: float
    """Mean area in millions of pixels."""


@dataclasses.dataclass
class Report:
    """Rows kept and dropped, and why. Reports of several configs merge into one."""

    kept: collections.Counter[Kept] = dataclasses.field(default_factory=collections.Counter)
    dropped: collections.Counter[Dropped] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[tuple[str, str, str], str] = dataclasses.field(default_factory=dict)
    """For every (split, source, reason) of `dropped`, the id of the first such row."""
    images: list[ImageSizes] = dataclasses.field(default_factory=list)
    duplicates: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    """By split: rows whose id an earlier row has already, and the first such id. The rows are kept."""

    def keep(self, split: str, example: Example) -> None:
        self.kept[split, example.source, example.domain, example.reward_type] += 1

    def drop(self, split: str, row: Mapping[str, Any], reason: str, row_id: str) -> None:
        """Counts a row (as stored) that cannot be used."""
        extra = row.get("extra_info")
        extra = extra if isinstance(extra, Mapping) else {}
        source = str(row.get("data_source") or "?")
        domain, reward_type = str(row.get("ability") or "?"), str(extra.get("reward_type") or "?")
        self.dropped[split, source, domain, reward_type, reason] += 1
        self.examples.setdefault((split, source, reason), row_id)

    def merge(self, other: Report) -> None:
        """Adds another report. Duplicate ids do not add up; count them over all rows with `duplicate_ids`."""
        self.kept.update(other.kept)
        self.dropped.update(other.dropped)
        self.examples = {**other.examples, **self.examples}
        self.images = [*self.images, *other.images]

    def by_reason(self) -> dict[str, int]:
        """Rows dropped by reason, over all splits and sources."""
        counts: collections.Counter[str] = collections.Counter()
        for (*_, reason), count in self.dropped.items():
            counts[reason] += count
        return dict(counts)

    def to_json(self) -> dict[str, Any]:
        return {
            "kept": [[*key, count] for key, count in self.kept.items()],
            "dropped": [[*key, count] for key, count in self.dropped.items()],
            "examples": [[*key, row_id] for key, row_id in self.examples.items()],
            "images": [dataclasses.asdict(sizes) for sizes in self.images],
            "duplicates": {split: list(found) for split, found in self.duplicates.items()},
            "notes": self.notes(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        return cls(
            kept=collections.Counter({tuple(key): count for *key, count in value["kept"]}),
            dropped=collections.Counter({tuple(key): count for *key, count in value["dropped"]}),
            examples={(split, source, reason): row_id for split, source, reason, row_id in value["examples"]},
            images=[
                ImageSizes(**{**sizes, "median": tuple(sizes["median"]), "largest": tuple(sizes["largest"])})
                for sizes in value["images"]
            ],
            duplicates={split: (count, first) for split, (count, first) in value["duplicates"].items()},
        )

    def notes(self) -> list[str]:
        """A line for everything in the rows that the recipe does not know or cannot read."""
        lines = []
        unparsable: collections.Counter[str] = collections.Counter()
        for (_, _, _, reward_type, reason), count in self.dropped.items():
            if "ground truth" in reason:
                unparsable[reward_type] += count
        if unparsable:
            parts = ", ".join(f"{name} {count}" for name, count in unparsable.most_common())
            lines.append(f"unparsable ground truths, dropped: {unparsable.total()} rows ({parts})")
        types: collections.Counter[str] = collections.Counter()
        domains: collections.Counter[str] = collections.Counter()
        for (_, _, domain, reward_type), count in self.kept.items():
            if reward_type not in schema.REWARD_TYPES:
                types[reward_type] += count
            if domain not in DOMAINS:
                domains[domain] += count
        for name, count in types.items():
            lines.append(f"unknown reward type {name!r}: {count} rows, checked by the default rule")
        for name, count in domains.items():
            near = difflib.get_close_matches(name, DOMAINS, 1)
            meant = f" (is it {near[0]!r}?)" if near else ""
            lines.append(f"unknown domain {name!r}: {count} rows, drawn only if it has a weight{meant}")
        for split, (count, first) in self.duplicates.items():
            lines.append(f"duplicate ids in {split}: {count} rows, kept; the first one is {first!r}")
        return lines

    def table(self) -> str:
        """All of it as text: per split what was kept by domain, reward type and source, then what was dropped."""
        lines: list[str] = []
        for split in dict.fromkeys([key[0] for key in self.kept] + [key[0] for key in self.dropped]):
            lines += [*self._split_table(split), ""]
        if self.images:
            rows = [
                (sizes.source, f"{sizes.count}", _by(sizes.median), _by(sizes.largest), f"{sizes.megapixels:.2f}")
                for sizes in self.images
            ]
            lines += [*columns(rows, ("images of", "count", "median", "largest", "mean MP"), 1), ""]
        return "\n".join([*lines, *self.notes()]).rstrip()

    def _split_table(self, split: str) -> Iterator[str]:
        kept = {key[1:]: count for key, count in self.kept.items() if key[0] == split}
        dropped = {key[1:]: count for key, count in self.dropped.items() if key[0] == split}
        yield f"{split}: {sum(kept.values())} rows kept, {sum(dropped.values())} dropped"
        for place, title in ((1, "domain"), (2, "reward type")):
            yield from columns(_sums(kept, dropped, place), (title, "kept", "dropped"), 1)
            yield ""
        types: dict[tuple[str, str], list[str]] = {}
        for (source, domain, reward_type), count in kept.items():
            types.setdefault((source, domain), []).append(f"{reward_type} {count}")
        rows = [
            (*place, number, lost, ", ".join(types.get(place, [])))
            for place, number, lost in _sums(kept, dropped, slice(0, 2))
        ]
        yield from columns(rows, ("source", "domain", "kept", "dropped", "reward types"), 2, last_left=True)
        if dropped:
            reasons: collections.Counter[tuple[str, str]] = collections.Counter()
            for (source, _, _, reason), count in dropped.items():
                reasons[source, reason] += count
            yield ""
            yield from columns(
                [
                    (source, reason, self.examples[split, source, reason], str(count))
                    for (source, reason), count in reasons.items()
                ],
                ("dropped from", "reason", "first such row", "rows"),
                3,
            )


def _sums(kept: Mapping[Any, int], dropped: Mapping[Any, int], place: int | slice) -> list[tuple[Any, str, str]]:
    """(name, kept, dropped) by what stands at one place of the keys, the most frequent first."""
    left: collections.Counter[Any] = collections.Counter()
    right: collections.Counter[Any] = collections.Counter()
    for key, count in kept.items():
        left[key[place]] += count
    for key, count in dropped.items():
        right[key[place]] += count
    names = sorted({**left, **right}, key=lambda name: (-left[name], str(name)))
    return [(name, str(left[name]), str(right[name])) for name in names]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def columns(
    rows: Sequence[tuple[str, ...]], titles: tuple[str, ...], texts: int, *, last_left: bool = False
) -> Iterator[str]:
    """Lines of a table whose first `texts` columns are text, the others numbers (or one more text at the end)."""
    widths = [max(len(row[place]) for row in [titles, *rows]) for place in range(len(titles))]
    for row in [titles, *rows]:
        cells = [
            cell.ljust(width) if place < texts or (last_left and place == len(row) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()


def image_sizes(indexes: Sequence[Path]) -> list[ImageSizes]:
    """Sizes by source, from index files (`index-<split>.parquet`)."""
    if not indexes:
        return []
    tables = [pq.read_table(path, columns=["source", "widths", "heights"]) for path in indexes]
    table = pa.concat_tables(tables).combine_chunks()
    found = []
    for source in pc.unique(table["source"]).to_pylist():
        own = table.filter(pc.equal(table["source"], source))
        widths, heights = (pc.list_flatten(own[name]).to_numpy().astype(np.int64) for name in ("widths", "heights"))
        if not len(widths):
            continue
        areas = widths * heights
        at = int(areas.argmax())
        found.append(
            ImageSizes(
                source=source,
                count=len(widths),
                median=(int(np.median(widths)), int(np.median(heights))),
                largest=(int(widths[at]), int(heights[at])),
                megapixels=round(float(areas.mean()) / 1e6, 4),
            )
        )
    return found


def duplicate_ids(ids: pa.ChunkedArray) -> tuple[int, str] | None:
    """(how many rows have the id of an earlier row, the first such id), or None where all ids differ."""
    repeated = len(ids) - pc.count_distinct(ids).as_py()
    if not repeated:
        return None
    seen: set[str] = set()
    for name in ids.to_pylist():
        if name in seen:
            return repeated, name
        seen.add(name)
    return None
