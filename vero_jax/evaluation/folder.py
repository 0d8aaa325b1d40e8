"""A results folder, as `python -m vero_jax.evaluate` leaves it: settings, figures, and a row for each answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError


class ResultsFolder:
    """Reads `settings.json`, `results.json` and `questions/<task>.jsonl`.

    Raises:
      UserError: the folder is none, or a file in it is broken.
    """

    def __init__(self, path: Path):
        self.path = path
        if not (path / "results.json").is_file():
            raise UserError(f"{path} is no results folder of vero_jax.evaluate: it has no results.json")

    def settings(self) -> dict[str, Any]:
        """What was asked."""
        return _object(self.path / "settings.json")

    def results(self) -> dict[str, Any]:
        """All figures."""
        return _object(self.path / "results.json")

    def tasks(self) -> list[str]:
        """Names of the tasks that have rows."""
        return sorted(file.stem for file in (self.path / "questions").glob("*.jsonl"))

    def rows(self, task: str) -> Iterator[dict[str, Any]]:
        """The rows of a task, one for each question and sample."""
        file = self.path / "questions" / f"{task}.jsonl"
        try:
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise UserError(f"{file} is broken in line {number}: {error}") from error
                    if not isinstance(row, dict):
                        raise UserError(f"{file} is broken in line {number}: no JSON object")
                    yield row
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}") from error


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is broken: no JSON object")
    return found
