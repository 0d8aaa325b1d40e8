"""The policy in a training checkpoint, read piece by piece without a mesh, an optimizer or the memory for all of it."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import numpy as np
import tensorstore as ts
from etils import epath

from vero_jax.checkpoints.boxes import Box, as_type, slices, whole
from vero_jax.config import Config
from vero_jax.config_loader import apply_settings, read_yaml
from vero_jax.errors import UserError
from vero_jax.models.policy import ParamPath
from vero_jax.runtime.places import checkpoint_place, is_bucket, ranked, read_scores, saved_steps

_STATE = ("state", "params")
"""Where `train.py` keeps the parameters in what it saves."""
_PIECE_BYTES = 128 * 2**20


def run_checkpoints(run: Path) -> epath.Path | None:
    """Where the checkpoints of a run directory lie; None for a folder that is none or has no finished checkpoint.

    Raises:
        UserError: its config.yaml names a place that cannot be read.
    """
    place = epath.Path(run / "checkpoints")
    if not saved_steps(place) and (run / "config.yaml").is_file():
        try:
            config = apply_settings(Config(), read_yaml(run / "config.yaml"))
        except UserError:  # another program's file
            return None
        place = checkpoint_place(config, run)
    return place if saved_steps(place) else None


class SavedParams:
    """Boxes of the parameters of one checkpoint. Safe in threads.

    Adapters are merged into the kernels that they belong to, in float32, rounded once.

    Args:
        place: the folder or bucket of a run's checkpoints, see `run_checkpoints`.
        step: None takes the newest, "best" the one with the best score in a validation.
        lora_scale: of the run's adapters; None where it has none.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """

    def __init__(self, place: epath.PathLike, step: int | str | None = None, lora_scale: float | None = None) -> None:
        place = epath.Path(place)
        steps = saved_steps(place)
        if step == "best":
            best = ranked(steps, read_scores(place))
            if not best:
                raise UserError(f"none of the checkpoints in {place} was measured by a validation, so none is the best")
            step = best[0]
        if not steps or (step is not None and step not in steps):
            known = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
            wanted = "a finished checkpoint" if step is None else f"the checkpoint {step}"
            raise UserError(f"{place} lacks {wanted}; {known}")
        self.step = steps[-1] if step is None else int(step)
        self.folder = place / str(self.step)
        self._scale = lora_scale
        self._lock = threading.Lock()
        self._adapters: dict[ParamPath, np.ndarray] = {}
        self._sums: dict[ParamPath, tuple[int, int]] = {}
        try:
            meta = json.loads((self.folder / "meta" / "metadata").read_text())
            self._saved_sums: dict[str, int] = meta["checksums"]
            tree = json.loads((self.folder / "state" / "_METADATA").read_text())
            driver = "zarr3" if tree.get("use_zarr3") else "zarr"
            self._arrays: dict[ParamPath, ts.TensorStore] = {}
            for entry in tree["tree_metadata"].values():
                keys = tuple(str(key["key"]) for key in entry["key_metadata"])
                if keys[:2] == _STATE:
                    self._arrays[keys[2:]] = self._open(driver, keys)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from None

    @property
    def paths(self) -> list[ParamPath]:
        """The parameters, without adapters."""
        return [path for path in self._arrays if not path[-1].startswith("lora_")]

    def shape(self, path: ParamPath) -> tuple[int, ...]:
        return tuple(self._arrays[path].shape)

    def param_dtype(self, path: ParamPath) -> np.dtype:
        return np.dtype(self._arrays[path].dtype.numpy_dtype)

    def pieces(self, path: ParamPath) -> list[Box]:
        """A parameter in pieces of about 128 MiB that lie side by side on a tensor of each layer.

        What is stored together is compressed together, all layers of it, and must be read at once. So no chunk lies in
        two pieces; a run whose chunks are larger has larger pieces.
        """
        array = self._arrays[path]
        shape, chunk = self.shape(path), [int(size or 1) for size in array.chunk_layout.read_chunk.shape or ()]
        # Columns of a linear map (rows of the torch tensor), else rows, or some of the experts.
        axis = len(shape) - 1 if path[-1] == "kernel" else (1 if len(shape) > 3 else 0)
        slab = math.prod(shape) // shape[axis] * chunk[axis] * array.dtype.numpy_dtype.itemsize
        step = max(_PIECE_BYTES // slab, 1) * chunk[axis]
        box = whole(shape)
        return [
            (*box[:axis], (start, min(start + step, shape[axis])), *box[axis + 1 :])
            for start in range(0, shape[axis], step)
        ]

    def read_param(self, path: ParamPath, box: Box) -> np.ndarray:
        """The numbers of one box, in the type that training keeps them in."""
        values = self._fetch(path, box)
        part = _checksum(values, box, self.shape(path))
        with self._lock:
            count, total = self._sums.get(path, (0, 0))
            self._sums[path] = (count + values.size, total + part)
        pair = [(*path[:-1], name) for name in ("lora_a", "lora_b")]
        if path[-1] != "kernel" or pair[0] not in self._arrays:
            return values
        if self._scale is None:
            raise ValueError(f"{'.'.join(path)} has adapters, whose scale must be given")
        layers, rows, columns = slices(box)
        a, b = (self._adapter(name)[layers] for name in pair)
        kernel = as_type(values, np.dtype(np.float32))
        return as_type(kernel + np.float32(self._scale) * (a[:, rows] @ b[:, :, columns]), values.dtype)

    def check(self) -> None:
        """Compares all that has been read up to now with the checksums that the run saved; call it after one pass.

        Raises:
            UserError: bits have changed on the disk since then.
        """
        with self._lock:
            sums, self._sums = self._sums, {}
        wrong = [
            ".".join(path)
            for path, (count, found) in sums.items()
            if count == math.prod(self.shape(path)) and self._saved_sums["/".join((*_STATE, *path))] != found % 2**32
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"checkpoint {self.folder} is damaged: the bits of {', '.join(wrong[:3])}{more} are not the ones that "
                "were saved; take another step, or restore the folder from a copy"
            )

    def _adapter(self, path: ParamPath) -> np.ndarray:
        """One of an adapter's matrices, all layers, in float32; kept, since it is small."""
        with self._lock:
            if path not in self._adapters:
                self._adapters[path] = as_type(self._fetch(path, whole(self.shape(path))), np.dtype(np.float32))
            return self._adapters[path]

    def _fetch(self, path: ParamPath, box: Box) -> np.ndarray:
        try:
            return self._arrays[path][slices(box)].read().result()
        except ValueError as error:
            raise self._damaged(error) from None

    def _open(self, driver: str, keys: tuple[str, ...]) -> ts.TensorStore:
        state = self.folder / "state"
        base = f"{state}/" if is_bucket(state) else f"file://{Path(state).absolute()}/"
        store = {"driver": "ocdbt", "base": base, "path": ".".join(keys) + "/"}
        return ts.open({"driver": driver, "kvstore": store}, open=True, read=True).result()

    def _damaged(self, error: Exception) -> UserError:
        reason = (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
        return UserError(f"checkpoint {self.folder} cannot be read ({reason}); take another step with --step")


def _checksum(values: np.ndarray, box: Box, shape: tuple[int, ...]) -> int:
    """The box's share of `checkpoint.checksums`: the sum of (2 i + 1) x_i over its elements i, modulo 2^32."""
    index: np.ndarray = np.zeros((), np.uint32)
    for (start, stop), size in zip(box, shape, strict=True):
        index = index[..., None] * np.uint32(size) + np.arange(start, stop, dtype=np.uint32)
    bits = values.view(np.dtype(f"u{values.itemsize}")).astype(np.uint32, copy=False)
    index *= np.uint32(2)
    index += np.uint32(1)
    index *= bits
    return int(index.sum(dtype=np.uint32))
