"""How a parameter is called on disk: one table per family from modules of the tree to Hugging Face's names.

Names are written as the model hub has them. Qwen2.5-VL is also read under the names that newer programs give it, and
Qwen3-VL under those that older ones do (`canonical_name`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from vero_jax.checkpoints.boxes import Box
from vero_jax.models.config import ModelConfig
from vero_jax.models.policy import ModelDef, ParamPath

ExpertLayout = Literal["hub", "transformers5"]
"""How the stacked experts lie on disk, under the same names: (E, D, 2F) and (E, F, D), or each expert transposed."""

_TEXT: Mapping[str, str] = {
    "embed": "embed_tokens",
    "norm": "norm",
    "layers.attn_norm": "layers.{}.input_layernorm",
    "layers.mlp_norm": "layers.{}.post_attention_layernorm",
    "layers.attn.q": "layers.{}.self_attn.q_proj",
    "layers.attn.k": "layers.{}.self_attn.k_proj",
    "layers.attn.v": "layers.{}.self_attn.v_proj",
    "layers.attn.out": "layers.{}.self_attn.o_proj",
    "layers.attn.q_norm": "layers.{}.self_attn.q_norm",
    "layers.attn.k_norm": "layers.{}.self_attn.k_norm",
    "layers.mlp.gate": "layers.{}.mlp.gate_proj",
    "layers.mlp.up": "layers.{}.mlp.up_proj",
    "layers.mlp.down": "layers.{}.mlp.down_proj",
    "layers.moe.router": "layers.{}.mlp.gate",
    "layers.moe.gate": "layers.{}.mlp.experts.gate_up_proj",
    "layers.moe.up": "layers.{}.mlp.experts.gate_up_proj",
    "layers.moe.down": "layers.{}.mlp.experts.down_proj",
}
"""Module of the language model -> name behind the prefix; `{}` is the layer."""

_VISION: Mapping[str, str] = {
    "patch_embed": "patch_embed.proj",
    "pos_embed": "pos_embed",
    "blocks.norm1": "blocks.{}.norm1",
    "blocks.norm2": "blocks.{}.norm2",
    "blocks.attn.q": "blocks.{}.attn.qkv",
    "blocks.attn.k": "blocks.{}.attn.qkv",
    "blocks.attn.v": "blocks.{}.attn.qkv",
    "blocks.attn.out": "blocks.{}.attn.proj",
    "blocks.mlp.fc1": "blocks.{}.mlp.linear_fc1",
    "blocks.mlp.fc2": "blocks.{}.mlp.linear_fc2",
    "merger.norm": "merger.norm",
    "merger.fc1": "merger.linear_fc1",
    "merger.fc2": "merger.linear_fc2",
    "deepstack.norm": "deepstack_merger_list.{}.norm",
    "deepstack.fc1": "deepstack_merger_list.{}.linear_fc1",
    "deepstack.fc2": "deepstack_merger_list.{}.linear_fc2",
}
_VISION_2_5: Mapping[str, str] = {
    **_VISION,
    "blocks.mlp.gate": "blocks.{}.mlp.gate_proj",
    "blocks.mlp.up": "blocks.{}.mlp.up_proj",
    "blocks.mlp.down": "blocks.{}.mlp.down_proj",
    "merger.norm": "merger.ln_q",
    "merger.fc1": "merger.mlp.0",
    "merger.fc2": "merger.mlp.2",
}

_FUSED: Mapping[str, tuple[int, int]] = {
    # One tensor on disk holds queries, keys and values, one after the other along its first axis.
    "vision.blocks.attn.q": (0, 3),
    "vision.blocks.attn.k": (1, 3),
    "vision.blocks.attn.v": (2, 3),
    # Of each expert the gate is the first half and the map up the second.
    "language.sparse_layers.moe.gate": (0, 2),
    "language.sparse_layers.moe.up": (1, 2),
}
"""Module -> (which part, number of parts) of a tensor that several parameters share."""

_PREFIXES: Mapping[str, tuple[str, str]] = {
    "qwen3_vl": ("model.language_model.", "model.visual."),
    "qwen3_vl_moe": ("model.language_model.", "model.visual."),
    "qwen2_5_vl": ("model.", "visual."),
    "qwen3": ("model.", ""),
    "qwen2": ("model.", ""),
}
"""Family -> what stands before the language model's names and before the vision tower's."""

_EXPERTS = ("language", "sparse_layers", "moe")
_ENDINGS = {"kernel": ".weight", "bias": ".bias", "scale": ".weight", "embedding": ".weight"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one layer of one parameter lies on disk: part of a tensor, and whether it lies transposed there."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor on disk."""
    layer: int | None = None
    """Index into the parameter's leading axis; None when it is not stacked."""
    part: int = 0
    parts: int = 1
    axis: int = 0
    """The axis that the parts share."""
    transposed: bool = False
    """The last two axes are exchanged: torch keeps linear maps as (out, in)."""
    view: tuple[int, ...] = ()
    """What the tensor is read as: `shape`, or fewer axes where trailing ones belong together (a convolution)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "view", self.view or self.shape)

    @property
    def region(self) -> Box:
        """The part of the view that is this parameter's."""
        width = self.view[self.axis] // self.parts
        box = [(0, size) for size in self.view]
        box[self.axis] = (self.part * width, (self.part + 1) * width)
        return tuple(box)

    def to_view(self, box: Box) -> Box:
        """The place in the view of a box of the parameter (without its layer axis)."""
        moved = list(_swapped(box) if self.transposed else box)
        offset = self.region[self.axis][0]
        moved[self.axis] = (moved[self.axis][0] + offset, moved[self.axis][1] + offset)
        return tuple(moved)

    def from_view(self, box: Box) -> Box:
        """The opposite of `to_view`, for a box that lies in `region`."""
        moved = list(box)
        offset = self.region[self.axis][0]
        moved[self.axis] = (moved[self.axis][0] - offset, moved[self.axis][1] - offset)
        return tuple(_swapped(moved) if self.transposed else moved)

    def turned(self, values: np.ndarray) -> np.ndarray:
        """Values of the view as the parameter has them, or the other way; no copy."""
        return np.swapaxes(values, -1, -2) if self.transposed else values

    def to_param(self, tensor: np.ndarray) -> np.ndarray:
        """This parameter (one layer of it) from the whole tensor; no copy."""
        region = tuple(slice(*interval) for interval in self.region)
        return self.turned(tensor.reshape(self.view)[region])


def _swapped(box: Sequence[tuple[int, int]]) -> Box:
    return (*box[:-2], box[-1], box[-2])


def sources(model_def: ModelDef, experts: ExpertLayout = "hub") -> dict[ParamPath, list[Source]]:
    """For every parameter the tensors on disk it is made of: one, or one per layer. Adapters have none."""
    config = model_def.config
    found: dict[ParamPath, list[Source]] = {}
    for path, leaf in stored_params(model_def).items():
        module, name = _disk_name(config, path)
        part, parts = _FUSED.get(module, (0, 1))
        turned_experts = path[:-1] == _EXPERTS and experts == "transformers5"
        transposed = path[-1] == "kernel" or turned_experts
        stacked = "{}" in name
        shape = leaf.shape[1:] if stacked else leaf.shape
        if transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
        axis = 0
        if parts > 1:
            # Experts are along the first axis; what they share is split along the map's outputs.
            axis = (1 if turned_experts else 2) if path[:-1] == _EXPERTS else 0
            shape = (*shape[:axis], shape[axis] * parts, *shape[axis + 1 :])
        view = shape
        if path == ("vision", "patch_embed", "kernel") and config.vision is not None:
            vision = config.vision
            shape = (shape[0], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        numbers = enumerate(_layers(config, path, leaf.shape)) if stacked else [(None, None)]
        found[path] = [
            Source(name.format(layer), shape, index, part, parts, axis, transposed, view) for index, layer in numbers
        ]
    return found


def disk_tensors(model_def: ModelDef, experts: ExpertLayout = "hub") -> dict[str, list[tuple[ParamPath, Source]]]:
    """For every tensor on disk the parameters it is made of, in the order of its parts."""
    return by_tensor(sources(model_def, experts))


def by_tensor(layout: Mapping[ParamPath, Sequence[Source]]) -> dict[str, list[tuple[ParamPath, Source]]]:
    """A layout the other way round: `disk_tensors` of any of them."""
    tensors: dict[str, list[tuple[ParamPath, Source]]] = {}
    for path, layers in layout.items():
        for source in layers:
            tensors.setdefault(source.name, []).append((path, source))
    for pieces in tensors.values():
        pieces.sort(key=lambda piece: piece[1].part)
    return tensors


def to_disk(tensors: Mapping[ParamPath, Any], pieces: list[tuple[ParamPath, Source]]) -> np.ndarray:
    """One tensor on disk from (flattened) parameters, or from their gradients, which have the same layout.

    Works on global arrays of several processes too, if all of them call it.
    """
    parts = [source.turned(_fetch(tensors[path], source.layer)) for path, source in pieces]
    source = pieces[0][1]
    return np.ascontiguousarray(np.concatenate(parts, axis=source.axis).reshape(source.shape))


def canonical_name(name: str, family: str = "qwen3_vl") -> str:
    """A tensor's name as this package writes it for the family, from any of the names that are in use."""
    if family not in ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"):
        return name
    text, visual = _PREFIXES[family]
    for prefix in ("model.visual.", "visual."):
        if name.startswith(prefix):
            return visual + name.removeprefix(prefix)
    for prefix in ("model.language_model.", "model."):
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.startswith(("layers.", "embed_tokens.", "norm.")):
            return text + rest
    return name


def embedding_name(family: str) -> str:
    """The token embeddings, which a tied head repeats."""
    return _PREFIXES[family][0] + "embed_tokens.weight"


def expert_layout(model_def: ModelDef, shapes: Mapping[str, tuple[int, ...]]) -> ExpertLayout:
    """Which layout a checkpoint's experts have, from the shapes of its tensors; "hub" where there are none.

    Both tensors of a layer are looked at together: if D = 2F the first fits both layouts, if D = F the second, and
    never both.
    """
    if not model_def.config.text.sparse_layers:
        return "hub"

    def fits(layout: ExpertLayout) -> bool:
        wanted = sources(model_def, layout)
        paths = [(*_EXPERTS, name) for name in ("gate", "down")]
        found = [(shapes.get(wanted[path][0].name), wanted[path][0].shape) for path in paths]
        return all(there in (None, asked) for there, asked in found)

    return "transformers5" if fits("transformers5") and not fits("hub") else "hub"


def stored_params(model_def: ModelDef) -> dict[ParamPath, jax.ShapeDtypeStruct]:
    """The (flattened) parameters that a checkpoint holds: all but the adapters."""
    flat = flatten_dict(model_def.abstract_params())
    return {path: leaf for path, leaf in flat.items() if not path[-1].startswith("lora_")}


def _disk_name(config: ModelConfig, path: ParamPath) -> tuple[str, str]:
    """(module, name on disk with `{}` for the layer)."""
    text, visual = _PREFIXES[config.model_type]
    ending = _ENDINGS.get(path[-1], "")
    module = ".".join(path[:-1] if ending else path)
    if module == "head":
        return module, "lm_head" + ending
    room, _, rest = module.partition(".")
    if room == "language":
        return module, text + _TEXT[rest.replace("sparse_layers.", "layers.", 1)] + ending
    table = _VISION_2_5 if config.model_type == "qwen2_5_vl" else _VISION
    return module, visual + table[rest] + ending


def _layers(config: ModelConfig, path: ParamPath, shape: Sequence[int]) -> Sequence[int]:
    """The number on disk of every entry of a stack."""
    if path[:2] == ("language", "layers"):
        return config.text.dense_layers
    if path[:2] == ("language", "sparse_layers"):
        return config.text.sparse_layers
    return range(shape[0])


def _fetch(param: Any, layer: int | None) -> np.ndarray:
    value = param if layer is None else param[layer]
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)
