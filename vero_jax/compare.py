"""Says whether one checkpoint answers VeroEval better than another, and how sure that is.

    python -m vero_jax.compare A B [--draws 10000] [--seed 0] [--strict] [--json FILE]

A and B are results folders of `python -m vero_jax.evaluate`. Compared are the questions that both have: B - A for each
benchmark, with a 95 % interval of a paired bootstrap over questions, and the means of what both were run on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError, friendly
from vero_jax.evaluation.benchmark import CATEGORIES, Benchmark
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.paired import (
    SLOW_DRAWS,
    Difference,
    Paired,
    difference,
    has_figure,
    mean_difference,
    turned,
)
from vero_jax.evaluation.registry import all_benchmarks, table_rows
from vero_jax.evaluation.score import Score
from vero_jax.runtime.files import atomic_write

_ALIKE = ("variant", "limit", "max_new_tokens", "context", "max_pixels", "system", "judge", "vision_judge")
"""Settings whose difference is no difference between checkpoints."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A benchmark of the table, or a task of one."""

    name: str
    category: str
    difference: Difference | None
    """None where the two share no question that counts in both."""
    shared: int = 0
    only_a: int = 0
    only_b: int = 0
    """Questions that the other folder has not, or could not ask."""
    no_figure: int = 0
    """Questions of both that were not judged or scored in one of them."""
    turned_right: int = 0
    """Questions that B gets right and A does not."""
    turned_wrong: int = 0

    @property
    def left(self) -> int:
        """Questions of either folder that the difference leaves out."""
        return self.only_a + self.only_b + self.no_figure


@dataclasses.dataclass(frozen=True)
class Comparison:
    """B - A, on the published scale."""

    rows: tuple[Line, ...]
    """Benchmarks of which both have all tasks, in the table's order."""
    parts: tuple[Line, ...]
    """The tasks of benchmarks that have several, and of benchmarks of which something is missing."""
    categories: Mapping[str, Difference]
    overall: Difference | None
    """The mean over `rows`; None where a benchmark with several tasks is incomplete and nothing else is there."""
    total: int
    """Rows of the table."""
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """One line, such as "overall +1.2 [+0.3, +2.1] over 21 of 30 benchmarks"."""
        covered = f"{len(self.rows)} of {self.total} benchmarks"
        if self.overall is None:
            return f"no overall difference: {covered} are complete in both"
        return f"overall {_signed(self.overall.value)} {_interval(self.overall)} over {covered}"


def compare(a: Path, b: Path, *, draws: int = 10_000, seed: int = 0, strict: bool = False) -> Comparison:
    """Compares two results folders.

    Args:
      draws: of the bootstrap; where a benchmark has an aggregator of its own, `paired.SLOW_DRAWS` at most for it.
      strict: compares the strict figures instead of the reference's.

    Raises:
      UserError: a folder is none or broken, both are the same, or they share no question.
    """
    if draws < 1:
        raise UserError(f"--draws must be 1 or more, not {draws}")
    if a.resolve() == b.resolve():
        raise UserError(f"{a} and {b} are the same folder: there is nothing to compare")
    folders = ResultsFolder(a), ResultsFolder(b)
    warnings = _different_settings(folders[0].settings(), folders[1].settings())
    known = all_benchmarks()
    both = set(folders[0].tasks()) & set(folders[1].tasks())
    unknown = sorted(both - set(known))
    if unknown:
        warnings.append(f"no benchmark is called {', '.join(unknown)}: left out")
    lines = {}
    for name in sorted(both & set(known), key=list(known).index):
        lines[name], warning = _task(known[name], folders, draws, seed, strict)
        warnings += [warning] if warning else []
    if not any(line.difference for line in lines.values()):
        raise UserError(f"{a} and {b} share no question that has a figure in both")
    rows, parts = [], []
    for row, category in table_rows().items():
        tasks = [task.name for task in known.values() if task.row == row]
        found = [lines[name] for name in tasks if name in lines]
        differences = [line.difference for line in found if line.difference]
        whole = len(differences) == len(tasks)
        if whole:
            rows.append(_together(row, category, found, mean_difference(differences)))
        if len(tasks) > 1 or not whole:
            parts += found
    of = {line.name: line.difference for line in rows if line.difference}
    by_category = {
        category: [of[line.name] for line in rows if line.category == category and line.name in of]
        for category in CATEGORIES
    }
    return Comparison(
        tuple(rows),
        tuple(parts),
        {category: mean_difference(found) for category, found in by_category.items() if found},
        mean_difference(list(of.values())) if of else None,
        len(table_rows()),
        tuple(warnings),
    )


def _different_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    warnings = [
        f"the folders differ in {name}: {_brief(before)} and {_brief(after)}"
        for name in _ALIKE
        if (before := _told(a.get(name))) != (after := _told(b.get(name)))
    ]
    asked = a.get("asked") or {}, b.get("asked") or {}
    for name in (name for name in asked[0] if name in asked[1]):
        before, after = asked[0][name], asked[1][name]
        if before.get("data") != after.get("data"):
            warnings.append(f"{name}: the data sets' files differ")
        if before.get("limit") != after.get("limit") and a.get("limit") == b.get("limit"):
            warnings.append(
                f"{name}: limits of questions differ: {_brief(before.get('limit'))} and {_brief(after.get('limit'))}"
            )
    return warnings


def _told(value: Any) -> Any:
    """A setting without what does not matter: where a judge's server is."""
    return {name: item for name, item in value.items() if name != "base_url"} if isinstance(value, dict) else value


def _brief(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


@dataclasses.dataclass
class _Answers:
    """One folder's answers to a task."""

    scores: dict[str, list[Score]] = dataclasses.field(default_factory=dict)
    """By question, those that could be asked."""
    asked: dict[str, int] = dataclasses.field(default_factory=dict)
    """What each question showed and asked, hashed."""

    @classmethod
    def of(cls, folder: ResultsFolder, task: str) -> _Answers:
        answers = cls()
        seen = set()
        for row in folder.rows(task):
            name, sample = row.get("id"), row.get("sample")
            place = f"{folder.path}: {task}, question {name!r}"
            if not isinstance(name, str):
                raise UserError(f"{folder.path} is broken: {task} has a row without an id")
            if (name, sample) in seen:
                raise UserError(f"{place} is there twice with the same sample")
            seen.add((name, sample))
            if sample is None:
                continue
            answers.scores.setdefault(name, []).append(Score.of_row(row, place))
            answers.asked[name] = hash((row.get("prompt"), tuple(map(str, row.get("images") or ()))))
        return answers


def _task(
    benchmark: Benchmark, folders: Sequence[ResultsFolder], draws: int, seed: int, strict: bool
) -> tuple[Line, str]:
    """A task's line, and a warning or ""."""
    a, b = (_Answers.of(folder, benchmark.name) for folder in folders)
    common = [name for name in a.scores if name in b.scores]
    counted = [name for name in common if has_figure(a.scores[name], strict) and has_figure(b.scores[name], strict)]
    line = Line(
        benchmark.name,
        benchmark.category,
        None,
        len(counted),
        len(a.scores) - len(common),
        len(b.scores) - len(common),
        len(common) - len(counted),
    )
    if not counted:
        return line, f"{benchmark.name}: no question has a figure in both" if common else ""
    task = Paired(benchmark, [a.scores[name] for name in counted], [b.scores[name] for name in counted], strict)
    right, wrong = turned(task)
    line = dataclasses.replace(line, difference=difference(task, draws, seed), turned_right=right, turned_wrong=wrong)
    other = sum(a.asked[name] != b.asked[name] for name in counted)
    warning = f"{benchmark.name}: {other} of {len(counted)} questions have another text or picture" if other else ""
    return line, warning


def _together(row: str, category: str, tasks: Sequence[Line], found: Difference) -> Line:
    fields = ("shared", "only_a", "only_b", "no_figure", "turned_right", "turned_wrong")
    return Line(row, category, found, *(sum(getattr(task, name) for task in tasks) for name in fields))


def table(found: Comparison) -> str:
    """The comparison as aligned text."""
    head = ("", "A", "B", "B - A", "95 % interval", "B better", "questions", "left out", "turned right", "wrong")
    cells: list[Sequence[str]] = [head]
    for category in CATEGORIES:
        lines = [line for line in found.rows if line.category == category]
        parts = [line for line in found.parts if line.category == category]
        if not lines and not parts:
            continue
        mean = found.categories.get(category)
        cells.append((category, *(_figures(mean) if mean else ())))
        cells += [(f"  {line.name}", *_cells(line)) for line in lines]
        cells += [(f"    task {line.name}", *_cells(line)) for line in parts]
    if found.overall:
        cells.append(("overall", *_figures(found.overall)))
    padded = [[*line, *[""] * (len(head) - len(line))] for line in cells]
    widths = [max(map(len, column)) for column in zip(*padded, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if index == 0 else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in padded
    )


def _cells(line: Line) -> tuple[str, ...]:
    figures = _figures(line.difference) if line.difference else ("-",) * 5
    counts = (line.shared, line.left, line.turned_right, line.turned_wrong)
    return *figures, *(f"{count:,}" for count in counts)


def _figures(found: Difference) -> tuple[str, ...]:
    return f"{found.a:.1f}", f"{found.b:.1f}", _signed(found.value), _interval(found), f"{found.above:.1%}"


def _signed(value: float) -> str:
    rounded = round(value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def _interval(found: Difference) -> str:
    return f"[{_signed(found.low)}, {_signed(found.high)}]"


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON, without the draws."""

    def line(item: Line) -> dict[str, Any]:
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        return {**fields, "difference": _plain(item.difference)}

    return {
        "format": 1,
        "summary": found.summary(),
        "covered": len(found.rows),
        "total": found.total,
        "overall": _plain(found.overall),
        "categories": {name: _plain(item) for name, item in found.categories.items()},
        "rows": [line(item) for item in found.rows],
        "tasks": [line(item) for item in found.parts],
        "warnings": list(found.warnings),
    }


def _plain(found: Difference | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {
        "a": found.a,
        "b": found.b,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "share_above_0": found.above,
        "draws": len(found.draws),
    }


@friendly
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vero_jax.compare",
        description="Compares two results folders of vero_jax.evaluate question by question.",
    )
    parser.add_argument("a", type=Path, help="results folder of the first checkpoint")
    parser.add_argument("b", type=Path, help="results folder of the second")
    parser.add_argument("--draws", type=int, default=10_000, help="of the bootstrap (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strict", action="store_true", help="compare the strict figures, not the reference's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args(arguments)
    if options.json and options.json.is_dir():
        raise UserError(f"--json {options.json} is a folder: give a file")
    if options.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {options.seed}")
    found = compare(options.a, options.b, draws=options.draws, seed=options.seed, strict=options.strict)
    print(f"A: {options.a}\nB: {options.b}\n\n{table(found)}\n\n{found.summary()}")
    figures = "strict figures" if options.strict else "figures as the reference scores"
    print(f"{figures}; {options.draws:,} draws of questions, seed {options.seed}")
    fewer = [
        line.name
        for line in (*found.rows, *found.parts)
        if line.difference and len(line.difference.draws) < options.draws
    ]
    if fewer:
        print(f"{SLOW_DRAWS:,} draws for {', '.join(fewer)}, whose figure is no mean")
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        atomic_write(options.json, json.dumps(as_json(found), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
