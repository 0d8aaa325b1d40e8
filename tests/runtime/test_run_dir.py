"""The run directory: who may write it, when it is continued, and what a reader may meet in it."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vero_jax.config import Config
from vero_jax.config_loader import load_config, to_dict
from vero_jax.errors import UserError
from vero_jax.runtime.files import atomic_write, friendly_writes
from vero_jax.runtime.places import saved_steps
from vero_jax.runtime.run_dir import FREE_KEYS, differences, fingerprint, open_run, run_path

REPO = Path(__file__).parents[2]


def config_in(folder: Path, **changes) -> Config:
    return dataclasses.replace(Config(), run_dir=f"{folder}/{{name}}-seed{{seed}}", **changes)


def with_optim(config: Config, **changes) -> Config:
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **changes))


def with_trainer(config: Config, **changes) -> Config:
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **changes))


def test_layout_and_resolved_config(tmp_path):
    config = config_in(tmp_path, name="mini", seed=4)
    with open_run(config) as run:
        assert run.path == tmp_path / "mini-seed4" and not run.resuming
        assert load_config([str(run.config)]) == config
        assert run.sample_page(20) == run.path / "samples" / "step_000020.html"
        assert run.validation_file("before") == run.path / "validation" / "before.jsonl"
        assert sorted(child.name for child in run.path.iterdir()) == [
            ".lock", "checkpoints", "config.yaml", "samples", "tensorboard", "validation",
        ]  # fmt: skip


def test_names_in_braces(tmp_path):
    with pytest.raises(UserError, match=r"can hold \{name\} and \{seed\}"):
        run_path(dataclasses.replace(Config(), run_dir="runs/{date}"))
    with pytest.raises(UserError, match="mount the bucket"):
        run_path(dataclasses.replace(Config(), run_dir="gs://bucket/run"))


HOLD = """
import sys, time
from vero_jax.config_loader import load_config
from vero_jax.runtime.run_dir import open_run
run = open_run(load_config([sys.argv[1]]))
print("held", flush=True)
time.sleep(60)
"""


def hold(config_file: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(config_file)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == "held"
    return process


def test_two_processes_cannot_write_one_run_and_a_dead_one_does_not_block(tmp_path):
    config = config_in(tmp_path)
    with open_run(config) as run:
        file = tmp_path / "config.yaml"
        file.write_bytes(run.config.read_bytes())
    process = hold(file)
    try:
        with pytest.raises(UserError, match=rf"another process \(pid {process.pid} on "):
            open_run(config)
        # other hosts of the same run only read
        assert open_run(config, primary=False).path == run.path
    finally:
        process.kill()
        process.wait()
    open_run(config).close()


def test_lock_is_given_back_when_opening_fails(tmp_path):
    config = config_in(tmp_path)
    with open_run(config) as run:
        (run.checkpoints / "5").mkdir()
    with pytest.raises(UserError):
        open_run(with_optim(config, lr=1.0))
    open_run(config).close()
    process = hold(run.config)
    process.kill()
    process.wait()


def test_only_settings_that_matter_stop_a_resume(tmp_path):
    config = config_in(tmp_path)
    with open_run(config) as run:
        (run.checkpoints / "5").mkdir()
        (run.checkpoints / "7.orbax-checkpoint-tmp").mkdir()
        run.metrics.write_text("{}\n")
    longer = dataclasses.replace(
        with_trainer(config, steps=9000, log_every=5), mesh=dataclasses.replace(config.mesh, fsdp=2)
    )
    with open_run(longer) as run:
        assert run.resuming and run.metrics.exists()
        assert load_config([str(run.config)]).trainer.steps == 9000
    with pytest.raises(UserError) as caught:
        open_run(dataclasses.replace(with_optim(longer, lr=1.0, betas=(0.9, 0.95)), seed=0))
    text = str(caught.value)
    assert "optim.lr (was 1e-06, now 1.0), optim.betas (was [0.9, 0.999], now [0.9, 0.95])" in text
    assert "trainer" not in text


def test_never_resume_refuses_a_folder_with_a_run(tmp_path):
    config = with_trainer(config_in(tmp_path), resume="never")
    with open_run(config) as run:
        (run.checkpoints / "5").mkdir()
    with pytest.raises(UserError, match="already holds a run"):
        open_run(config)


def test_a_run_without_a_checkpoint_is_begun_again_with_any_settings(tmp_path):
    config = config_in(tmp_path)
    with open_run(config) as run:
        run.metrics.write_text("{}\n")
        run.sample_page(20).write_text("old")
        run.validation_file("before").write_text("old")
        (run.tensorboard / "events").write_text("old")
        (run.path / "notes.txt").write_text("the user's own")
    with open_run(with_optim(config, lr=1.0)) as run:
        assert not run.resuming and not run.metrics.exists() and not run.sample_page(20).exists()
        assert not list(run.tensorboard.iterdir()) and not list(run.validation.iterdir())
        assert (run.path / "notes.txt").exists()


def test_a_finished_run_without_checkpoints_is_not_overwritten(tmp_path):
    config = config_in(tmp_path)
    with open_run(config) as run:
        run.summary.write_text("{}")
    with pytest.raises(UserError, match="finished run whose checkpoints are gone"):
        open_run(config)


def test_a_folder_of_the_users_keeps_its_files(tmp_path):
    config = config_in(tmp_path)
    folder = run_path(config)
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "mine.html").write_text("mine")
    with open_run(config) as run:
        assert (run.samples / "mine.html").exists()


def test_unreadable_config_of_a_run_is_said(tmp_path):
    config = config_in(tmp_path)
    with open_run(config) as run:
        (run.checkpoints / "5").mkdir()
    run.config.write_text("[1, 2")
    with pytest.raises(UserError, match=r"config.yaml cannot be read"):
        open_run(config)


def test_cut_after_removes_what_will_be_written_again(tmp_path):
    with open_run(config_in(tmp_path)) as run:
        for step in (20, 40, 60):
            run.sample_page(step).write_text("x")
            run.validation_file(f"step_{step:06d}").write_text("x")
        run.validation_file("before").write_text("x")
        run.cut_after(40)
        assert sorted(file.name for file in run.samples.iterdir()) == ["step_000020.html", "step_000040.html"]
        assert sorted(file.stem for file in run.validation.iterdir()) == ["before", "step_000020", "step_000040"]


def test_fingerprint_follows_the_settings_that_matter(tmp_path):
    config = config_in(tmp_path)
    assert fingerprint(config) == fingerprint(with_trainer(config, steps=3))
    assert fingerprint(config) != fingerprint(with_optim(config, lr=1e-5))
    flat = dict.fromkeys(FREE_KEYS)
    from vero_jax.config_loader import flatten

    assert not set(flat) - set(flatten(to_dict(config))), "FREE_KEYS names a key that does not exist"


def test_a_key_of_a_newer_version_is_a_difference():
    old, new = to_dict(Config()), to_dict(Config())
    del old["optim"]["eps"]
    assert differences(old, new) == {"optim.eps": ("not set", 1e-8)}


def test_unfinished_checkpoints_do_not_count(tmp_path):
    assert not saved_steps(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "broken_5").mkdir()
    assert not saved_steps(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "3").mkdir()
    assert saved_steps(tmp_path / "checkpoints") == [3]


def test_a_reader_never_meets_half_a_file(tmp_path):
    path = tmp_path / "file.txt"
    atomic_write(path, "a" * 100_000)
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            text = path.read_text()
            seen.add(f"{len(text)}{''.join(sorted(set(text)))}")

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        atomic_write(path, "ab"[number % 2] * 100_000)
    done.set()
    reader.join()
    assert seen <= {"100000a", "100000b"}
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only")]
)
def test_refused_writes_are_one_sentence_and_leave_no_part(tmp_path, monkeypatch, number, words):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file.txt"
    atomic_write(path, "old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=words) as caught:
        atomic_write(path, "new")
    assert str(path) in str(caught.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_a_really_full_device():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match="disk is full"), friendly_writes("/dev/full"), open("/dev/full", "w") as file:
        file.write("x")
        file.flush()


def test_other_errors_pass_through():
    with pytest.raises(FileNotFoundError), friendly_writes("x"):
        raise FileNotFoundError(errno.ENOENT, "x")


def test_a_file_in_the_way_is_said(tmp_path):
    (tmp_path / "run-seed0").write_text("")
    with pytest.raises(UserError, match="a file of that name is in the way"):
        open_run(config_in(tmp_path))
