"""metrics.jsonl has each step once, whatever happened to the process; TensorBoard and wandb get the same numbers."""

from __future__ import annotations

import builtins
import dataclasses
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from vero_jax.config import Config
from vero_jax.errors import UserError
from vero_jax.runtime.metrics import MetricsLog, read_metrics
from vero_jax.runtime.run_dir import open_run


def config_in(folder: Path, *log_with: str) -> Config:
    trainer = dataclasses.replace(Config().trainer, log_with=log_with)
    return dataclasses.replace(Config(), run_dir=str(folder / "run"), trainer=trainer)


@pytest.fixture
def config(tmp_path) -> Config:
    return config_in(tmp_path)


@pytest.fixture
def run(config):
    with open_run(config) as run:
        yield run


def test_one_line_a_step_at_once(run, config):
    with MetricsLog(run, config) as log:
        log.log(1, {"a": np.float32(0.5), "b": np.array([2]), "c": 3, "ok": True, "none": None}, phase="cold_start")
        # seen by a reader while the log is open
        assert read_metrics(run.metrics) == [
            {"phase": "cold_start", "step": 1, "a": 0.5, "b": 2, "c": 3, "ok": True, "none": None}
        ]
        log.log(2, {"a": float("nan"), "b": np.inf, "stage": "before"})
    assert read_metrics(run.metrics)[1] == {
        "phase": "reinforcement",
        "step": 2,
        "a": None,
        "b": None,
        "stage": "before",
    }
    assert "NaN" not in run.metrics.read_text()


def test_jax_numbers(run, config):
    import jax.numpy as jnp

    with MetricsLog(run, config) as log:
        log.log(1, {"a": jnp.asarray(0.25, jnp.bfloat16), "n": jnp.asarray(3)})
        with pytest.raises(TypeError, match="one number"):
            log.log(1, {"a": jnp.zeros(2)})
    assert read_metrics(run.metrics) == [{"phase": "reinforcement", "step": 1, "a": 0.25, "n": 3}]


def test_resume_cuts_later_lines(run, config):
    with MetricsLog(run, config) as log:
        log.log(1, {"a": 1})
        log.log(2, {"a": 2, "text": "é"})
        position = log.position
        log.log(3, {"a": 3})
    with run.metrics.open("a") as file:
        file.write('{"phase": "reinforcement", "step": 4, "a"')  # killed in the middle of a line
    assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2, 3]
    with MetricsLog(run, config, position=position) as log:
        assert log.position == position
        log.log(3, {"a": 30})
        log.log(4, {"a": 40})
    rows = read_metrics(run.metrics)
    assert [(row["step"], row["a"]) for row in rows] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_a_file_shorter_than_its_position_keeps_whole_lines(run, config):
    run.metrics.write_text('{"step": 1}\n{"step": 2')
    MetricsLog(run, config, position=1000).close()
    assert read_metrics(run.metrics) == [{"step": 1}]


def test_a_new_run_starts_empty(run, config):
    run.metrics.write_text('{"step": 1}\n')
    MetricsLog(run, config).close()
    assert read_metrics(run.metrics) == []


def test_a_spoiled_line_is_named(run):
    run.metrics.write_text('{"step": 1}\nhello\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is not JSON"):
        read_metrics(run.metrics)


def test_full_disk_is_one_sentence(run, config, monkeypatch):
    log = MetricsLog(run, config)
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match="disk is full"):
        log.log(1, {"a": 1})


def test_a_disk_that_is_full_for_tensorboard_ends_the_run_and_nobody_waits(tmp_path):
    """More numbers than any queue or buffer holds; closing says it too, and does not wait for a thread."""
    with open_run(config_in(tmp_path, "tensorboard")) as run:
        log = MetricsLog(run, config_in(tmp_path, "tensorboard"))
        log.log(1, {"a": 1.0})
        log._boards["reinforcement"]._writer._py_recordio_writer._writer = open("/dev/full", "wb")  # noqa: SIM115
        with pytest.raises(UserError, match="tensorboard: the disk is full"):
            for step in range(2, 1000):
                log.log(step, {f"number/{index}": 1.0 for index in range(50)})
        with pytest.raises(UserError, match="tensorboard: the disk is full"):
            log.close()
        log.close()


def events(folder: Path) -> list[tuple[str, int, float]]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format this reads)

    found, purged = [], 0
    for file in sorted(folder.glob("events*"), key=lambda file: file.stat().st_mtime_ns):
        data, place = file.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 12 + length + 4
            if event.HasField("session_log"):
                purged = event.step
                found = [point for point in found if point[1] < purged]
            found += [(value.tag, event.step, round(value.simple_value, 6)) for value in event.summary.value]
    return found


def test_tensorboard_has_the_same_numbers_and_purges_on_resume(tmp_path):
    config = config_in(tmp_path, "tensorboard")
    with open_run(config) as run:
        with MetricsLog(run, config) as log:
            log.log(7, {"loss": 0.5}, phase="cold_start")
            log.log(1, {"reward": 0.25, "stage": "text"})
            position = log.position
            log.log(2, {"reward": 0.5})
        with MetricsLog(run, config, position=position) as log:
            log.log(2, {"reward": 0.75})
        assert events(run.tensorboard / "cold_start") == [("loss", 7, 0.5)]
        assert events(run.tensorboard / "reinforcement") == [("reward", 1, 0.25), ("reward", 2, 0.75)]


def test_missing_wandb_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def no_wandb(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name, *args, **kwargs)

    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(builtins, "__import__", no_wandb)
    config = config_in(tmp_path, "wandb")
    with open_run(config) as run, pytest.raises(UserError, match=r"pip install 'vero-jax\[wandb\]'"):
        MetricsLog(run, config)


def test_wandb_is_resumed_under_its_own_id(tmp_path, monkeypatch):
    started, logged = [], []

    class Run:
        def define_metric(self, name, step_metric):
            logged.append((name, step_metric))

        def log(self, values):
            logged.append(values)

        def finish(self):
            logged.append("finished")

    def init(**options):
        started.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = config_in(tmp_path, "wandb")
    with open_run(config) as run:
        for _ in range(2):
            with MetricsLog(run, config) as log:
                log.log(3, {"reward": 0.5})
    assert started[0]["id"] == started[1]["id"] and started[0]["resume"] == "allow"
    assert json.dumps(started[0]["config"]) and {"reinforcement/reward": 0.5, "reinforcement/step": 3} in logged
    assert logged[-1] == "finished"
