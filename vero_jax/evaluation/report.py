"""The page of an evaluation: figures beside the paper's, charts, and failures to look at, as one HTML file.

In: a results folder of `python -m vero_jax.evaluate`. Out: `report.html` in it, which works from file:// without a
network. Everything that comes from data or a model is escaped, or shown by the page's script as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vero_jax.evaluation.benchmark import CATEGORIES
from vero_jax.evaluation.charts import Bars, chart
from vero_jax.evaluation.failures import MOST, Failures, embedded, failures
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.published import PAIRS, Pair, likely_pair, published, published_means
from vero_jax.evaluation.registry import all_benchmarks, table_rows
from vero_jax.runtime.pages import asset, escape, short_number, template, write_page

_ASSETS = Path(__file__).parent / "assets"
_OWN = "this checkpoint"
_COLUMNS = 9


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a results folder.

    Returns:
      the page.

    Raises:
      UserError: the folder is none, a file in it is broken, or the page can't be written.
    """
    results = ResultsFolder(folder)
    found = results.results()
    figures = _Figures(found)
    checkpoint, variant = str(found.get("checkpoint", folder.name)), str(found.get("variant", ""))
    chosen = likely_pair(checkpoint, variant)
    known = all_benchmarks()
    tasks = sorted(results.tasks(), key=lambda name: (list(known).index(name) if name in known else len(known), name))
    browsed = [failures(results, task, known.get(task)) for task in tasks]
    browsed = [task for task in browsed if task.answers]
    data = embedded(results, browsed, {task.name: task.row for task in known.values()})
    name = "/".join(Path(checkpoint).parts[-2:]).strip("/") or folder.name
    body = template("report.html", _ASSETS).substitute(
        name=escape(name),
        tiles=_tiles(figures, chosen),
        options="".join(
            f'<option value="{pair.key}"{" selected" if pair is chosen else ""}>{escape(pair.base)}</option>'
            for pair in PAIRS
        ),
        summary=escape(found.get("summary", "")),
        facts=_facts(found),
        notes=_notes(found, figures),
        rows=_rows(figures, browsed, chosen),
        legend=_legend(chosen),
        charts="".join(_charts(figures, category, index, chosen) for index, category in enumerate(CATEGORIES)),
        most=MOST,
        # "<" could end the script element that holds the data
        data=json.dumps(data).replace("<", "\\u003c"),
        script=asset("report.js", _ASSETS),
    )
    path = folder / "report.html"
    write_page(path, f"{name}: VeroEval", body, asset("report.css", _ASSETS))
    return path


class _Figures:
    """The figures of results.json, with gaps as None."""

    def __init__(self, found: Mapping[str, Any]):
        self.tasks: Mapping[str, Mapping[str, Any]] = found.get("tasks") or {}
        self.rows: Mapping[str, Mapping[str, Any]] = found.get("rows") or {}
        self.categories: Mapping[str, Mapping[str, Any]] = found.get("categories") or {}
        self.overall: Mapping[str, Any] = found.get("overall") or {}

    def of_row(self, row: str) -> list[tuple[str, Mapping[str, Any]]]:
        """The tasks of a row, by name."""
        return [(name, task) for name, task in self.tasks.items() if task.get("row") == row]

    def score(self, row: str, name: str = "score") -> float | None:
        value = (self.rows.get(row) or {}).get(name)
        return None if value is None else float(value)

    def error(self, row: str) -> float | None:
        """The standard error over questions; where it is not known, that of the runs."""
        if self.score(row) is None:
            return None
        over_questions = _of_mean([task.get("question_error") for _, task in self.of_row(row)])
        return self.score(row, "standard_error") if over_questions is None else over_questions

    def covered(self, category: str | None = None) -> list[str]:
        """The rows that were run, of a category or of all."""
        return [row for row, of in table_rows().items() if category in (None, of) and self.score(row) is not None]

    def mean_error(self, category: str | None = None) -> float | None:
        return _of_mean([self.error(row) for row in self.covered(category)])


def _of_mean(errors: Sequence[float | None]) -> float | None:
    """The standard error of a mean of independent figures; None where one is not known."""
    known = [error for error in errors if error is not None]
    if not known or len(known) < len(errors):
        return None
    return math.sqrt(sum(error**2 for error in known)) / len(known)


def _score(value: float | None, error: float | None = None, reason: str = "", absent: str = "not run") -> str:
    if value is None:
        return f'<span class="muted" title="{escape(reason)}">{absent}</span>'
    shown = f"{value:.1f}"
    return shown if error is None else f'{shown} <span class="error">± {error:.1f}</span>'


def _strict(means: Mapping[str, Any], reason: str = "") -> str:
    """The strict figure, which there is none of also where no reply of the judge can be read."""
    absent = "not run" if means.get("score") is None else "unjudged"
    return _score(means.get("strict"), reason=reason, absent=absent)


def _by_pair(cells: Iterable[tuple[Pair, str]], chosen: Pair) -> str:
    """Something that depends on the base model the reader chose; one of its forms is shown."""
    return "".join(
        f'<span class="pair" data-pair="{pair.key}"{"" if pair is chosen else " hidden"}>{text}</span>'
        for pair, text in cells
    )


def _tiles(figures: _Figures, chosen: Pair) -> str:
    overall = figures.overall.get("score")
    covered = figures.covered()
    means = [(pair, published_means(covered or table_rows(), pair.key)) for pair in PAIRS]
    tiles = [
        (_score(overall, figures.mean_error()), "overall"),
        (_strict(figures.overall), "strict"),
        (f"{len(covered)} of {len(table_rows())}", "benchmarks"),
        (_by_pair([(pair, f"{mean[0]:.1f}" if mean else "-") for pair, mean in means], chosen), "base, same rows"),
        (_by_pair([(pair, f"{mean[1]:.1f}" if mean else "-") for pair, mean in means], chosen), "Vero, same rows"),
    ]
    return "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in tiles)


def _facts(found: Mapping[str, Any]) -> str:
    judge, seeing = found.get("judge"), found.get("vision_judge")
    limit, tokens = found.get("limit"), found.get("max_new_tokens")
    facts = {
        "checkpoint": found.get("checkpoint"),
        "variant": found.get("variant"),
        "questions": "all" if limit is None else f"at most {limit:,} of each benchmark",
        "samples": found.get("samples"),
        "seed": found.get("seed"),
        "new tokens": "the variant's" if tokens is None else f"at most {tokens:,}",
        "pixels": None if found.get("max_pixels") is None else f"at most {found['max_pixels']:,}",
        "system prompt": found.get("system"),
        "judge": "none" if judge is None and seeing is None else _words(judge),
        "judge that sees": _words(seeing),
        "data": found.get("data"),
        "last start took": None if found.get("seconds") is None else _duration(float(found["seconds"])),
    }
    return "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item not in (None, ""))
    return "" if value is None else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def _notes(found: Mapping[str, Any], figures: _Figures) -> str:
    covered, total = len(figures.covered()), len(table_rows())
    notes = []
    if covered < total:
        notes.append(
            f"{covered} of {total} benchmarks were run; means of categories, and overall, are over those, and so are "
            "those of the paper beside them."
        )
    if found.get("limit") is not None:
        notes.append("The paper's figures are over all questions of a benchmark, these are over some.")
    unread = [row for row in figures.covered() if figures.score(row, "strict") is None]
    if unread:
        notes.append(f"The strict means leave out {', '.join(unread)}: no reply of the judge can be read.")
    unjudged = sum(int(task.get("unjudged") or 0) for task in figures.tasks.values())
    left = sum(sum((task.get("left_out") or {}).values()) for task in figures.tasks.values())
    if unjudged or left:
        notes.append(f"{unjudged:,} answers are unjudged, {left:,} questions were left out; see the table.")
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _rows(figures: _Figures, browsed: Sequence[Failures], chosen: Pair) -> str:
    parts = []
    failed: dict[str, list[Failures]] = {}
    of_task = {task.name: task.row for task in all_benchmarks().values()}
    for task in browsed:
        failed.setdefault(of_task.get(task.task, task.task), []).append(task)
    for category in CATEGORIES:
        rows = [row for row, of in table_rows().items() if of == category]
        parts.append(_category(figures, category, rows, chosen))
        parts += [_row(figures, row, failed.get(row, ()), chosen) for row in rows]
    parts.append(_mean_line(figures, "overall", "Overall", figures.overall, None, list(table_rows()), chosen))
    return "\n".join(parts)


def _category(figures: _Figures, category: str, rows: list[str], chosen: Pair) -> str:
    return _mean_line(figures, "category", category, figures.categories.get(category) or {}, category, rows, chosen)


def _mean_line(
    figures: _Figures,
    kind: str,
    name: str,
    means: Mapping[str, Any],
    category: str | None,
    rows: list[str],
    chosen: Pair,
) -> str:
    covered = figures.covered(category)
    count = f' <span class="muted">{len(covered)} of {len(rows)}</span>'
    paper = {pair: published_means(covered or rows, pair.key) for pair in PAIRS}
    return (
        f'<tr class="{kind}"><th scope="row">{escape(name)}{count}</th>'
        f"<td>{_score(means.get('score'), figures.mean_error(category))}</td><td>{_strict(means)}</td>"
        f"{_paper_cells(means.get('score'), paper, chosen)}<td></td><td></td><td></td></tr>"
    )


def _paper_cells(own: float | None, paper: Mapping[Pair, tuple[float, float] | None], chosen: Pair) -> str:
    def cell(column: int) -> str:
        return _by_pair(
            [(pair, f"{pair_of[column]:.1f}" if pair_of else "-") for pair, pair_of in paper.items()], chosen
        )

    gains = []
    for pair, means in paper.items():
        gain = None if own is None or means is None else own - means[0]
        sign = "zero" if gain is None or round(gain, 1) == 0 else "plus" if gain > 0 else "minus"
        shown = "" if gain is None else f"{round(gain, 1) + 0.0:+.1f}".replace("-", "−")
        gains.append((pair, f'<span class="{sign}">{shown}</span>'))
    return f"<td>{cell(0)}</td><td>{cell(1)}</td><td>{_by_pair(gains, chosen)}</td>"


def _row(figures: _Figures, row: str, failed: Sequence[Failures], chosen: Pair) -> str:
    tasks = figures.of_row(row)
    key = f"more-{list(table_rows()).index(row)}"
    paper = {
        pair: (known.base, known.vero) if (known := published().get(row, {}).get(pair.key)) else None for pair in PAIRS
    }
    counts = [sum(int(task.get(name) or 0) for _, task in tasks) for name in ("questions", "unjudged")]
    left = sum(sum((task.get("left_out") or {}).values()) for _, task in tasks)
    numbers = [f"{count:,}" if count else "" for count in (*counts, left)]
    reason = "; ".join(f"{name}: {task['reason']}" for name, task in tasks if task.get("reason")) or "not asked for"
    details = "".join(_task(name, task) for name, task in tasks) or '<p class="muted">It was not asked for.</p>'
    links = "".join(
        f'<button type="button" class="browse" data-task="{escape(item.task)}">'
        f"{item.answers:,} to look at{'' if len(failed) == 1 else f' in {escape(item.task)}'}</button>"
        for item in failed
    )
    return (
        f'<tr class="row"><th scope="row"><button type="button" class="unfold" aria-expanded="false" '
        f'aria-controls="{key}">{escape(row)}</button></th>'
        f"<td>{_score(figures.score(row), figures.error(row), reason)}</td>"
        f"<td>{_strict(figures.rows.get(row) or {}, reason)}</td>"
        f"{_paper_cells(figures.score(row), paper, chosen)}"
        f"{''.join(f'<td>{text}</td>' for text in numbers)}</tr>"
        f'<tr class="more" id="{key}" hidden><td colspan="{_COLUMNS}">{details}{links}</td></tr>'
    )


def _task(name: str, task: Mapping[str, Any]) -> str:
    error, over = task.get("standard_error"), task.get("question_error")
    cut = task.get("cut")
    facts = {
        "why not run": task.get("reason"),
        "standard error over questions": None if over is None else f"{over:.2f}",
        "standard error of the runs": None if error is None else f"{error:.2f}",
        "answers": None if not task.get("answers") else f"{task['answers']:,}",
        "mean tokens": None if task.get("mean_tokens") is None else f"{task['mean_tokens']:,.0f}",
        "cut off by the limit": None if cut is None else f"{cut:.1%}",
        "unjudged": task.get("unjudged"),
        **{f"left out: {reason}": count for reason, count in (task.get("left_out") or {}).items()},
    }
    listed = "".join(
        f"<dt>{escape(fact)}</dt><dd>{escape(value)}</dd>"
        for fact, value in facts.items()
        if value not in (None, "", 0)
    )
    return f'<div class="task"><h3>{escape(name)}</h3><dl>{listed}</dl>{_groups(task)}</div>'


def _groups(task: Mapping[str, Any]) -> str:
    """The figures by group, and further ones, that the aggregator gives."""
    plain, strict = (dict(task.get(name) or {}) for name in ("figures", "strict_figures"))
    names = [name for name in {**plain, **strict} if name != "score"]
    if not names:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{short_number(plain.get(name))}</td>'
        f"<td>{short_number(strict.get(name))}</td></tr>"
        for name in names
    )
    head = '<tr><th scope="col">group or further figure</th><th scope="col">score</th><th scope="col">strict</th></tr>'
    return f'<table class="groups"><thead>{head}</thead><tbody>{lines}</tbody></table>'


def _legend(chosen: Pair) -> str:
    names = (
        ("own", escape(_OWN)),
        ("base", _by_pair([(pair, escape(pair.base)) for pair in PAIRS], chosen)),
        ("vero", _by_pair([(pair, escape(pair.vero)) for pair in PAIRS], chosen)),
    )
    return "".join(f'<span class="key"><i class="{kind}"></i>{name}</span>' for kind, name in names)


def _charts(figures: _Figures, category: str, index: int, chosen: Pair) -> str:
    rows = [row for row, of in table_rows().items() if of == category]
    covered = figures.covered(category)
    drawn = []
    for pair in PAIRS:
        means = published_means(covered or rows, pair.key)
        own = (figures.categories.get(category) or {}).get("score")
        groups = [Bars("mean", own, figures.mean_error(category), *(means or (None, None)))]
        for row in rows:
            paper = published().get(row, {}).get(pair.key)
            figure = (None, None) if paper is None else (paper.base, paper.vero)
            groups.append(Bars(row, figures.score(row), figures.error(row), *figure))
        title = f"{category}: {_OWN}, {pair.base} and {pair.vero}"
        drawn.append((pair, chart(title, (_OWN, pair.base, pair.vero), groups, f"chart-{index}-{pair.key}")))
    return (
        f'<figure class="chart"><figcaption>{escape(category)} <span class="muted">{len(covered)} of {len(rows)} '
        f"run</span></figcaption>{_by_pair(drawn, chosen)}</figure>"
    )
