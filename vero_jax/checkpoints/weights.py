"""Parameters from and to checkpoints: Hugging Face's safetensors, or this package's own format, told apart by itself.

Every tensor is accounted for, read once, and read only as far as the devices of this process hold it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from vero_jax.checkpoints import native
from vero_jax.checkpoints.accounting import account
from vero_jax.checkpoints.boxes import Box, extents, slices
from vero_jax.checkpoints.names import (
    ExpertLayout,
    Source,
    by_tensor,
    canonical_name,
    disk_tensors,
    embedding_name,
    expert_layout,
    sources,
    stored_params,
    to_disk,
)
from vero_jax.checkpoints.placement import Placement
from vero_jax.checkpoints.safetensors_io import INDEX_FILE, SINGLE_FILE, Checkpoint, SafetensorsWriter, remove_weights
from vero_jax.checkpoints.transfer import THREADS, read_into, write_from
from vero_jax.models.policy import ModelDef, ParamPath, Params

__all__ = [
    "INDEX_FILE",
    "MAX_SHARD_BYTES",
    "SINGLE_FILE",
    "Checkpoint",
    "canonical_name",
    "disk_tensors",
    "load_params",
    "open_checkpoint",
    "save_params",
    "sources",
    "stored_dtype",
    "to_disk",
]

MAX_SHARD_BYTES = 5 * 10**9
"""Of one safetensors file, as on the hub."""


def load_params(folder: str | Path, model_def: ModelDef, shardings: Any = None) -> Params:
    """Reads a checkpoint into a tree of parameters of `param_dtype`; adapters are left out.

    Args:
        folder: a Hugging Face folder (model.safetensors, or shards and their index), or one in this package's format.
        shardings: a tree of shardings of the same structure as the parameters; None puts all on the default device.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape than the config asks for, or a file is unreadable.
    """
    places = {} if shardings is None else flatten_dict(shardings)
    placement = Placement(stored_params(model_def), places)
    with open_checkpoint(folder, model_def) as (checkpoint, layout):
        grid = checkpoint.grid if isinstance(checkpoint, native.NativeFolder) else (lambda name: ())
        read_into(checkpoint, layout, placement, grid=grid)
    return unflatten_dict(placement.finish())


@contextlib.contextmanager
def open_checkpoint(
    folder: str | Path, model_def: ModelDef
) -> Iterator[tuple[Checkpoint | native.NativeFolder, Mapping[ParamPath, list[Source]]]]:
    """Opens a checkpoint of either format and accounts for every tensor: gives (reader, where each parameter lies).

    Raises:
        UserError: as `load_params`.
    """
    family, tied_to = model_def.config.model_type, ""
    with contextlib.ExitStack() as stack:
        reader: Checkpoint | native.NativeFolder
        if native.is_native(folder):
            reader = stack.enter_context(native.NativeFolder(folder))
            layout = native.layout(model_def)
        else:
            reader = stack.enter_context(Checkpoint(folder, functools.partial(canonical_name, family=family)))
            layout = sources(model_def, expert_layout(model_def, reader.shapes))
            tied_to = embedding_name(family) if model_def.config.tie_word_embeddings else ""
        account(reader, {name: pieces[0][1].shape for name, pieces in by_tensor(layout).items()}, tied_to)
        yield reader, layout


def stored_dtype(folder: str | Path) -> np.dtype:
    """The widest type among a checkpoint's tensors."""
    with native.NativeFolder(folder) if native.is_native(folder) else Checkpoint(folder) as checkpoint:
        return max((checkpoint.dtype(name) for name in checkpoint.names), key=lambda dtype: dtype.itemsize)


def save_params(
    folder: str | Path,
    model_def: ModelDef,
    params: Params,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: Any = None,
    experts: ExpertLayout = "hub",
) -> None:
    """Writes parameters under Hugging Face's names, replacing the weights that the folder holds; adapters are left out.

    With several processes all must call it; the first one writes. What it takes beside the parameters is a few blocks.

    Args:
        max_shard_bytes: start a new file before one grows larger than this. One file gets no index.
        dtype: of the tensors on disk; None keeps that of the parameters.
        experts: how stacked experts lie on disk.
    """
    folder = Path(folder).expanduser()
    live = LiveParams(params)
    layout = sources(model_def, experts)
    shapes = {name: pieces[0][1].shape for name, pieces in by_tensor(layout).items()}
    dtypes = {
        name: np.dtype(dtype) if dtype is not None else live.dtype(pieces[0][0])
        for name, pieces in by_tensor(layout).items()
    }
    if jax.process_index() > 0:
        write_from(live, layout, dtypes, None, threads=1)
        return
    folder.mkdir(parents=True, exist_ok=True)
    remove_weights(folder)
    threads = 1 if jax.process_count() > 1 else THREADS
    with SafetensorsWriter(folder, {name: (shapes[name], dtypes[name]) for name in shapes}, max_shard_bytes) as writer:
        write_from(live, layout, dtypes, writer, threads=threads)


class LiveParams:
    """Boxes of parameters that lie on devices. With several processes all must ask for the same in the same order."""

    def __init__(self, params: Params) -> None:
        self._leaves = flatten_dict(params)
        self._lock = threading.Lock()

    def dtype(self, path: ParamPath) -> np.dtype:
        return np.dtype(self._leaves[path].dtype)

    def read_param(self, path: ParamPath, box: Box) -> np.ndarray:
        leaf = self._leaves[path]
        if not isinstance(leaf, jax.Array) or (len(leaf.devices()) == 1 and _on_cpu(leaf)):
            return np.asarray(leaf)[slices(box)]  # np.asarray is a view of the memory here
        starts = np.array([start for start, _ in box], np.int32)
        if leaf.is_fully_addressable:
            with self._lock:  # two programs over several devices that start in different orders wait for each other
                return np.asarray(_box(leaf, starts, extents(box), None))
        if not isinstance(leaf.sharding, NamedSharding):
            raise ValueError(f"{'.'.join(path)} is spread over processes by {leaf.sharding}, not over a named mesh")
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        return np.asarray(_box(leaf, starts, extents(box), everywhere).addressable_data(0))


def _on_cpu(leaf: jax.Array) -> bool:
    return next(iter(leaf.devices())).platform == "cpu"


@functools.partial(jax.jit, static_argnums=(2, 3))
def _box(leaf: jax.Array, starts: jax.Array, shape: tuple[int, ...], sharding: NamedSharding | None) -> jax.Array:
    found = jax.lax.dynamic_slice(leaf, tuple(starts), shape)
    return found if sharding is None else jax.lax.with_sharding_constraint(found, sharding)
