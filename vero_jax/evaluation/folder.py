"""The folder that an evaluation leaves: what lies where, and reading it.

settings.json            what was asked, with which settings
answers/<task>.jsonl     answers as they came, and what scoring needs of their questions; only ever appended to
judgements.jsonl         the judge's replies as they came, in vision_judgements.jsonl those of one that sees
questions/<task>.jsonl   one line for each question and sample, scored
images/                  the pictures of the questions, named by their content
results.json, report.html
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vero_jax.errors import UserError
from vero_jax.rewards.replies import ReplyFile, read_records
from vero_jax.runtime.files import atomic_write, friendly_writes

FORMAT = 1
"""Of results.json."""
_KINDS = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\x00", "tif"))


class ResultsFolder:
    """An evaluation's folder. Nothing is read or made before it is asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def judgements_file(self, judge: str) -> Path:
        """Of "judge", or of "vision_judge"."""
        return self.path / f"{judge.removesuffix('judge')}judgements.jsonl"

    @property
    def settings_file(self) -> Path:
        return self.path / "settings.json"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    @property
    def images_folder(self) -> Path:
        return self.path / "images"

    def answers_file(self, task: str) -> Path:
        return self.path / "answers" / f"{task}.jsonl"

    def open_answers(self, task: str, samples: int) -> ReplyFile[bool]:
        """The file to which answers to a task go; a record of it that is not whole counts as none.

        Raises:
          UserError: it cannot be read or written, or another process has it.
        """
        file = self.answers_file(task)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write into {self.path} ({error.strerror}): give another --output") from error

        def whole(record: Mapping[str, Any]) -> bool:
            if not _is_answer(record, samples):
                raise ValueError("no answer")
            return True

        return ReplyFile(file, whole)

    def questions_file(self, task: str) -> Path:
        return self.path / "questions" / f"{task}.jsonl"

    # Reading what an evaluation left.

    def settings(self) -> dict[str, Any]:
        """What was asked.

        Raises:
          UserError: there is no settings.json, or one that cannot be read.
        """
        settings = self._object(self.settings_file)
        judges = (settings.get("judge"), settings.get("vision_judge"))
        if not _is_asked(settings.get("asked", {})) or not all(isinstance(judge, dict | None) for judge in judges):
            raise UserError(f"{self.settings_file} does not hold what was asked; give another folder as --output")
        return settings

    def results(self) -> dict[str, Any]:
        """results.json.

        Raises:
          UserError: the folder has none, or one that cannot be read.
        """
        results = self._object(self.results_file)
        if results.get("format") != FORMAT or not _has_figures(results):
            raise UserError(f"{self.results_file} is no results file of this version; evaluate again")
        return results

    def answers(self, task: str, questions: Iterable[str], samples: int) -> dict[str, dict[str, Any]]:
        """The whole records of answers to some of a task's questions, by question; see `outcome.Records`."""
        wanted = set(questions)
        records = read_records(self.answers_file(task), lambda record: _is_answer(record, samples))
        return {id: record for id, record in records.items() if id in wanted}

    def tasks(self) -> list[str]:
        """The tasks that were run, by the names of their files of questions."""
        return sorted(path.stem for path in (self.path / "questions").glob("*.jsonl"))

    def rows(self, task: str) -> Iterator[dict[str, Any]]:
        """The lines of questions/<task>.jsonl, none where the task was not run.

        Raises:
          UserError: a line cannot be read; the sentence names it.
        """
        path = self.questions_file(task)
        if not path.is_file():
            return
        try:
            with open(path, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    row = _read(line)
                    if not isinstance(row, dict) or "id" not in row:
                        raise UserError(
                            f"{path}, line {number} is not a line of results; the same evaluation writes it anew"
                        )
                    yield row
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path} ({error}); the same evaluation writes it anew") from error

    def _object(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise UserError(
                f"{self.path} is no results folder: it has no {path.name}; give the --output of a "
                "python -m vero_jax.evaluate that has ended"
            )
        try:
            value = _read(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path} ({error})") from error
        if not isinstance(value, dict):
            raise UserError(f"{path} is not readable JSON; remove it, or give another folder")
        return value

    # Writing.

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        atomic_write(self.settings_file, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def write_results(self, results: Mapping[str, Any]) -> None:
        atomic_write(self.results_file, json.dumps(finite(results), indent=1, ensure_ascii=False) + "\n")

    def write_rows(self, task: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """All lines of a task in one move."""
        lines = (json.dumps(finite(row), ensure_ascii=True, default=str) for row in rows)
        atomic_write(self.questions_file(task), "".join(f"{line}\n" for line in lines))

    def drop_rows(self, task: str) -> None:
        """Removes the lines of a task that has no figure any more."""
        path = self.questions_file(task)
        with friendly_writes(path):
            path.unlink(missing_ok=True)

    def keep_image(self, data: bytes) -> str:
        """Writes a picture once, whatever the number of questions about it; its path in the folder."""
        place = f"images/{hashlib.sha256(data).hexdigest()[:20]}.{_suffix(data)}"
        path = self.path / place
        if not path.exists():
            atomic_write(path, data)
        return place

    def drop_images(self, wanted: set[str]) -> None:
        """Removes all pictures but those."""
        for path in self.images_folder.glob("*"):
            if f"images/{path.name}" not in wanted:
                with friendly_writes(path):
                    path.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _is_answer(record: Mapping[str, Any], samples: int) -> bool:
    """Whether a record holds all answers to a question, or says why it could not be asked."""
    if "missing" in record:
        return isinstance(record["missing"], str)
    responses, images = record.get("responses"), record.get("images")
    return (
        isinstance(record.get("prompt"), str)
        and isinstance(record.get("row"), dict)
        and isinstance(images, list)
        and all(isinstance(image, str) for image in images)
        and isinstance(responses, list)
        and len(responses) == samples
        and all(
            isinstance(response, dict)
            and isinstance(response.get("text"), str)
            and isinstance(response.get("tokens"), int)
            and isinstance(response.get("stop_reason"), str)
            for response in responses
        )
    )


def _is_asked(asked: Any) -> bool:
    """Whether it is {task: {"questions": [id, ...], ...}, ...}."""
    return isinstance(asked, dict) and all(
        isinstance(task, dict)
        and isinstance(task.get("questions"), list)
        and all(isinstance(id, str) for id in task["questions"])
        for task in asked.values()
    )


def _has_figures(results: Mapping[str, Any]) -> bool:
    """Whether tasks are there, and numbers or nothing where figures stand."""
    groups = [results.get(name, {}) for name in ("tasks", "rows", "categories")]
    if "tasks" not in results or not all(isinstance(group, dict) for group in groups):
        return False
    entries = [results.get("overall", {}), *(entry for group in groups for entry in group.values())]
    return all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), int | float | None) for name in ("score", "strict", "standard_error"))
        for entry in entries
    )


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _suffix(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((suffix for start, suffix in _KINDS if data.startswith(start)), "img")
