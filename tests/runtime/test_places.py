"""Where checkpoints lie: in the run's folder, in another one, in a bucket; two runs never share a place unnoticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.fake_bucket import running
from vero_jax.config_loader import load_config
from vero_jax.errors import UserError
from vero_jax.runtime import places
from vero_jax.runtime.places import checkpoint_place, ranked, read_scores, saved_steps, write_scores
from vero_jax.runtime.run_dir import open_run


def config(run: Path, *settings: str):
    return load_config([f"run_dir={run}", *settings])


def checkpoint(place: Path, step: int = 3) -> None:
    (place / str(step)).mkdir(parents=True)


def test_a_place_is_in_the_run_or_where_the_setting_says(tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert checkpoint_place(config(run), run) == run / "checkpoints"
    named = config(run, f"trainer.checkpoint_dir={tmp_path}/all/{{name}}-{{seed}}", "name=mine", "seed=4")
    assert checkpoint_place(named, run) == tmp_path / "all" / "mine-4"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint_place(config(run, "trainer.checkpoint_dir=~/kept"), run) == tmp_path / "kept"
    with pytest.raises(UserError, match=r"trainer.checkpoint_dir .* can hold"):
        checkpoint_place(config(run, "trainer.checkpoint_dir=/x/{step}"), run)
    with pytest.raises(UserError, match="a folder or gs://bucket/path, not 's3://bucket/x'"):
        checkpoint_place(config(run, "trainer.checkpoint_dir=s3://bucket/x"), run)


def test_a_bucket_without_its_client_is_one_sentence(tmp_path):
    code = (
        "import sys; sys.modules['gcsfs'] = None; from pathlib import Path\n"
        "from vero_jax.config_loader import load_config\n"
        "from vero_jax.runtime.places import checkpoint_place\n"
        "checkpoint_place(load_config(['trainer.checkpoint_dir=gs://bucket/a/b']), Path('.'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "gs://bucket/a/b needs a client for buckets: pip install 'vero-jax[gcs]'" in done.stderr


def test_finished_checkpoints_in_a_bucket_have_a_mark(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint(tmp_path, step)
    (tmp_path / "1" / "commit_success.txt").touch()
    assert saved_steps(tmp_path) == [1, 2]
    monkeypatch.setattr(places, "is_bucket", lambda place: True)
    assert saved_steps(tmp_path) == [1]


def test_scores_are_kept_and_ranked(tmp_path):
    assert read_scores(tmp_path) == {}
    write_scores(tmp_path, {2: 0.5, 1: 0.25, 3: 0.5})
    assert read_scores(tmp_path) == {1: 0.25, 2: 0.5, 3: 0.5}
    assert ranked([1, 3, 2, 9], read_scores(tmp_path)) == [2, 3, 1]


def test_a_run_goes_on_from_another_place_on_a_new_disk(tmp_path):
    place = tmp_path / "kept"
    settings = f"trainer.checkpoint_dir={place}"
    with open_run(config(tmp_path / "a", settings)) as run:
        assert not run.resuming
        checkpoint(place)
    with open_run(config(tmp_path / "a", settings)) as run:
        assert run.resuming and Path(run.checkpoints) == place
    with open_run(config(tmp_path / "b", settings)) as run:
        assert run.resuming  # the checkpoint itself knows of which run it is


def test_two_processes_cannot_write_to_one_place(tmp_path):
    settings = f"trainer.checkpoint_dir={tmp_path}/kept"
    code = (
        "import sys; from vero_jax.config_loader import load_config; from vero_jax.runtime.run_dir import open_run\n"
        "with open_run(load_config(sys.argv[1:])): print('open', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, f"run_dir={tmp_path}/a", settings]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=r"kept is being written by another process \(pid"):
            open_run(config(tmp_path / "b", settings))
    finally:
        other.communicate()
    open_run(config(tmp_path / "b", settings)).close()


def test_a_run_whose_checkpoints_lie_elsewhere_is_not_begun_again(tmp_path):
    with open_run(config(tmp_path / "run")) as run:
        checkpoint(Path(run.checkpoints))
        run.metrics.write_text("{}\n")
    with pytest.raises(UserError, match=r"lie in .*checkpoints, and trainer.checkpoint_dir says .*other: set it back"):
        open_run(config(tmp_path / "run", f"trainer.checkpoint_dir={tmp_path}/other"))
    assert (tmp_path / "run" / "metrics.jsonl").exists()


BUCKET = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from vero_jax.config_loader import load_config
from vero_jax.runtime.checkpoint import Checkpoints, CheckpointMeta, abstract_like
from vero_jax.runtime.places import checkpoint_place, saved_steps

place = checkpoint_place(load_config(["trainer.checkpoint_dir=gs://bucket/runs/{name}"]), Path("/nowhere"))
state = {"w": jnp.arange(1000, dtype=jnp.float32), "b": jnp.ones(3)}
with Checkpoints(place, keep=2, keep_best=1) as checkpoints:
    for step in range(1, 6):
        checkpoints.note_score(step, 1.0 if step == 2 else 0.1)
        meta = CheckpointMeta(step, "reinforcement", step, 0, step, 0, "f")
        checkpoints.save(step, {"w": state["w"] * step, "b": state["b"]}, meta)
    checkpoints.wait()
    assert checkpoints.steps == saved_steps(place) == [2, 4, 5], checkpoints.steps
(place / "5" / "commit_success.txt").unlink()  # as if it had been killed before its last object
assert saved_steps(place) == [2, 4]
with Checkpoints(place) as checkpoints:
    assert checkpoints.scores[2] == 1.0
    found, meta = checkpoints.restore_latest(abstract_like(state))
    assert meta.step == 4 and float(found["w"][3]) == 12
print("done")
"""


def test_checkpoints_in_a_bucket():
    """Real clients against a server here that speaks the bucket's protocol."""
    with running() as bucket:
        environ = os.environ | bucket.environment() | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run([sys.executable, "-c", BUCKET], env=environ, capture_output=True, text=True, timeout=300)
        assert done.stdout.strip() == "done", done.stderr[-3000:]
        assert not bucket.unknown
        assert not [name for name in bucket.names("bucket") if not name.startswith("runs/mini/")]
