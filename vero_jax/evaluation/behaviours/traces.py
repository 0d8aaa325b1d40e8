"""Answers to analyse: from a folder of `vero_jax.evaluate`, a run of `vero_jax.train`, or one of its validations."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import CATEGORIES
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.registry import all_benchmarks
from vero_jax.runtime.metrics import read_metrics
from vero_jax.types import DOMAINS

CATEGORY = {
    "chart_ocr": "Chart & OCR",
    "stem": "STEM",
    "spatial_action": "Spatial & Action",
    "knowledge_recognition": "Knowledge & Recognition",
    "counting_grounding_search": "Grounding, Counting & Search",
    "visual_alignment": "Captioning & IF",
}
"""Of the benchmarks, for each domain of the training data. Other domains keep their names."""
MIXTURE = "mixture"
ENOUGH = 0.5
"""An answer with at least this share of its points counts as right."""

_VALIDATION = re.compile(r"before|after_cold_start|step_\d+|final")
_STAGES = {"final": 3, "after_cold_start": 1, "before": 0}
_DOMAIN_METRIC = re.compile(r"domain/(.+)/groups")


@dataclasses.dataclass(frozen=True)
class Trace:
    """One answer of the model."""

    domain: str
    """The evaluated one, by the benchmarks' categories."""
    benchmark: str
    """Row of the published table, or source of a run's question."""
    id: str
    """Of the question, unique in its input."""
    sample: int
    text: str
    """The whole answer."""
    tokens: int | None
    cut: bool
    """Stopped by the limit of new tokens."""
    right: bool | None
    """None without a score."""


@dataclasses.dataclass(frozen=True)
class Input:
    """One policy's answers."""

    path: Path
    trained_on: str
    kind: str
    """"results" or "run"."""
    source: Path
    """Where the answers stand: the folder, or the file of one validation."""
    traces: tuple[Trace, ...]
    left_out: Mapping[str, int]
    """Questions without an answer, by reason."""


def read_input(path: Path, name: str = "") -> Input:
    """Reads the answers of a results folder, a run directory (its last validation), or a file of a run's validation.

    Args:
      name: what the policy was trained on; "" takes it from the run's config, or the folder's name.

    Raises:
      UserError: the path is none of these, holds no answers, or a file in it cannot be read.
    """
    if (path / "results.json").is_file():
        found = _results(path, name)
    elif path.is_file() and path.suffix == ".jsonl" and path.parent.name == "validation":
        found = _run(path, path.parent.parent, path, name)
    elif (path / "config.yaml").is_file() and (path / "validation").is_dir():
        found = _run(path, path, _last_validation(path), name)
    else:
        raise UserError(
            f"{path} is neither a results folder of vero_jax.evaluate (with results.json), nor a run of vero_jax.train "
            "(with config.yaml and validation/), nor a file of such a run's validation"
        )
    if not any(trace.text.strip() for trace in found.traces):
        raise UserError(f"{found.source} holds no answers")
    return found


def domains_of(inputs: Sequence[Input]) -> list[str]:
    """The evaluated domains that have answers: the six first, then others as they come."""
    found = list(dict.fromkeys(trace.domain for one in inputs for trace in one.traces))
    return [name for name in CATEGORIES if name in found] + [name for name in found if name not in CATEGORIES]


def thinking(text: str) -> str | None:
    """What stands before the answer: up to `</think>`, else up to `<answer>`. None where no tag tells it.

    Only the end is looked for, because most chat templates have written `<think>` already.
    """
    opened = text.lstrip().startswith("<think>")
    for tag in ("</think>", "<answer>"):
        before, found, _ = text.partition(tag)
        if found:
            return before.lstrip().removeprefix("<think>")
    return text.lstrip().removeprefix("<think>") if opened else None


# Results folders.


def _results(path: Path, name: str) -> Input:
    folder = ResultsFolder(path)
    listed = folder.results()["tasks"]
    traces: list[Trace] = []
    left_out: Counter[str] = Counter()
    for task in folder.tasks():
        known, entry = all_benchmarks().get(task), listed.get(task) or {}
        domain = known.category if known else entry.get("category")
        if not domain:
            raise UserError(f"{path}: no benchmark is called {task!r}, and results.json does not name its category")
        benchmark = known.row if known else str(entry.get("row") or task)
        half = known.half_marks if known else ENOUGH
        for row in folder.rows(task):
            text = row.get("response")
            if not isinstance(text, str):
                left_out[str(row.get("missing") or "no response")] += 1
                continue
            value = _number(row.get("value"))
            traces.append(
                Trace(
                    domain=str(domain),
                    benchmark=benchmark,
                    id=f"{task}/{row['id']}",
                    sample=int(_number(row.get("sample")) or 0),
                    text=text,
                    tokens=_count(row.get("tokens")),
                    cut=row.get("stop_reason") == "length",
                    right=None if value is None else value >= half,
                )
            )
    return Input(path, name or path.absolute().name, "results", path, tuple(traces), dict(left_out))


# Runs.


def _run(path: Path, run: Path, file: Path, name: str) -> Input:
    traces: list[Trace] = []
    for row in json_lines(file):
        if row.get("mode", "sampled") != "sampled":  # the greedy and the blind answers are to the same questions
            continue
        if "domain" not in row:  # answers to benchmarks, for one
            raise UserError(
                f"{file} does not hold the answers to a run's own validation questions: give a file such as final.jsonl"
            )
        accuracy = _number(row.get("accuracy"))
        traces.append(
            Trace(
                domain=CATEGORY.get(str(row["domain"]), str(row["domain"])),
                benchmark=str(row.get("source")),
                id=str(row.get("id")),
                sample=0,
                text=str(row.get("output") or ""),
                tokens=_count(row.get("response_length")),
                cut=row.get("stop_reason") == "length",
                right=None if accuracy is None else accuracy >= ENOUGH,
            )
        )
    untrained = "before training" if file.stem == "before" else ""
    return Input(path, name or untrained or trained_on(run), "run", file, tuple(traces), {})


def _last_validation(run: Path) -> Path:
    files = [file for file in (run / "validation").glob("*.jsonl") if _VALIDATION.fullmatch(file.stem)]
    if not files:
        raise UserError(f"{run / 'validation'} holds no answers yet: the run has not been validated")
    return max(files, key=lambda file: (_STAGES.get(file.stem, 2), file.stem))


def trained_on(run: Path) -> str:
    """What a run trains on: one domain's name, several joined, "mixture without ..." of one, or "mixture" of all.

    The config says which domains may take part; where the run has metrics, those of them count that were drawn.

    Raises:
      UserError: config.yaml cannot be read.
    """
    names = _domains_of_config(run / "config.yaml")
    drawn = {
        match[1]
        for row in read_metrics(run / "metrics.jsonl")
        for key in row
        if (match := _DOMAIN_METRIC.fullmatch(key))
    }
    names = [name for name in names if name in drawn or not drawn] or sorted(drawn)
    missing = [name for name in DOMAINS if name not in names]
    if not missing:
        return MIXTURE
    if len(missing) == 1 and len(names) == len(DOMAINS) - 1:
        return f"{MIXTURE} without {CATEGORY[missing[0]]}"
    return " + ".join(CATEGORY.get(name, name) for name in names)


def _domains_of_config(file: Path) -> list[str]:
    try:
        data = yaml.safe_load(file.read_text("utf-8")).get("data") or {}
        mixture = data.get("mixture") or {}
        weights = data.get("domain_weights") or dict.fromkeys(DOMAINS, 1.0)
        chosen, left_out = mixture.get("domains") or (), mixture.get("leave_out") or ()
        if mixture.get("weighting", "given") == "given" and not chosen:
            names = [name for name, weight in weights.items() if float(weight) > 0]
        else:
            names = list(chosen or DOMAINS)
        return [str(name) for name in names if name not in left_out]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file} cannot be read as the settings of a run: {error}") from error


# Files.


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines. Raises UserError with the line that is none."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    raise UserError(f"{file} is damaged: line {number} is no JSON object")
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
