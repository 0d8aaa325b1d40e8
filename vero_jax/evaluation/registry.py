"""All benchmarks by name: whatever the files in `benchmarks/` offer as `BENCHMARKS`."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
import re
from collections.abc import Sequence

from vero_jax.errors import UserError
from vero_jax.evaluation import benchmarks
from vero_jax.evaluation.benchmark import CATEGORIES, Benchmark

VEROEVAL = "veroeval"
"""The name that stands for all benchmarks."""


@functools.cache
def all_benchmarks() -> dict[str, Benchmark]:
    """Every task by name, in the order of the categories and then of their names."""
    found: list[Benchmark] = []
    for module in pkgutil.iter_modules(benchmarks.__path__):
        found += importlib.import_module(f"{benchmarks.__name__}.{module.name}").BENCHMARKS
    found.sort(key=lambda task: (CATEGORIES.index(task.category), task.row.lower(), task.name))
    by_name = {task.name: task for task in found}
    assert len(by_name) == len(found), "two benchmarks have the same name"
    return by_name


def benchmark(name: str) -> Benchmark:
    """The task of this name.

    Raises:
      UserError: there is none.
    """
    try:
        return all_benchmarks()[name]
    except KeyError:
        raise UserError(f"no benchmark is called {name!r}; there are {', '.join(all_benchmarks())}") from None


def select(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks that names stand for, each once, in the order of `all_benchmarks`.

    Args:
      names: "veroeval" (all of them), categories ("Chart & OCR" or `chart_ocr`), rows of the published table
        ("VisualProbe", which has three tasks) or tasks (`chartqa`); capitals do not matter. One text may hold several
        of them between commas.

    Raises:
      UserError: a name stands for none; the sentence has those that are nearest.
    """
    wanted: set[str] = set()
    known = _tasks_by_name()
    for text in names:
        # A category's name may have commas itself.
        for name in [text] if _plain(text) in known else text.split(","):
            if not _plain(name):
                continue
            if _plain(name) not in known:
                near = difflib.get_close_matches(_plain(name), known, 3, 0.5)
                instead = f"near it are {', '.join(near)}" if near else f"there are {', '.join(all_benchmarks())}"
                raise UserError(
                    f"no benchmark or category of VeroEval is called {name.strip()!r}: {instead} ({VEROEVAL} is all)"
                )
            wanted |= known[_plain(name)]
    return [task for task in all_benchmarks().values() if task.name in wanted]


def category_key(category: str) -> str:
    """A category's name as settings and metrics have it: "Chart & OCR" is `chart_ocr`."""
    return _plain(category)


@functools.cache
def _tasks_by_name() -> dict[str, frozenset[str]]:
    """The tasks of every plain name of a task, a row of the table, a category, or of all."""
    found: dict[str, set[str]] = {}
    for task in all_benchmarks().values():
        for name in {task.name, task.row, task.category, VEROEVAL}:
            found.setdefault(_plain(name), set()).add(task.name)
    return {name: frozenset(tasks) for name, tasks in found.items()}


def _plain(name: str) -> str:
    """Lower case, and one underscore for whatever is neither letter nor digit."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def table_rows() -> dict[str, str]:
    """The rows of the published table, each with its category."""
    return {task.row: task.category for task in all_benchmarks().values()}
