"""What an analysis leaves: tables for a terminal, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from vero_jax.evaluation.behaviours.catalogue import LABELS
from vero_jax.evaluation.behaviours.heatmap import Cells, span
from vero_jax.evaluation.behaviours.lengths import MEASURES, Lengths
from vero_jax.evaluation.behaviours.rates import Rate, Taken

SHORT = {
    "Chart & OCR": "chart",
    "Spatial & Action": "spatial",
    "Knowledge & Recognition": "knowledge",
    "Grounding, Counting & Search": "grounding",
    "Captioning & IF": "captioning",
}
"""Domains as titles of narrow columns."""


def table(rows: Sequence[Sequence[str]], titles: Sequence[str]) -> list[str]:
    """Aligned lines; columns whose title ends in a space are flush left, the others right."""
    widths = [max(len(line[place]) for line in [titles, *rows]) for place in range(len(titles))]
    return [
        "  ".join(
            cell.ljust(width) if title.endswith(" ") else cell.rjust(width)
            for cell, width, title in zip(line, widths, titles, strict=True)
        ).rstrip()
        for line in [titles, *rows]
    ]


def length_lines(found: Sequence[Lengths]) -> list[str]:
    """A table for each measure that some answers have."""
    titles = ("trained on ", "evaluated on ", "answers", "mean", "+-", "median", "p10", "p90", "cut", "right", "wrong")
    lines: list[str] = []
    for measure in MEASURES:
        rows = [
            (
                one.trained_on,
                one.evaluated_on,
                f"{one.answers:,}",
                *(_number(value) for value in (one.mean, one.standard_error, one.median, one.p10, one.p90)),
                "-" if one.cut is None else f"{one.cut:.1%}",
                _number(one.right_mean),
                _number(one.wrong_mean),
            )
            for one in found
            if one.measure == measure
        ]
        if any(one.answers for one in found if one.measure == measure):
            lines += ["", f"length: {measure}", *table(rows, titles)]
    return lines


def rate_lines(cells: Cells, inputs: Sequence[str], domains: Sequence[str], names: Sequence[str]) -> list[str]:
    """A table for each input: a rate and its interval for each behaviour and domain."""
    lines: list[str] = []
    for trained_on in inputs:
        here = [domain for domain in domains if (trained_on, domain, names[0]) in cells]
        judged = {domain: {cells[trained_on, domain, name].judged for name in names} for domain in here}
        rows = [("answers judged", *(span(judged[domain]) for domain in here))]
        rows += [(name, *(_rate(cells[trained_on, domain, name]) for domain in here)) for name in names]
        titles = ("behaviour ", *(SHORT.get(domain, domain).strip() for domain in here))
        lines += ["", f"trained on {trained_on}: presence rate [95 % interval]", *table(rows, titles)]
    return lines


def taken_lines(found: Sequence[Taken]) -> list[str]:
    """A table of how many answers to each benchmark are judged."""
    rows = [
        (one.trained_on, one.evaluated_on, one.benchmark or "validation", f"{one.questions:,}", f"{one.judged:,}")
        for one in found
    ]
    return ["", "answers to judge", *table(rows, ("trained on ", "evaluated on ", "benchmark ", "answered", "judged"))]


def length_csv(found: Sequence[Lengths]) -> str:
    """One line for each input, domain and measure."""
    return _csv([dataclasses.asdict(one) for one in found])


def rate_csv(found: Sequence[Rate]) -> str:
    """One line for each input, domain and behaviour."""
    return _csv([rate_entry(one) for one in found])


def rate_entry(one: Rate) -> dict[str, Any]:
    """A rate as it stands in files; what there is no figure for is None."""
    low, high = one.interval or (None, None)
    return {
        "trained_on": one.trained_on,
        "evaluated_on": one.evaluated_on,
        "behaviour": one.behaviour.name,
        "label": LABELS[one.behaviour.name],
        "group": one.behaviour.group,
        "present": one.present,
        "judged": one.judged,
        "unjudged": one.unjudged,
        "rate": one.rate,
        "low": low,
        "high": high,
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _rate(one: Rate) -> str:
    if one.rate is None or one.interval is None:
        return "-"
    low, high = one.interval
    return f"{one.rate:.2f} [{low:.2f} {high:.2f}]"
