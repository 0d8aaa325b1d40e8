"""Says what is wrong with a file of questions, row by row, before a run does: `python -m vero_jax.data.check PATH`.

PATH is a snapshot of the hub, a folder of Parquet or JSONL files, or one file: .parquet, .jsonl, or .json with a list.
Rows may have the columns of Vero, verl, EasyR1 or TRL, or simply question, answer and image.

Exit status: 0 every row can be used (warnings may be there), 1 some rows would be left out, 2 something cannot be read.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import difflib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vero_jax.data import readers, row_checks, schema
from vero_jax.data.row_checks import Checked, Finding
from vero_jax.errors import UserError, friendly
from vero_jax.types import DOMAINS, Example

SHOWN = 20
"""Rows of one reason that are named."""
_PROGRESS_S = 5.0
_UNITS = {".jsonl": "line"}


@dataclasses.dataclass
class Summary:
    """What was found in all files."""

    files: list[Path] = dataclasses.field(default_factory=list)
    formats: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """Files by (format, columns)."""
    rows: Counter[str] = dataclasses.field(default_factory=Counter)
    """Rows read, by split."""
    kept: Counter[tuple[str, str, bool]] = dataclasses.field(default_factory=Counter)
    """Usable rows by (domain, reward type, whether that is a guess)."""
    without_image: int = 0
    problems: Counter[str] = dataclasses.field(default_factory=Counter)
    warnings: Counter[str] = dataclasses.field(default_factory=Counter)
    findings: dict[tuple[bool, str], list[Finding]] = dataclasses.field(default_factory=dict)
    """By (problem, reason): the first rows."""
    unreadable: list[str] = dataclasses.field(default_factory=list)
    """What a file that stopped the reading has to say."""

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return 2 if self.unreadable else int(bool(self.problems))

    def add(self, finding: Finding, limit: int | None) -> None:
        (self.problems if finding.problem else self.warnings)[finding.reason] += 1
        shown = self.findings.setdefault((finding.problem, finding.reason), [])
        if limit is None or len(shown) < limit:
            shown.append(finding)

    def keep(self, example: Example) -> None:
        guessed = bool(example.extra_info.get(schema.GUESSED_KEY))
        self.kept[example.domain, example.reward_type, guessed] += 1
        self.without_image += not example.images


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(argv)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit is {options.limit}: it must be at least 1")
    summary = check(
        options.path.expanduser(),
        options.split or ("train", "val"),
        limit=options.limit,
        shown=None if options.all else SHOWN,
        progress=sys.stderr.isatty(),
    )
    print("\n".join(report(summary)))
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(as_json(summary), ensure_ascii=False, indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {options.json} cannot be written ({error.strerror}); give another path") from error
        print(f"written to {options.json}")
    return summary.status


def check(
    path: Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    limit: int | None = None,
    shown: int | None = SHOWN,
    progress: bool = False,
) -> Summary:
    """Reads every row as preparing does, and decodes every image once.

    Args:
      path: a file or folder, see `readers.find_row_files`.
      splits: the splits to read.
      limit: only so many rows of each source and split.
      shown: rows of one reason that are kept by name; None keeps all.
      progress: whether to tell standard error now and then how far it is.

    Raises:
      UserError: there is nothing to read, or no row in it.
    """
    summary = Summary()
    told = time.monotonic()
    for found in readers.find_row_files(path, splits):
        summary.files += found.files
        _note_formats(summary, found.files)
        for split, read in found.places.items():
            seen: dict[str, tuple[Path, int]] = {}
            try:
                for place, row in itertools.islice(read(), limit):
                    _note(summary, place, row_checks.check_row(row), seen, shown)
                    summary.rows[split] += 1
                    if progress and time.monotonic() - told > _PROGRESS_S:
                        told = time.monotonic()
                        print(f"{summary.rows.total():,} rows, now in {place[0].name}", file=sys.stderr)
            except UserError as error:
                summary.unreadable.append(str(error))
    if not summary.rows and not summary.unreadable:
        raise UserError(f"{path} holds no row of {' or '.join(splits)}; give a file with rows, or --split")
    return summary


def _note_formats(summary: Summary, files: Sequence[Path]) -> None:
    for file in files:
        try:
            columns = readers.column_names(file)
        except UserError:
            continue  # reading its rows will say the same
        summary.formats[row_checks.columns_title(columns), ", ".join(columns)] += 1


def _note(
    summary: Summary, place: tuple[Path, int], row: Checked, seen: dict[str, tuple[Path, int]], shown: int | None
) -> None:
    """Counts a row. `seen` has the places of the ids of its source and split."""
    file, number = place

    def add(reason: str, detail: str, problem: bool) -> None:
        summary.add(Finding(str(file), number, row.row_id, reason, detail, problem), shown)

    if row.problem is not None:
        add(*row.problem, True)
    if row.example is not None:
        summary.keep(row.example)
        for reason, detail in row.warnings:
            add(reason, detail, False)
        first = seen.setdefault(row.row_id, place)
        if first != place:
            where = "" if first[0] == file else f" of {first[0].name}"
            add("duplicate id", f"also {_unit(file)} {first[1]}{where}", False)


def report(summary: Summary) -> list[str]:
    """The lines to print."""
    rows = ", ".join(f"{split} {count:,}" for split, count in summary.rows.items()) or "none"
    lines = [f"{_count(len(summary.files), 'file')}, rows: {rows}"]
    for (title, columns), count in summary.formats.items():
        lines.append(f"format: {title}, {_count(count, 'file')}; columns {columns}")
    many = len(summary.files) > 1
    left_out = summary.problems.total()
    if left_out:
        lines += ["", f"{_count(left_out, 'row')} would be left out of a run:"]
        lines += _details(summary, True, many)
    general = _general_warnings(summary)
    if summary.warnings or general:
        lines += ["", "these rows would be used, but look at them:" if summary.warnings else "look at this:"]
        lines += [*_details(summary, False, many), *(f"  {line}" for line in general)]
    lines += ["", *_table(summary)]
    lines += [f"cannot be read: {problem}" for problem in summary.unreadable]
    verdict = {
        0: "every row can be used",
        1: f"{_count(left_out, 'row')} of {summary.rows.total():,} cannot be used",
        2: "something cannot be read, see above",
    }
    return [*lines, verdict[summary.status]]


def _details(summary: Summary, problem: bool, many_files: bool) -> Iterator[str]:
    counts = summary.problems if problem else summary.warnings
    for reason, count in counts.most_common():
        findings = summary.findings[problem, reason]
        yield f"  {reason}: {_count(count, 'row')}"
        if findings[0].advice:
            yield f"    -> {findings[0].advice}"
        for finding in findings:
            file = Path(finding.file)
            name = f"{file.parent.name}/{file.name}, " if many_files else ""
            yield f"    {name}{_unit(file)} {finding.number} (id {finding.row_id}): {finding.detail}".rstrip(": ")
        if len(findings) < count:
            yield f"    and {count - len(findings):,} more (--all shows them)"


def _general_warnings(summary: Summary) -> list[str]:
    """What concerns all rows of a domain or reward type."""
    domains: Counter[str] = Counter()
    types: Counter[str] = Counter()
    guessed = 0
    for (domain, reward_type, is_guess), count in summary.kept.items():
        domains[domain] += count
        types[reward_type] += count
        guessed += count * is_guess
    lines = []
    mixed = any(name in DOMAINS for name in domains)  # else all of them count alike
    for domain, count in domains.items():
        if domain in DOMAINS:
            continue
        near = "" if domain == schema.CUSTOM_DOMAIN else _nearest(domain, DOMAINS)
        if near and not mixed:
            lines.append(f"domain {domain!r} ({_count(count, 'row')}) is none of the recipe's{near}")
        elif mixed:
            lines.append(
                f"domain {domain!r} ({_count(count, 'row')}) has no weight by default and would never be drawn{near}; "
                f"set data.domain_weights.{domain}=1"
            )
    for name, count in types.items():
        if name not in schema.REWARD_TYPES:
            near = _nearest(name, schema.REWARD_TYPES)
            lines.append(
                f"reward type {name!r} ({_count(count, 'row')}) is unknown and checked by the default rule{near}"
            )
    judged = sum(types[name] for name in schema.JUDGE_TYPES)
    if judged:
        lines.append(f"{_count(judged, 'row')} can be scored only by a judge: set reward.judge")
    if guessed:
        lines.append(
            f"{_count(guessed, 'row')} without a reward_type: it was guessed from the ground truth, see the table; "
            "add a column reward_type to decide it yourself"
        )
    return lines


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _table(summary: Summary) -> list[str]:
    """Usable rows by domain and reward type."""
    by_type: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    for (domain, reward_type, is_guess), count in summary.kept.items():
        by_type[domain, reward_type][0] += count
        by_type[domain, reward_type][1] += count * is_guess
    body = [(domain, name, f"{rows:,}", f"{guessed:,}") for (domain, name), (rows, guessed) in sorted(by_type.items())]
    cells = [("domain", "reward type", "usable rows", "guessed"), *body]
    widths = [max(len(row[place]) for row in cells) for place in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}" for row in cells
    ]
    if summary.without_image:
        lines.append(f"{_count(summary.without_image, 'row')} without an image")
    return lines


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary for a program: counts, and the findings that are shown."""
    tables: dict[str, Counter[str]] = {"domains": Counter(), "reward_types": Counter(), "guessed": Counter()}
    for (domain, reward_type, is_guess), count in summary.kept.items():
        tables["domains"][domain] += count
        tables["reward_types"][reward_type] += count
        if is_guess:
            tables["guessed"][reward_type] += count
    return {
        "status": summary.status,
        "files": [str(file) for file in summary.files],
        "formats": [
            {"format": title, "columns": columns.split(", "), "files": count}
            for (title, columns), count in summary.formats.items()
        ],
        "rows": dict(summary.rows),
        "problems": dict(summary.problems),
        "warnings": dict(summary.warnings),
        **{name: dict(counts) for name, counts in tables.items()},
        "without_image": summary.without_image,
        "general": _general_warnings(summary),
        "unreadable": summary.unreadable,
        "findings": [
            {**dataclasses.asdict(finding), "advice": finding.advice}
            for findings in summary.findings.values()
            for finding in findings
        ],
    }


def _unit(file: Path) -> str:
    return _UNITS.get(file.suffix, "row")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _parser() -> argparse.ArgumentParser:
    about, _, details = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m vero_jax.data.check",
        description=about,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    parser.add_argument("--split", action="append", metavar="S", help="a split to read (again for more); train and val")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows of each source and split")
    parser.add_argument("--all", action="store_true", help=f"name all rows, not {SHOWN} of each reason")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
