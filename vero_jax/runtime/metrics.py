"""Where numbers go: metrics.jsonl (one object a line, the record everything else is drawn from), TensorBoard, wandb.

In: a step and its metrics. Out: lines on disk that survive a crash without duplicates: a checkpoint keeps the position
of the file, and a resumed run cuts what was written after it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vero_jax.config import Config
from vero_jax.config_loader import to_dict
from vero_jax.errors import UserError
from vero_jax.runtime.files import atomic_write, friendly_writes
from vero_jax.runtime.run_dir import RunDir

PHASES = ("cold_start", "reinforcement", "validation")
_BOARD_FLUSH_S = 10.0
"""Between two times that TensorBoard's events are brought to the disk, which may be one of a network."""


class MetricsLog:
    """Writes the metrics of one run; only the primary process makes one.

    position: None for a new run, or what `position` was when the restored checkpoint was saved; later lines are cut.
    """

    def __init__(self, run: RunDir, config: Config, position: int | None = None) -> None:
        self._run = run
        with friendly_writes(run.metrics):
            cut(run.metrics, 0 if position is None else position)
            # Line by line to the kernel: a killed process loses nothing that was logged.
            self._file = run.metrics.open("a", encoding="utf-8")
        self._boards: dict[str, _Board] = {}
        self._with_tensorboard = "tensorboard" in config.trainer.log_with
        self._wandb = _start_wandb(run, config) if "wandb" in config.trainer.log_with else None

    @property
    def position(self) -> int:
        """Bytes of metrics.jsonl so far: goes into the checkpoint."""
        return os.fstat(self._file.fileno()).st_size

    def log(self, step: int, values: Mapping[str, Any], *, phase: str = "reinforcement") -> None:
        """Adds one line {"phase", "step", ...}. Values are numbers (arrays of one element too), text or None.

        phase is one of PHASES. A validation also has "stage" (before, after_cold_start, during or final); its step is
        the step of reinforcement it was made at.

        A number that is not finite becomes null in the file, since JSON has no word for it.
        """
        clean = {name: _clean(value) for name, value in values.items()}
        numbers = {name: value for name, value in clean.items() if isinstance(value, (int, float))}
        line = json.dumps({"phase": phase, "step": int(step), **clean}, ensure_ascii=False, allow_nan=False)
        with friendly_writes(self._run.metrics):
            self._file.write(line + "\n")
            self._file.flush()
        if self._with_tensorboard:
            with friendly_writes(self._run.tensorboard):
                if phase not in self._boards:
                    self._boards[phase] = _Board(self._run.tensorboard / phase, int(step))
                self._boards[phase].add(int(step), numbers)
        if self._wandb is not None:
            # Own step axes, because wandb's must grow while phases count from the start each.
            self._wandb.log(
                {f"{phase}/{name}": value for name, value in numbers.items()} | {f"{phase}/step": int(step)}
            )

    def flush(self) -> None:
        """Brings everything to the disk; called before a checkpoint is saved, so that its position exists."""
        with friendly_writes(self._run.metrics):
            self._file.flush()
            os.fsync(self._file.fileno())
        with friendly_writes(self._run.tensorboard):
            for board in self._boards.values():
                board.flush()

    def close(self) -> None:
        """Safe to call again."""
        with friendly_writes(self._run.metrics):
            self._file.close()
        while self._boards:
            with friendly_writes(self._run.tensorboard):
                self._boards.popitem()[1].close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Board:
    """TensorBoard's events of one phase, written by the caller.

    Not by tensorboardX's SummaryWriter, whose thread ends when the disk is full; whoever gives it more waits for ever.

    step: of the first event; points that a killed run wrote at or after it are hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._events = importlib.import_module("tensorboardX.proto.event_pb2")
        self._summary = importlib.import_module("tensorboardX.summary")
        writers = importlib.import_module("tensorboardX.event_file_writer")
        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX names files by the second, and would overwrite one of the same second.
        self._writer = writers.EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._flushed = time.monotonic()
        self._write(step, session_log=self._events.SessionLog(status=self._events.SessionLog.START))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._write(step, summary=self._summary.scalar(name, value))
        if time.monotonic() - self._flushed > _BOARD_FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, **content))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl, oldest first; a last line that a crash cut off is left out."""
    return list(_lines(path)) if path.exists() else []


def cut(path: Path, position: int) -> None:
    """Cuts the file to `position` bytes, or, when it is shorter than that, to its last whole line."""
    if not path.exists():
        return
    data_length = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(0)
        kept = file.read(min(position, data_length))
        file.truncate(kept.rfind(b"\n") + 1)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not JSON: delete that line to read the file.") from error
            yield row


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = np.asarray(value)
    if number.size != 1:
        raise TypeError(f"a metric must be one number or text, not an array of shape {number.shape}.")
    item = number.reshape(()).astype(np.float64 if number.dtype.kind not in "iub" else number.dtype).item()
    return item if not isinstance(item, float) or math.isfinite(item) else None


def _start_wandb(run: RunDir, config: Config) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            "trainer.log_with names wandb, which is not installed: pip install 'vero-jax[wandb]', or leave it out."
        ) from error
    id_file = run.path / "wandb_id.txt"
    if not id_file.exists():
        atomic_write(id_file, uuid.uuid4().hex[:12])
    started = wandb.init(
        project="vero_jax",
        name=config.name,
        id=id_file.read_text(encoding="utf-8").strip(),
        resume="allow",
        dir=str(run.path),
        config=to_dict(config),
    )
    for phase in PHASES:
        started.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
    return started
