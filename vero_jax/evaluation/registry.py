"""All benchmarks by name: whatever the files in `benchmarks/` offer as `BENCHMARKS`."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from vero_jax.errors import UserError
from vero_jax.evaluation import benchmarks
from vero_jax.evaluation.benchmark import CATEGORIES, Benchmark


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


def table_rows() -> dict[str, str]:
    """The rows of the published table, each with its category."""
    return {task.row: task.category for task in all_benchmarks().values()}
