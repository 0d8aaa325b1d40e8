"""Checkpoints of a run: parameters, optimizer state and every position as one atomic Orbax step, saved meanwhile.

In: a tree of (sharded) jax arrays and a `CheckpointMeta`. Out: the same, on whatever shardings the restoring run has;
a checkpoint knows nothing of the number of devices or hosts that wrote it.

Steps count all optimizer progress of a run: cold-start steps first, then the steps of reinforcement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vero_jax.errors import UserError
from vero_jax.runtime.compilation import versions
from vero_jax.runtime.files import disk_error
from vero_jax.runtime.places import is_bucket, ranked, read_scores, write_scores
from vero_jax.runtime.run_dir import changes_sentence, differences

_SAVE_ARGS = ocp.SaveArgs(chunk_byte_size=64 * 2**20)
"""Arrays are stored in chunks of about this size: who converts a checkpoint need not hold a whole stack of layers."""


@dataclasses.dataclass(frozen=True)
class CheckpointMeta:
    """All that is not an array. Random keys are derived from (seed, step), so these two are their position."""

    step: int
    phase: str
    """"cold_start" or "reinforcement": what was going on when it was saved."""
    phase_step: int
    """Steps of that phase that are done."""
    seed: int
    data_position: int
    """Questions drawn from the stream since the start of the run."""
    metrics_position: int
    """`MetricsLog.position` at this point; later lines are cut on resume."""
    fingerprint: str
    """`run_dir.fingerprint` of the settings that matter."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """All settings, as `config_loader.to_dict` has them."""
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fingerprints of each part of the data and of the rows in use, by name."""
    kl_controller: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Wall-clock seconds of each phase so far."""
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Measured on the way and needed at the end, such as the accuracy before training."""
    bad_updates: int = 0
    """Updates in a row, up to this point, that were skipped because their gradient was not finite."""
    bad_steps: int = 0
    """Steps with such an update, in the whole run."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)


class _Unreadable(Exception):
    """A checkpoint is damaged; the message names it."""


class Checkpoints:
    """Keeps the last `keep` checkpoints and the `keep_best` with the best scores in a folder or bucket.

    Every process of a run makes one and calls the same methods; with `read_only`, another program that looks into a
    run's checkpoints.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 2, keep_best: int = 0, *, read_only: bool = False) -> None:
        self._folder = epath.Path(folder)
        if "://" not in str(folder):
            self._folder = epath.Path(Path(folder).absolute())
        self._last: int | None = None
        _say_refused_writes_once()
        with _save_errors(self._folder):
            if not read_only:
                self._folder.mkdir(parents=True, exist_ok=True)
            self.scores = read_scores(self._folder)
            self._manager = ocp.CheckpointManager(
                self._folder,
                # Named here, so that the shapes in a checkpoint can be read before its arrays are.
                item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
                # A killed save leaves a folder with a temporary name, which is never taken for a checkpoint.
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=preservation_policy.AnyPreservationPolicy(
                        [preservation_policy.LatestN(keep), _Best(self, keep_best)]
                    ),
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    enable_async_checkpointing=True,
                ),
            )

    def note_score(self, step: int, score: float) -> None:
        """Says what the weights after a step are worth: of two the higher is better. Survives a restart."""
        self.scores[step] = score
        self._write_scores()

    def forget_scores(self) -> None:
        """Says that what was noted so far cannot be compared with what will be."""
        self.scores.clear()
        self._write_scores()

    @property
    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: CheckpointMeta) -> None:
        """Copies the arrays and returns; the files are written meanwhile and appear under their name when complete.

        The arrays may be donated or changed as soon as this returns. Waits for the save before, if it is still going
        on. Does nothing when this step is saved already. Raises UserError when the disk refuses, here or, for the part
        in the background, at the next call.
        """
        if step == self._last or step in self.steps:
            return
        with _save_errors(self._folder):
            self._manager.wait_until_finished()
            _check_room(self._folder, state)
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state, save_args=jax.tree.map(lambda _: _SAVE_ARGS, state)),
                    meta=ocp.args.JsonSave({**dataclasses.asdict(meta), "checksums": checksums(state)}),
                ),
                force=True,
            )
        if not saved:
            raise RuntimeError(f"Orbax declined to save step {step} beside {self.steps}.")
        self._last = step

    def restore_latest(
        self, abstract_state: Any, fingerprint: str | None = None, config: Mapping[str, Any] | None = None
    ) -> tuple[Any, CheckpointMeta] | None:
        """(state, meta) of the newest checkpoint that can be read, or None when there is none.

        abstract_state: a tree of jax.ShapeDtypeStruct with the shardings to restore onto (`abstract_like`).
        A broken checkpoint is set aside with a warning that names it, and the one before is taken. UserError when all
        are broken, when the shapes are another model's, or when `fingerprint` is not the saved one; then it names the
        settings in `config` (`config_loader.to_dict`) that differ from those inside the checkpoint.
        """
        broken = []
        for step in reversed(self.steps):
            try:
                state, meta = self._read(step, abstract_state, fingerprint, config)
            except _Unreadable as error:
                warnings.warn(f"{error}; trying the one before.", stacklevel=2)
                broken.append(step)
                continue
            self._set_aside(broken)
            self._last = step
            return state, meta
        if broken:
            raise UserError(
                f"none of the checkpoints in {self._folder} can be read ({', '.join(map(str, reversed(broken)))}): "
                "restore the folder from a copy, or delete it to begin again."
            )
        return None

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, CheckpointMeta]:
        """(state, meta) of one checkpoint, as `restore_latest`.

        Raises:
          UserError: it is not there, cannot be read, or is another model's.
        """
        if step not in self.steps:
            known = ", ".join(map(str, self.steps)) or "none"
            raise UserError(f"there is no checkpoint {self._folder / str(step)}; there are {known}")
        try:
            return self._read(step, abstract_state)
        except _Unreadable as error:
            raise UserError(str(error)) from error

    def wait(self) -> None:
        """Returns when the last save is complete on disk. Raises UserError when the disk refused."""
        with _save_errors(self._folder):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        with _save_errors(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read(
        self, step: int, abstract_state: Any, fingerprint: str | None = None, config: Mapping[str, Any] | None = None
    ) -> tuple[Any, CheckpointMeta]:
        place = self._folder / str(step)
        try:
            meta, sums = self._read_meta(step)
            saved_shapes = self._saved_shapes(step)
            _check_settings(meta, fingerprint, config or {}, place)
            _check_fits(saved_shapes, abstract_state, place)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            state = self._manager.restore(step, args=args).state
            _check_sums(sums, state)
        except UserError:
            raise
        except Exception as error:  # whatever Orbax and TensorStore raise for files that are damaged or gone
            reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
            raise _Unreadable(f"checkpoint {place} cannot be read ({reason})") from error
        return state, meta

    def _read_meta(self, step: int) -> tuple[CheckpointMeta, dict[str, int]]:
        raw = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        known = {field.name for field in dataclasses.fields(CheckpointMeta)}
        return CheckpointMeta(**{name: value for name, value in raw.items() if name in known}), raw["checksums"]

    def _saved_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        metadata = self._manager.item_metadata(step).state
        if metadata is None:
            raise ValueError("the list of its arrays is gone")
        return _shapes(getattr(metadata, "tree", metadata))

    def _write_scores(self) -> None:
        if jax.process_index() == 0:
            with _save_errors(self._folder):
                write_scores(self._folder, self.scores)

    def _set_aside(self, steps: list[int]) -> None:
        """Renames broken checkpoints to broken_<step>, so that their steps can be saved again and a person can look."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                target = self._folder / f"broken_{step}"
                number = 2
                while target.exists():
                    target = self._folder / f"broken_{step}_{number}"
                    number += 1
                (self._folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoints set aside")
        self._manager.reload()


def abstract_like(state: Any) -> Any:
    """The shapes, dtypes and shardings of a tree of jax arrays, as `restore_latest` wants them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def checksums(tree: Any) -> dict[str, int]:
    """A 32-bit sum over the bits of each array, {"params/w": sum}: equal on every sharding, another if a bit differs.

    The files carry no checksum of the array data, so that damage in them would be restored as other weights, in
    silence. The sum is Σ (2 i + 1) x_i mod 2^32 with x_i the bits of element i: exact in any order of summation.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {"/".join(map(_key_name, path)): leaf for path, leaf in leaves}
    sums: dict[str, int] = {}
    # One program for all arrays on the same devices (one run may hold both sharded arrays and single-device scalars).
    groups: dict[frozenset[Any], dict[str, Any]] = {}
    for name, leaf in named.items():
        groups.setdefault(frozenset(leaf.sharding.device_set), {})[name] = leaf
    for group in groups.values():
        meshes = {
            leaf.sharding.mesh for leaf in group.values() if isinstance(leaf.sharding, jax.sharding.NamedSharding)
        }
        everywhere = jax.sharding.NamedSharding(meshes.pop(), jax.sharding.PartitionSpec()) if meshes else None
        values = jax.jit(checkpoint_checksums, out_shardings=everywhere)(tuple(group.values()))
        sums.update(zip(group, map(int, np.asarray(values)), strict=True))
    return sums


def checkpoint_checksums(arrays: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack([_checksum(array) for array in arrays])


def _checksum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def _check_sums(saved: Mapping[str, int], state: Any) -> None:
    wrong = [name for name, value in checksums(state).items() if saved[name] != value]
    if wrong:
        raise ValueError(f"the bits of {', '.join(wrong[:3])} are not the ones that were saved")


@dataclasses.dataclass(frozen=True)
class _Best(preservation_policy.PreservationPolicy):
    """Keeps the checkpoints with the best scores known. All processes know the same ones."""

    checkpoints: Checkpoints
    count: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = ranked([info.step for info in checkpoints], self.checkpoints.scores)[: self.count]
        return [info.step in best for info in checkpoints]


def _check_settings(
    meta: CheckpointMeta, fingerprint: str | None, config: Mapping[str, Any], place: epath.Path
) -> None:
    if fingerprint is None or meta.fingerprint == fingerprint:
        return
    changed = differences(meta.config, config) if meta.config else {}
    named = f", so it cannot be continued with these: {changes_sentence(changed)}" if changed else " than this run's"
    raise UserError(
        f"checkpoint {place} was saved with other settings{named}. Set them back, or choose another name, run_dir or "
        "trainer.checkpoint_dir."
    )


def _check_fits(saved: Mapping[str, tuple[int, ...]], abstract_state: Any, place: epath.Path) -> None:
    wanted = _shapes(abstract_state)
    wrong = [
        f"{name} is {saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"checkpoint {place} does not fit this model: {', '.join(wrong[:3])}{more}. Choose another name or "
            "run_dir, or the model the run began with."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"params/w": shape}; a tuple's places and a list's are named alike, since a stored tree knows lists only."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(map(_key_name, path)): tuple(leaf.shape) for path, leaf in leaves}


def _key_name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _check_room(folder: epath.Path, state: Any) -> None:
    """Whether a checkpoint fits on the disk, before half of one is written.

    Raises:
      UserError: it does not. Compression takes less than a tenth off trained weights and their moments.
    """
    if is_bucket(folder):
        return
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(folder).free
    if free < 0.9 * needed:
        raise UserError(
            f"cannot write {folder}: the disk is full ({free / 1e9:.2f} GB are free, and a checkpoint takes "
            f"{needed / 1e9:.2f}): free some space and start again, the run goes on from its last checkpoint."
        )


def _refusal(error: BaseException, folder: epath.Path) -> UserError | None:
    """The sentence for a disk that refused, whether Python noticed it or TensorStore, which has its own words."""
    if isinstance(error, OSError):
        return disk_error(error, folder)
    return disk_error(OSError(errno.ENOSPC, ""), folder) if "No space left" in str(error) else None


@contextlib.contextmanager
def _save_errors(folder: epath.Path) -> Iterator[None]:
    """A full disk is a sentence."""
    try:
        yield
    except Exception as error:
        sentence = _refusal(error, folder)
        if sentence is None:
            raise
        raise sentence from error


class _SaidLater(logging.Filter):
    """Drops what Orbax's threads log of a refused write: the same error is raised to whoever waits for the save."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or _refusal(error, epath.Path("")) is None


def _say_refused_writes_once() -> None:
    """As a sentence of ours, and not by Orbax's threads, nor by TensorStore's, which call back into the event loop that
    ended with a refused save."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(there, _SaidLater) for there in logger.filters):
            logger.addFilter(_SaidLater())
    before = sys.unraisablehook
    if getattr(before, "drops_late_callbacks", False):
        return

    def hook(unraisable: Any, /) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    hook.drops_late_callbacks = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook
