"""The run directory: where everything of one run lies, who may write it, and whether it can be continued.

    config.yaml  metrics.jsonl  tensorboard/  checkpoints/  samples/step_000020.html  validation/*.jsonl
    curves.png   summary.json   hf/           bad_updates/*.batch      .lock

In: a Config. Out: a `RunDir` with one path per thing. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from etils import epath

from vero_jax.config import Config
from vero_jax.config_loader import flatten, to_dict, to_yaml
from vero_jax.errors import UserError
from vero_jax.runtime.files import atomic_write, friendly_writes
from vero_jax.runtime.places import checkpoint_place, fill_in, is_bucket, saved_steps

FREE_KEYS = (
    # how long, and what is written on the way
    "name", "run_dir", "trainer.steps", "trainer.log_every", "trainer.log_with", "trainer.save_every",
    "trainer.keep_checkpoints", "trainer.keep_best", "trainer.keep_best_by", "trainer.checkpoint_dir",
    "trainer.samples_every", "trainer.max_bad_updates", "trainer.save_bad_batches",
    "trainer.export", "model.lora.export", "trainer.resume",
    "cold_start.log_every", "trainer.val_before", "trainer.val_every", "trainer.val_batch",
    "trainer.val_greedy", "trainer.val_blind",
    "trainer.val_tasks", "trainer.val_tasks_dir", "trainer.val_tasks_limit", "trainer.val_tasks_variant",
    # the machine: the result does not depend on these
    "mesh.data", "mesh.fsdp", "mesh.expert", "mesh.tensor", "distributed.mode", "distributed.coordinator",
    "distributed.num_processes", "distributed.process_id", "distributed.timeout_s", "distributed.peer_timeout_s",
    "data.cache_dir", "data.workers", "data.read_ahead_mb",
    "data.source",  # where the same rows lie: a checkpoint knows the rows themselves
    "reward.workers", "model.remat",
    "rollout.concurrent_responses", "rollout.vocab_block", "rollout.attention_block", "actor.rows_per_micro_batch",
    "actor.row_rungs", "optim.offload", "trainer.warm_up",
    "rollout.prefill_tokens", "rollout.prefill_chunk", "rollout.prompt_page", "rollout.response_page",
    "rollout.prompt_kv_tokens", "rollout.response_kv_tokens",
    # where the judge is and how it is asked; who it is and what it is told decide the scores
    "reward.judge_server.base_url", "reward.judge_server.api_key_env", "reward.judge_server.timeout_s",
    "reward.judge_server.max_retries", "reward.judge_server.concurrency", "reward.judge_server.cache_dir",
    "reward.judge_server.sleep", "reward.judge_server.max_missing_share",
)  # fmt: skip
"""Settings that may change when a run is continued. Every other one would make it another experiment."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, free: bool = False) -> dict[str, tuple[Any, Any]]:
    """{key: (old, new)} of the settings that matter and differ, from two `to_dict` trees; absent ones are "not set".

    free: of those in `FREE_KEYS`, instead of those that matter."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in {**after, **before} if (key in FREE_KEYS) == free]
    return {
        key: (before.get(key, "not set"), after.get(key, "not set"))
        for key in keys
        if before.get(key, "not set") != after.get(key, "not set")
    }


def changes_sentence(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Of what `differences` found: "key (was 1, now 2), ..."."""
    return ", ".join(f"{key} (was {before!r}, now {after!r})" for key, (before, after) in changed.items())


def fingerprint(config: Config) -> str:
    """A digest of the settings that decide a run's numbers: equal when `differences` finds none."""
    flat = flatten(to_dict(config))
    text = json.dumps({key: flat[key] for key in sorted(flat) if key not in FREE_KEYS})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class RunDir:
    """Paths of one run. Made by `open_run`; `close` gives the lock back."""

    path: Path
    resuming: bool = False
    """True when the folder already holds a checkpoint of this run."""
    locks: tuple[RunLock, ...] = ()
    place: epath.Path | None = None
    """Of the checkpoints, where that is not the run's own folder."""

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> epath.Path:
        return epath.Path(self.path / "checkpoints") if self.place is None else self.place

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def validation(self) -> Path:
        return self.path / "validation"

    @property
    def bad_updates(self) -> Path:
        """Batches of updates that were skipped; made when there is one."""
        return self.path / "bad_updates"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def export(self) -> Path:
        """The finished policy as a Hugging Face folder."""
        return self.path / "hf"

    def sample_page(self, step: int) -> Path:
        return self.samples / f"step_{step:06d}.html"

    def validation_file(self, name: str) -> Path:
        """Where the answers of one validation go; name such as "before", "step_000050" or "final"."""
        return self.validation / f"{name}.jsonl"

    def cut_after(self, step: int) -> None:
        """Removes pages and validation answers of later steps: they belong to work that a resumed run does again."""
        for folder, ending in ((self.samples, "html"), (self.validation, "jsonl")):
            for file in folder.glob(f"step_*.{ending}"):
                number = re.fullmatch(r"step_(\d+).*", file.stem)
                if number and int(number[1]) > step:
                    file.unlink()

    def close(self) -> None:
        for lock in self.locks:
            lock.release()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def run_path(config: Config) -> Path:
    """`config.run_dir` with {name} and {seed} filled in."""
    if "://" in config.run_dir:
        raise UserError(
            f"run_dir must be a folder, not the address {config.run_dir!r}: mount the bucket and name its path."
        )
    return Path(fill_in("run_dir", config.run_dir, config)).expanduser().absolute()


def open_run(config: Config, *, primary: bool = True) -> RunDir:
    """Makes or continues the run's folder, locks it and writes the resolved config.

    A run with a checkpoint is continued when its config differs in nothing that matters (`FREE_KEYS` may); one
    without a checkpoint is begun again. Only the primary process (index 0) locks and writes; the others read.
    Raises UserError when another process holds the run, when it is another experiment's, or when the disk refuses.
    """
    path = run_path(config)
    place = checkpoint_place(config, path)
    if not primary:
        return RunDir(path, resuming=bool(saved_steps(place)), place=place)
    locks: list[RunLock] = []
    try:
        # In a bucket there are no locks, and another run's checkpoints are found out by the config inside them.
        for folder in [path] if is_bucket(place) or Path(place).parent == path else [path, Path(place)]:
            with friendly_writes(folder):
                folder.mkdir(parents=True, exist_ok=True)
            locks.append(RunLock.acquire(folder))
        run = RunDir(path, bool(saved_steps(place)), tuple(locks), place)
        if run.resuming:
            _check_same_run(run, config)
        else:
            _check_not_moved(run, config)
            _begin_again(run)
        for folder in (run.tensorboard, run.checkpoints, run.samples, run.validation):
            with friendly_writes(folder):
                folder.mkdir(parents=True, exist_ok=True)
        atomic_write(run.config, to_yaml(config))
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    return run


def _check_same_run(run: RunDir, config: Config) -> None:
    if config.trainer.resume == "never":
        held = run.path if run.config.exists() else run.checkpoints
        raise UserError(
            f"{held} already holds a run: choose another name or run_dir, delete the folder, "
            "or set trainer.resume=auto to continue it."
        )
    if run.checkpoints.parent != epath.Path(run.path) and not run.config.exists():
        return  # on a new machine, whose disk knows nothing of the run; the checkpoint knows its settings
    try:
        old = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{run.path} holds checkpoints, but its config.yaml cannot be read ({error}).") from error
    changed = differences(old if isinstance(old, dict) else {}, to_dict(config))
    if changed:
        raise UserError(
            f"{run.path} holds a run with other settings, so it cannot be continued with these: "
            f"{changes_sentence(changed)}. Set them back, or choose another name or run_dir."
        )


def _check_not_moved(run: RunDir, config: Config) -> None:
    """A run that would begin again because its checkpoints are looked for in the wrong place must not."""
    try:
        old = yaml.safe_load(run.config.read_text(encoding="utf-8"))["trainer"]["checkpoint_dir"]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
        return
    trainer = dataclasses.replace(config.trainer, checkpoint_dir=str(old))
    before = checkpoint_place(dataclasses.replace(config, trainer=trainer), run.path)
    if before != run.checkpoints and saved_steps(before):
        raise UserError(
            f"the checkpoints of the run in {run.path} lie in {before}, and trainer.checkpoint_dir says "
            f"{run.checkpoints}: set it back, move them there, or choose another name or run_dir."
        )


def _begin_again(run: RunDir) -> None:
    """Removes what a run that never reached a checkpoint left behind; nothing of it can be continued."""
    if not run.config.exists():
        return  # not ours: leave whatever the user keeps in this folder
    if run.summary.exists():
        raise UserError(
            f"{run.path} holds a finished run whose checkpoints are gone, so it cannot be continued: choose another "
            "name or run_dir, or delete the folder."
        )
    for file in (run.metrics, run.curves):
        file.unlink(missing_ok=True)
    for folder, pattern in ((run.samples, "*.html"), (run.validation, "*.jsonl"), (run.bad_updates, "*.batch")):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(run.tensorboard, ignore_errors=True)


@dataclasses.dataclass
class RunLock:
    """A POSIX record lock on `.lock`: the kernel drops it when its process dies, so that a stale one cannot exist.

    Unlike flock it is not inherited by forked reward workers, which may outlive a killed trainer by a moment.
    """

    path: Path
    descriptor: int | None

    @classmethod
    def acquire(cls, run_path: Path) -> RunLock:
        """UserError naming the process that holds the run."""
        path = run_path / ".lock"
        with friendly_writes(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            content = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"{run_path} is being written by another process ({_holder(content)}): wait for it, stop it, "
                    "or choose another name or run_dir."
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            warnings.warn(
                f"{path}: this file system has no locks, so a second process would go unnoticed.", stacklevel=2
            )
            return cls(path, None)
        with friendly_writes(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """Gives the run free; safe to call twice. The file stays, since removing it would race with the next owner."""
        if self.descriptor is not None:
            os.ftruncate(self.descriptor, 0)
            os.close(self.descriptor)
            self.descriptor = None


def _holder(content: bytes) -> str:
    try:
        owner = json.loads(content)
        return f"pid {int(owner['pid'])} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "its pid is not known"  # caught between its lock and its note
