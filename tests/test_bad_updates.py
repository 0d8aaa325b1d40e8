"""Gradients that are not finite: skipped, counted, kept, looked into, and no more than some in a row."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.learning.policies import make_group, random_groups
from tests.learning.test_update import one_device, small, table_learner
from tests.test_train import REPO, TINY, metrics, quick_environment
from vero_jax import replay
from vero_jax.bad_updates import BadUpdates
from vero_jax.config import Config, OptimConfig
from vero_jax.config_loader import load_config, to_yaml
from vero_jax.errors import RunFailed, UserError, friendly
from vero_jax.learning.diagnosis import diagnose
from vero_jax.learning.programs import TrainablePolicy
from vero_jax.learning.supervised import as_groups
from vero_jax.learning.update import Learner
from vero_jax.parallel.sharding import replicated
from vero_jax.position import Position
from vero_jax.runtime import kept_batch
from vero_jax.runtime.kept_batch import KeptBatch, read_batch, write_batch
from vero_jax.runtime.run_dir import RunDir


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    shapes = {"E": (100, 6), "W": (6, 100), "b": (100,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def kept(groups, **changes) -> KeptBatch:
    values = {"phase": "reinforcement", "step": 3, "global_step": 5, "updates": (0,), "moved": False,
              "batches": (tuple(groups),), "config": to_yaml(Config()), "run": Path("runs/mine")}  # fmt: skip
    return KeptBatch(**values | changes)


def test_a_kept_batch_comes_back_bit_for_bit(tmp_path):
    groups = random_groups(3)
    write_batch(tmp_path / "a.batch", kept(groups))
    found = read_batch(tmp_path / "a.batch")
    assert (found.step, found.updates, found.run) == (3, (0,), Path("runs/mine"))
    for there, group in zip(found.batches[0], groups, strict=True):
        np.testing.assert_array_equal(there.prompt.patches, group.prompt.patches)
        np.testing.assert_array_equal(there.advantages, group.advantages)
        for a, b in zip(there.responses, group.responses, strict=True):
            np.testing.assert_array_equal(a.logprobs, b.logprobs)
            assert a.logprobs.dtype == np.float32


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-1], "is damaged"),
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], "is damaged"),
        (lambda data: b"PK\x03\x04" + data, "is no batch that vero_jax kept"),
        (lambda data: b"", "is no batch that vero_jax kept"),
    ],
)
def test_a_file_that_is_damaged_or_foreign_is_refused_in_one_sentence(tmp_path, spoil, words, capsys):
    path = tmp_path / "a.batch"
    write_batch(path, kept(random_groups(1)))
    path.write_bytes(spoil(path.read_bytes()))
    assert replay.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error and str(path) in error and error.count("\n") == 1


def test_a_run_that_has_been_moved_is_asked_for_and_nothing_is_written_in_its_place(tmp_path, capsys):
    write_batch(tmp_path / "a.batch", kept(random_groups(1), run=tmp_path / "gone"))
    assert replay.main([str(tmp_path / "a.batch")]) == 2
    assert f"there is no run in {tmp_path / 'gone'}; say with --run" in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()


def test_a_file_that_is_not_there_or_of_another_version_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_batch(tmp_path / "nothing.batch")
    for content in (b"{}", kept_batch.to_bytes(["something"]), kept_batch.to_bytes({"t": 1})):
        (tmp_path / "a.batch").write_bytes(kept_batch._MAGIC + kept_batch._digest(content) + content)
        with pytest.raises(UserError, match=r"another version|something else"):
            read_batch(tmp_path / "a.batch")


def watcher(tmp_path, **trainer) -> tuple[BadUpdates, Position]:
    at = Position("reinforcement")
    settings = [f"trainer.{name}={value}" for name, value in trainer.items()]
    return BadUpdates(RunDir(tmp_path), load_config(settings), at), at


def test_only_updates_in_a_row_count_and_the_batches_of_bad_ones_are_kept(tmp_path):
    bad, at = watcher(tmp_path, max_bad_updates=3, save_bad_batches=2)
    halves = [random_groups(2, seed=1), random_groups(3, seed=2)]
    assert bad.after_step(1, [True, True], halves) == {"training/bad_updates_in_a_row": 0}
    assert not bad.kept
    assert bad.after_step(2, [False, False], halves) == {"training/bad_updates_in_a_row": 2}
    bad.check()
    assert bad.after_step(3, [True, False], halves) == {"training/bad_updates_in_a_row": 1}
    assert bad.kept
    assert bad.after_step(4, [False, False, True, False], halves)["training/bad_updates_in_a_row"] == 1
    assert not bad.kept and at.bad_steps == 3  # two are enough
    files = {path.name: read_batch(path) for path in (tmp_path / "bad_updates").iterdir()}
    assert [file.moved for _, file in sorted(files.items())] == [False, False]
    assert {name: [len(part) for part in file.batches] for name, file in files.items()} == {
        "reinforcement_000002.batch": [2, 3],
        "reinforcement_000003.batch": [3],
    }
    bad.after_step(5, [False, False], halves)
    with pytest.raises(RunFailed, match=r"last 3 updates.*max_bad_updates=3.*replay .*000003.batch"):
        bad.check()
    assert friendly(bad.check)() == 1


def test_zero_never_stops_and_another_process_writes_nothing(tmp_path):
    bad, _ = watcher(tmp_path, max_bad_updates=0)
    bad._writes = False
    bad.after_step(1, [False] * 100, [random_groups(1)])
    bad.check()
    assert bad.kept and not (tmp_path / "bad_updates").exists()


def test_the_count_goes_through_a_checkpoint():
    at = Position("reinforcement", 3, 5, bad_updates=4, bad_steps=2)
    meta = at.meta(Config(), metrics_position=0)
    back = Position.of(meta, Config())
    assert (back.bad_updates, back.bad_steps, back.step) == (4, 2, 5)


def test_a_full_disk_costs_the_file_and_not_the_run(tmp_path, monkeypatch):
    bad, _ = watcher(tmp_path)

    def refuse(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(UserWarning, match="is not kept: .*the disk is full"):
        bad.after_step(1, [False], [random_groups(1)])


def diagnosed(learner, params, groups):
    return diagnose(params, groups, lambda part: learner.gradients(params, part), learner.logprobs)


def test_a_diagnosis_names_the_first_thing_that_is_not_finite(table):
    learner = table_learner(table, small())
    groups = [make_group([[1, 2], [3]], prompt=[4], advantages=[1, -1]) for _ in range(2)]
    healthy = diagnosed(learner, table, groups)
    assert healthy.finite and not healthy.findings and healthy.culprits is None
    _, step = learner.step(learner.init_state(table), groups, 1)
    assert healthy.norm == pytest.approx(step["actor/grad_norm"], rel=1e-6)
    assert healthy.loss == pytest.approx(step["actor/pg_loss"], abs=1e-6)
    groups[1] = make_group([[1, 2], [3]], prompt=[4], advantages=[1, np.inf])
    found = diagnosed(learner, table, groups)
    assert not found.finite and found.findings[0].where == "advantages"
    assert "response 1" in found.findings[0].name and found.findings[-1].where == "gradient"
    spoiled = table | {"E": table["E"].at[4, 2].set(jnp.nan)}
    found = diagnosed(learner, spoiled, groups[:1])
    assert [finding.where for finding in found.findings][:2] == ["parameters", "log-probabilities"]
    assert str(found.findings[0]).split() == ["parameters", "E", "1", "of", "600", "not", "finite"]


def test_responses_whose_backward_pass_alone_overflows_are_found():
    """-sqrt(e) has a value at 0, and no slope."""
    params = {"e": jnp.ones(10).at[7].set(0.0)}

    def forward(params, rows):
        values = -jnp.sqrt(params["e"][rows.targets])
        return values, values * 0

    policy = TrainablePolicy(forward, params, {"e": replicated(one_device())})
    learner = Learner(policy, small(), OptimConfig(), one_device(), max_response_length=8)
    groups = [make_group([[1, 2], [3, 7]], advantages=[1, -1]), make_group([[1], [2]], advantages=[1, -1])]
    found = diagnosed(learner, params, groups)
    assert not found.finite and found.culprits is not None
    assert len(found.culprits) == 1 and found.culprits[0].endswith("response 1")


def test_solutions_are_groups_of_one_response():
    group = random_groups(1)[0]
    (found,) = as_groups([(group.prompt, np.array([5, 6, 7]))])
    assert found.responses[0].token_ids.tolist() == [5, 6, 7] and found.responses[0].token_ids.dtype == np.int32


def run_bad(run: Path, cache: Path, bad: str, *settings: str) -> subprocess.CompletedProcess:
    words = [f"run_dir={run}", f"data.cache_dir={cache}", *TINY, *settings]
    script = ["-m", "vero_jax.train"] if not bad else [str(REPO / "tests" / "bad_run.py")]
    path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *script, *words], env=quick_environment() | {"BAD": bad, "PYTHONPATH": path}, text=True,
        capture_output=True, timeout=800,
    )  # fmt: skip


def replayed(file: Path, *words: str) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "vero_jax.replay", str(file), "--json", *words], env=quick_environment(), text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_a_run_with_one_bad_batch_goes_on_and_the_batch_can_be_looked_into(tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    done = run_bad(run, cache, "2:0")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = metrics(run)
    assert [line["actor/updates_skipped"] for line in lines] == [0, 1, 0]
    assert [line["training/bad_updates_in_a_row"] for line in lines] == [0, 0, 0]  # the other mini-batch was good
    file = run / "bad_updates" / "reinforcement_000002.batch"
    status, found = replayed(file)
    assert status == 1 and "moved on by a later update" in found["weights"]
    (update,) = found["updates"]
    assert not update["finite"] and update["findings"][0]["where"] == "advantages"
    assert update["findings"][0]["name"].startswith(f"question {update['questions'][0]}, response 0")
    # Other weights, of the run's export, change nothing about it.
    assert replayed(file, "--params", str(run / "hf"))[0] == 1


@pytest.mark.slow
def test_a_run_whose_gradients_stay_bad_stops_and_goes_on_when_they_are_good(tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    done = run_bad(run, cache, "*", "trainer.max_bad_updates=3")
    assert done.returncode == 1, done.stderr[-3000:]
    assert "the gradients of the last 4 updates were not finite, up to reinforcement step 2" in done.stderr
    assert "Traceback" not in done.stderr and "python -m vero_jax.replay" in done.stderr
    assert "just these" in replayed(run / "bad_updates" / "reinforcement_000002.batch")[1]["weights"]
    assert [line["actor/updates_skipped"] for line in metrics(run)] == [2, 2]
    # From the checkpoint behind the bad batches.
    done = run_bad(run, cache, "", "trainer.max_bad_updates=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["training/bad_updates_in_a_row"] for line in metrics(run)] == [2, 4, 0]
