"""Some questions of a benchmark instead of all: the same ones each time, spread evenly over its data set."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vero_jax.data.formats import BrokenRow
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.rows import open_rows


def chosen(benchmark: Benchmark, root: Path, count: int, limit: int) -> list[int]:
    """The numbers of the questions to ask, ascending.

    Many data sets are sorted by sub-task, so that the first questions would be all of one kind. Rows whose answers go
    to another row's question come with it and are not counted.

    Args:
      root: the folder of all data sets.
      count: questions that the data set holds.
      limit: questions to ask; 0 is all of them.

    Raises:
      MissingData: the data is not there.
    """
    if not limit or limit >= count:
        return list(range(count))
    if benchmark.belongs_to is None:
        return _spread(range(count), limit)
    owners: dict[int, str | None] = {}  # by row; None for a question of its own
    names: dict[int, str] = {}
    for number, row in enumerate(open_rows(benchmark.source, root).without_pictures()):
        owners[number] = None
        # A row that can't be read is a question of its own, whose asker counts it.
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            if not isinstance(row, BrokenRow):
                names[number] = str(row.get("id"))
                place = benchmark.belongs_to(row)
                owners[number] = None if place is None else place[0]
    own = _spread([number for number, owner in owners.items() if owner is None], limit)
    asked = {names.get(number) for number in own}
    return sorted({*own, *(number for number, owner in owners.items() if owner is not None and owner in asked)})


def _spread(items: "range | list[int]", limit: int) -> list[int]:
    """At most `limit` of the items, at equal distances."""
    return [items[place * len(items) // limit] for place in range(limit)] if limit < len(items) else list(items)
