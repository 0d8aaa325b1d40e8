"""The heuristic screen: sources that are too small, whose images are too small, or that only ask for yes or no.

Thresholds are the paper's (arXiv 2604.04917, section on data): 1,000 rows, 200,000 pixels on average, not purely
binary. Sizes are read from the images' headers; no pixel is decoded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vero_jax.curation.options import is_binary
from vero_jax.curation.rows import SPLITS, Row, Rows, RowWriter, check_names, listed, table
from vero_jax.data.images import ImageError, open_image
from vero_jax.errors import UserError
from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.output_folder import check_free, new_folder

NAME = "screen"
HELP = "drop whole sources by size, image area and share of yes/no questions"


@dataclasses.dataclass(frozen=True)
class ScreenSettings:
    """The thresholds."""

    min_rows: int = 1_000
    min_area: float = 200_000.0
    """Pixels: mean over the images of a source."""
    max_binary_share: float = 0.9
    """A source with a larger share of yes/no and true/false questions counts as binary. A few other questions do not
    make it better, so the limit is below 1."""
    allow_small: tuple[str, ...] = ()
    """Sources whose images may be small."""


@dataclasses.dataclass
class SourceFacts:
    """What the screen knows of one source."""

    source: str
    rows: int = 0
    images: int = 0
    unreadable: int = 0
    """Images without a readable header."""
    area: float = 0.0
    """Sum over the readable images, in pixels."""
    binary: int = 0
    domains: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, row: Row) -> None:
        self.rows += 1
        self.domains[row.example.domain] += 1
        self.binary += is_binary(row.question, row.example.ground_truth)
        for data in row.example.images:
            self.images += 1
            try:
                width, height = open_image(data).size
            except ImageError:
                self.unreadable += 1
            else:
                self.area += width * height

    @property
    def mean_area(self) -> float:
        """Pixels; 0 where no image could be read."""
        readable = self.images - self.unreadable
        return self.area / readable if readable else 0.0

    @property
    def binary_share(self) -> float:
        return self.binary / self.rows if self.rows else 0.0

    def reasons(self, settings: ScreenSettings) -> list[str]:
        """Why the source is dropped; empty where it is kept."""
        found = []
        if self.rows < settings.min_rows:
            found.append(f"{self.rows:,} rows, fewer than {settings.min_rows:,}")
        if self.images and self.mean_area < settings.min_area and self.source not in settings.allow_small:
            found.append(f"mean image area {self.mean_area:,.0f} pixels, below {settings.min_area:,.0f}")
        if self.binary_share > settings.max_binary_share:
            found.append(
                f"{self.binary_share:.0%} of the questions are yes/no, more than {settings.max_binary_share:.0%}"
            )
        return found


def screen(rows: Iterable[Row]) -> dict[str, SourceFacts]:
    """The facts of each source, by name, in the order in which they are met."""
    facts: dict[str, SourceFacts] = {}
    for row in rows:
        facts.setdefault(row.source, SourceFacts(row.source)).add(row)
    return facts


def report(
    facts: Sequence[SourceFacts], settings: ScreenSettings, unusable: Counter[tuple[str, str]]
) -> dict[str, Any]:
    """Everything as JSON: the thresholds, each source with its verdict, rows that could not be read."""
    return {
        "settings": dataclasses.asdict(settings),
        "sources": [
            {
                "source": one.source,
                "domains": dict(one.domains),
                "rows": one.rows,
                "images": one.images,
                "unreadable_images": one.unreadable,
                "mean_area": round(one.mean_area, 1),
                "binary_share": round(one.binary_share, 4),
                "kept": not one.reasons(settings),
                "reasons": one.reasons(settings),
            }
            for one in facts
        ],
        "unusable_rows": [
            {"config": config, "reason": reason, "rows": count} for (config, reason), count in unusable.items()
        ],
    }


def report_lines(found: dict[str, Any]) -> list[str]:
    """The report as text for a terminal."""
    lines = table(
        [
            (
                one["source"],
                "+".join(one["domains"]),
                f"{one['rows']:,}",
                f"{one['mean_area']:,.0f}" if one["images"] else "-",
                f"{one['binary_share']:.0%}",
                "kept" if one["kept"] else "dropped",
                "; ".join(one["reasons"]),
            )
            for one in found["sources"]
        ],
        ("source ", "domain ", "rows", "mean pixels", "yes/no", "verdict ", "why "),
    )
    kept = [one for one in found["sources"] if one["kept"]]
    total = sum(one["rows"] for one in found["sources"])
    lines += [
        "",
        f"{len(kept)} of {len(found['sources'])} sources kept, {sum(o['rows'] for o in kept):,} of {total:,} rows",
    ]
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = ScreenSettings()
    parser.add_argument("source", help="folder in the hub's layout, Parquet, or .jsonl")
    parser.add_argument("--splits", default=",".join(SPLITS), help="default: %(default)s")
    parser.add_argument("--sources", default="", metavar="A,B", help="only these sources")
    parser.add_argument("--min-rows", type=int, default=defaults.min_rows, help="default: %(default)s")
    parser.add_argument("--min-area", type=float, default=defaults.min_area, help="mean pixels; default: %(default)s")
    parser.add_argument(
        "--max-binary-share", type=float, default=defaults.max_binary_share, help="of yes/no; default: %(default)s"
    )
    parser.add_argument("--allow-small", default="", metavar="A,B", help="sources whose images may be small")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the rows of the kept sources there, as JSONL")


def run(arguments: argparse.Namespace) -> int:
    """The command. Status 1 where nothing is left."""
    settings = ScreenSettings(
        arguments.min_rows, arguments.min_area, arguments.max_binary_share, listed(arguments.allow_small)
    )
    if not 0 <= settings.max_binary_share <= 1:
        raise UserError(
            f"--max-binary-share is {settings.max_binary_share}: it is a share and must lie between 0 and 1"
        )
    if arguments.out is not None:
        check_free(arguments.out)
    rows = Rows(arguments.source, listed(arguments.splits), listed(arguments.sources))
    facts = screen(rows)
    check_names("--allow-small", settings.allow_small, facts)
    found = report(list(facts.values()), settings, rows.unusable)
    print("\n".join([*report_lines(found), *rows.unusable_lines()]))
    if arguments.json is not None:
        atomic_write(arguments.json, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    kept = {one["source"] for one in found["sources"] if one["kept"]}
    if arguments.out is not None and kept:
        with new_folder(arguments.out) as draft, RowWriter(draft) as writer:
            for row in rows:
                if row.source in kept:
                    writer.add(row)
        print(f"rows of the kept sources: {arguments.out}")
    return 0 if kept else 1
