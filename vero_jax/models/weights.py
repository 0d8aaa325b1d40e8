"""Parameters from and to safetensors under Hugging Face's names, every tensor accounted for.

One table relates the modules of the parameter tree to the names on disk. Tensors are read one at a time and stacked
layer by layer, so reading takes the memory of the parameters and of one stacked tensor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # its import teaches numpy the name bfloat16, which safetensors asks for
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vero_jax.errors import UserError
from vero_jax.models.policy import ModelDef, Params

ParamPath = tuple[str, ...]

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FLOATS = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
}

_LAYER = "model.language_model.layers.{}."
_BLOCK = "model.visual.blocks.{}."
_TAP = "model.visual.deepstack_merger_list.{}."
MODULES: Mapping[str, str | tuple[str, int, int]] = {
    "head": "lm_head",
    "language.embed": "model.language_model.embed_tokens",
    "language.norm": "model.language_model.norm",
    "language.layers.attn_norm": _LAYER + "input_layernorm",
    "language.layers.mlp_norm": _LAYER + "post_attention_layernorm",
    "language.layers.attn.q": _LAYER + "self_attn.q_proj",
    "language.layers.attn.k": _LAYER + "self_attn.k_proj",
    "language.layers.attn.v": _LAYER + "self_attn.v_proj",
    "language.layers.attn.out": _LAYER + "self_attn.o_proj",
    "language.layers.attn.q_norm": _LAYER + "self_attn.q_norm",
    "language.layers.attn.k_norm": _LAYER + "self_attn.k_norm",
    "language.layers.mlp.gate": _LAYER + "mlp.gate_proj",
    "language.layers.mlp.up": _LAYER + "mlp.up_proj",
    "language.layers.mlp.down": _LAYER + "mlp.down_proj",
    "vision.patch_embed": "model.visual.patch_embed.proj",
    "vision.pos_embed": "model.visual.pos_embed",
    "vision.blocks.norm1": _BLOCK + "norm1",
    "vision.blocks.norm2": _BLOCK + "norm2",
    # One tensor on disk holds queries, keys and values, one after the other along its first axis.
    "vision.blocks.attn.q": (_BLOCK + "attn.qkv", 0, 3),
    "vision.blocks.attn.k": (_BLOCK + "attn.qkv", 1, 3),
    "vision.blocks.attn.v": (_BLOCK + "attn.qkv", 2, 3),
    "vision.blocks.attn.out": _BLOCK + "attn.proj",
    "vision.blocks.mlp.fc1": _BLOCK + "mlp.linear_fc1",
    "vision.blocks.mlp.fc2": _BLOCK + "mlp.linear_fc2",
    "vision.merger.norm": "model.visual.merger.norm",
    "vision.merger.fc1": "model.visual.merger.linear_fc1",
    "vision.merger.fc2": "model.visual.merger.linear_fc2",
    "vision.deepstack.norm": _TAP + "norm",
    "vision.deepstack.fc1": _TAP + "linear_fc1",
    "vision.deepstack.fc2": _TAP + "linear_fc2",
}
"""Module of the parameter tree -> name on disk, or (name, which part, number of parts). `{}` is the layer."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one layer of one parameter lies on disk."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor on disk."""
    layer: int | None = None
    """Index into the parameter's leading axis; None when it is not stacked."""
    part: int = 0
    parts: int = 1
    transposed: bool = False
    """torch keeps linear maps as (out, in)."""

    def to_param(self, tensor: np.ndarray) -> np.ndarray:
        if self.parts > 1:
            tensor = np.split(tensor, self.parts, axis=0)[self.part]
        if self.transposed:
            tensor = tensor.reshape(len(tensor), -1).T  # the patch embedding is a convolution, (out, C, T, p, p)
        return tensor


def sources(model_def: ModelDef) -> dict[ParamPath, list[Source]]:
    """For every parameter the tensors on disk it is made of: one, or one per layer."""
    vision = model_def.config.vision
    found: dict[ParamPath, list[Source]] = {}
    for path, leaf in flatten_dict(model_def.abstract_params()).items():
        entry = MODULES[".".join(path[:-1])]
        name, part, parts = (entry, 0, 1) if isinstance(entry, str) else entry
        name += ".bias" if path[-1] == "bias" else ".weight"
        stacked = "{}" in name
        shape = leaf.shape[1:] if stacked else leaf.shape
        transposed = path[-1] == "kernel"
        if transposed:
            shape = shape[::-1]
        if path[:2] == ("vision", "patch_embed") and transposed:
            shape = (shape[0], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        shape = (shape[0] * parts, *shape[1:])
        layers = range(leaf.shape[0]) if stacked else [None]
        found[path] = [Source(name.format(layer), shape, layer, part, parts, transposed) for layer in layers]
    return found


def disk_tensors(model_def: ModelDef) -> dict[str, list[tuple[ParamPath, Source]]]:
    """For every tensor on disk the parameters it is made of, in the order of its parts."""
    tensors: dict[str, list[tuple[ParamPath, Source]]] = {}
    for path, layers in sources(model_def).items():
        for source in layers:
            tensors.setdefault(source.name, []).append((path, source))
    for pieces in tensors.values():
        pieces.sort(key=lambda piece: piece[1].part)
    return tensors


def to_disk(tensors: Mapping[ParamPath, Any], pieces: list[tuple[ParamPath, Source]]) -> np.ndarray:
    """One tensor on disk from (flattened) parameters, or from their gradients, which have the same layout.

    Works on global arrays of several processes too, if all of them call it.
    """
    parts = [_fetch(tensors[path], source.layer) for path, source in pieces]
    source = pieces[0][1]
    if source.transposed:
        parts = [part.T for part in parts]
    return np.ascontiguousarray(np.concatenate(parts, axis=0).reshape(source.shape))


class Checkpoint:
    """The tensors of a folder: which there are, their shapes, and each on demand. A context manager."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        self._place: dict[str, tuple[str, str]] = {}
        try:
            for file, names in self._listing().items():
                self._open(file, names)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        return set(self._place)

    def file(self, name: str) -> Path:
        return self.folder / self._place[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> np.dtype:
        code = self._slice(name).get_dtype()
        if code not in FLOATS:
            raise UserError(
                f"{name} in {self.file(name)} is stored as {code}; only {', '.join(FLOATS)} are supported, "
                "use a checkpoint that is not quantised"
            )
        return FLOATS[code]

    def read(self, name: str) -> np.ndarray:
        file, stored = self._place[name]
        try:
            return self._files[file].get_tensor(stored)
        except SafetensorError as error:
            raise UserError(f"{name} in {self.folder / file} cannot be read ({error}); copy the file again") from None

    def _slice(self, name: str) -> Any:
        file, stored = self._place[name]
        return self._files[file].get_slice(stored)

    def _listing(self) -> dict[str, set[str]]:
        """Files, each with the names that the index promises in it (none without an index)."""
        index = self.folder / INDEX_FILE
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files: dict[str, set[str]] = {}
                for name, file in weight_map.items():
                    files.setdefault(file, set()).add(name)
                return files
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index} is not a valid index ({error!r}); copy the checkpoint again") from None
        if (self.folder / SINGLE_FILE).is_file():
            return {SINGLE_FILE: set()}
        others = sorted(path.name for path in self.folder.glob("*.bin")) if self.folder.is_dir() else []
        hint = (
            f"; it has {', '.join(others[:3])}, which is torch's own format: convert it to safetensors"
            if others
            else ""
        )
        raise UserError(f"{self.folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")

    def _open(self, file: str, promised: set[str]) -> None:
        path = self.folder / file
        if not path.is_file():
            raise UserError(f"{path} is missing, though {INDEX_FILE} lists it; copy the checkpoint again")
        try:
            handle = self._stack.enter_context(safe_open(path, framework="np"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a readable safetensors file ({error}); copy it again") from None
        self._files[file] = handle
        stored = set(handle.keys())
        if promised - stored:
            raise UserError(f"{path} lacks {_few(promised - stored)}, which {INDEX_FILE} says it holds")
        for name in stored:
            self._place[canonical_name(name)] = (file, name)


def canonical_name(name: str) -> str:
    """Today's name of a tensor: checkpoints written before transformers 4.52 have no common `model.` in front."""
    if name.startswith("visual."):
        return "model." + name
    for part in ("layers.", "embed_tokens.", "norm."):
        if name.startswith("model." + part):
            return "model.language_model." + name.removeprefix("model.")
    return name


def load_params(folder: str | Path, model_def: ModelDef, shardings: Any = None) -> Params:
    """Reads a checkpoint into a tree of parameters of `param_dtype`.

    Args:
        folder: with model.safetensors, or shards and their index.
        shardings: a tree of shardings of the same structure as the parameters; None puts all on the default device.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape than the config asks for, or a file is unreadable.
    """
    with Checkpoint(folder) as checkpoint:
        wanted = sources(model_def)
        _account(checkpoint, wanted)
        places = {} if shardings is None else flatten_dict(shardings)
        params = {}
        for path, leaf in flatten_dict(model_def.abstract_params()).items():
            value = np.empty(leaf.shape, leaf.dtype)
            for source in wanted[path]:
                value[... if source.layer is None else source.layer] = source.to_param(checkpoint.read(source.name))
            params[path] = _place(value, places.get(path))
        return unflatten_dict(params)


def _place(value: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jax.device_put(value)
    # Every process has read the whole tensor and hands over only the parts that its devices hold.
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _account(checkpoint: Checkpoint, wanted: Mapping[ParamPath, list[Source]]) -> None:
    """Compares the names and shapes on disk with those of the config."""
    shapes = {source.name: source.shape for layers in wanted.values() for source in layers}
    names = checkpoint.names
    embedding = "model.language_model.embed_tokens.weight"
    if "lm_head.weight" in names - set(shapes) and embedding in names:
        # Some tools write a tied head a second time. It may be left out only if it says the same.
        if not np.array_equal(checkpoint.read("lm_head.weight"), checkpoint.read(embedding)):
            raise UserError(
                f"{checkpoint.folder}: lm_head.weight differs from the token embeddings, but config.json says "
                "tie_word_embeddings; set it to false there if the head is its own"
            )
        names = names - {"lm_head.weight"}
    complaints = []
    if missing := set(shapes) - names:
        complaints.append(f"lacks {_few(missing)}")
    if unexpected := names - set(shapes):
        complaints.append(f"has {_few(unexpected)}, which the model does not know")
    for name in sorted(names & set(shapes)):
        checkpoint.dtype(name)
        if checkpoint.shape(name) != shapes[name]:
            complaints.append(
                f"has {name} of shape {list(checkpoint.shape(name))} in {checkpoint.file(name).name}, where "
                f"config.json asks for {list(shapes[name])}"
            )
            break
    if complaints:
        raise UserError(f"the checkpoint does not fit the config: {checkpoint.folder} {'; it '.join(complaints)}")


def stored_dtype(folder: str | Path) -> np.dtype:
    """The widest type among a checkpoint's tensors."""
    with Checkpoint(folder) as checkpoint:
        return max((checkpoint.dtype(name) for name in checkpoint.names), key=lambda dtype: dtype.itemsize)


def save_params(
    folder: str | Path, model_def: ModelDef, params: Params, max_shard_bytes: int = 5 * 10**9, dtype: Any = None
) -> None:
    """Writes parameters under Hugging Face's names, replacing the weights that the folder holds.

    With several processes all must call it; the first one writes.

    Args:
        max_shard_bytes: start a new file before one grows larger than this. One file gets no index.
        dtype: of the tensors on disk; None keeps that of the parameters.
    """
    folder = Path(folder).expanduser()
    writer = jax.process_index() == 0
    leaves = flatten_dict(params)
    tensors = disk_tensors(model_def)
    dtypes = {
        name: np.dtype(dtype) if dtype is not None else np.dtype(leaves[pieces[0][0]].dtype)
        for name, pieces in tensors.items()
    }
    sizes = {name: math.prod(pieces[0][1].shape) * dtypes[name].itemsize for name, pieces in tensors.items()}
    shards = list(_shards(sizes, max_shard_bytes))
    files = (
        [SINGLE_FILE]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    if writer:
        folder.mkdir(parents=True, exist_ok=True)
        for old in [folder / SINGLE_FILE, folder / INDEX_FILE, *folder.glob("model-*-of-*.safetensors")]:
            old.unlink(missing_ok=True)
    for file, names in zip(files, shards, strict=True):
        values = {}
        for name in names:
            value = to_disk(leaves, tensors[name])
            if writer:
                values[name] = value.astype(dtypes[name], copy=False)
        if writer:
            # transformers refuses a file that does not say which framework's layout it has.
            save_file(values, folder / file, metadata={"format": "pt"})
    if writer and len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _fetch(param: Any, layer: int | None) -> np.ndarray:
    value = param if layer is None else param[layer]
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)


def _shards(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, cut where a file would grow over the limit; a single larger tensor has a file of its own."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _few(names: set[str], shown: int = 4) -> str:
    listed = sorted(names)
    rest = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + rest
