"""Low-rank adapters (LoRA) as part of a policy: made, merged into the weights, and read and written as PEFT folders.

An adapter's two matrices are leaves `lora_a` (in, r) and `lora_b` (r, out) beside the `kernel` they belong to, stacked
over layers like it. `layers.Linear` computes with them unmerged, in the sampler as in the learner.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vero_jax.checkpoints.weights import load_params
from vero_jax.config import LoRASettings
from vero_jax.errors import UserError
from vero_jax.models.config import ModelConfig
from vero_jax.models.layers import LORA_TARGETS, LoRA
from vero_jax.models.policy import ModelDef, ParamPath, Params, join_params, split_params
from vero_jax.runtime.output_folder import new_folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"

_MODULES: Mapping[tuple[str, str], str] = {
    ("attn", "q"): "self_attn.q_proj",
    ("attn", "k"): "self_attn.k_proj",
    ("attn", "v"): "self_attn.v_proj",
    ("attn", "out"): "self_attn.o_proj",
    ("mlp", "gate"): "mlp.gate_proj",
    ("mlp", "up"): "mlp.up_proj",
    ("mlp", "down"): "mlp.down_proj",
}
"""Linear map of a layer here -> under transformers' decoder layer."""

_MATRICES = {"lora_a": "lora_A", "lora_b": "lora_B"}
_OTHER_METHODS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
"""Entries of PEFT's config that make an adapter something else than W + (alpha / r) A B, unless they are empty."""


def is_lora(path: ParamPath) -> bool:
    """Whether a leaf belongs to an adapter."""
    return path[-1] in _MATRICES


def lora_from(settings: LoRASettings, config: ModelConfig) -> LoRA | None:
    """The adapters that the settings ask for on this model; None when they are off.

    Raises:
        UserError: the model has no such linear map.
    """
    if not settings.rank:
        return None
    in_mlp = [target for target in settings.targets if _module(target).startswith("mlp.")]
    if in_mlp and not config.text.dense_layers:
        rest = [target for target in LORA_TARGETS if not _module(target).startswith("mlp.")]
        raise UserError(
            f"model.lora.targets names {', '.join(in_mlp)}, but every layer of this {config.model_type} has experts "
            f"in place of that MLP; set model.lora.targets={','.join(rest)}"
        )
    return LoRA(settings.rank, settings.alpha, tuple(target for target in LORA_TARGETS if target in settings.targets))


def load_adapted(
    folder: str | Path, model_def: ModelDef, shardings: Any = None, *, adapter: str | Path = "", seed: int = 0
) -> Params:
    """A policy's parameters, and beside them the adapters that the model has: a PEFT folder's, or new ones.

    Args:
        folder: the policy, as for `weights.load_params`.
        shardings: a tree of shardings of all parameters, or None for the default device.
        adapter: the PEFT folder; empty for new adapters.
        seed: of new adapters.
    """
    params = load_params(folder, model_def, shardings)
    if model_def.lora is None:
        return params
    places = None if shardings is None else split_params(shardings, is_lora)[0]
    leaves = load_adapter(adapter, model_def, places) if adapter else new_lora(model_def, seed, places)
    return join_params(params, leaves)


def new_lora(model_def: ModelDef, seed: int, shardings: Any = None) -> Params:
    """The leaves of untrained adapters: A uniform within 1 / sqrt(in), B zero, so that they change nothing yet.

    Args:
        shardings: a tree of shardings of these leaves, or None for the default device.
    """
    create = jax.jit(lambda: split_params(model_def.init_params(seed), is_lora)[0], out_shardings=shardings)
    return create()


def merge_lora(params: Params, lora: LoRA, dtype: Any = None) -> Params:
    """The tree without adapters whose kernels are W + (alpha / r) A B, computed in float32 and rounded once.

    Args:
        dtype: of the merged kernels; None keeps theirs.
    """
    flat = flatten_dict(params)
    merged = {}
    for path, leaf in flat.items():
        if is_lora(path):
            continue
        if path[-1] == "kernel" and (*path[:-1], "lora_a") in flat:
            a, b = (flat[(*path[:-1], name)] for name in _MATRICES)
            out_dtype = jnp.dtype(leaf.dtype if dtype is None else dtype)
            leaf = _merge(lora.scale, out_dtype, leaf.sharding)(leaf, a, b)
        merged[path] = leaf
    return unflatten_dict(merged)


@functools.cache
def _merge(scale: float, dtype: Any, sharding: Any) -> Any:
    def merge(
        kernels: Float[Array, "L in out"], a: Float[Array, "L in r"], b: Float[Array, "L r out"]
    ) -> Float[Array, "L in out"]:
        def one(layer: tuple[Array, Array, Array]) -> Array:
            kernel, a, b = (part.astype(jnp.float32) for part in layer)
            return (kernel + scale * jnp.matmul(a, b, precision="highest")).astype(dtype)

        return jax.lax.map(one, (kernels, a, b))  # one layer at a time: the stack in float32 would be large

    return jax.jit(merge, out_shardings=sharding)


def save_adapter(folder: str | Path, params: Params, model_def: ModelDef, base: str | Path) -> None:
    """Writes the adapters into a new folder as PEFT has them: adapter_config.json and adapter_model.safetensors.

    With several processes all must call this; the first one writes.

    Args:
        base: folder or hub id of the policy that the adapters belong to.
    """
    lora = _lora_of(model_def)
    tensors = {}
    for path, leaf in flatten_dict(split_params(params, is_lora)[0]).items():
        whole = leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
        for name, matrix in zip(_names(path, model_def.config), np.asarray(whole), strict=True):
            tensors[name] = np.ascontiguousarray(matrix.T)  # torch keeps linear maps as (out, in)
    if jax.process_index() == 0:
        with new_folder(Path(folder).expanduser()) as draft:
            save_file(tensors, draft / ADAPTER_FILE, metadata={"format": "pt"})
            text = json.dumps(_peft_config(lora, model_def.config, str(base)), indent=2)
            (draft / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def load_adapter(folder: str | Path, model_def: ModelDef, shardings: Any = None) -> Params:
    """The leaves of a PEFT folder's adapters, in the policy's own type.

    Args:
        shardings: a tree of shardings of these leaves, or None for the default device.

    Raises:
        UserError: the folder is not readable, another method than LoRA, or of another rank, alpha, targets or model.
    """
    folder, lora = Path(folder).expanduser(), _lora_of(model_def)
    found = adapter_lora(folder)
    for name in ("rank", "alpha", "targets"):
        theirs, ours = getattr(found, name), getattr(lora, name)
        if theirs != ours:
            theirs, ours = (",".join(value) if isinstance(value, tuple) else f"{value:g}" for value in (theirs, ours))
            raise UserError(
                f"the adapter in {folder} has {name} {theirs}, but this policy's adapters have {ours}; "
                f"set model.lora.{name}={theirs}"
            )
    leaves, places = flatten_dict(split_params(model_def.abstract_params(), is_lora)[0]), flatten_dict(shardings or {})
    wanted = {name for path in leaves for name in _names(path, model_def.config)}
    params = {}
    with _open(folder) as file:
        if differing := sorted(wanted ^ set(file.keys())):
            lacking = differing[0] in wanted
            raise UserError(
                f"the adapter in {folder} {'lacks' if lacking else 'has'} {differing[0]}"
                f"{'' if lacking else ', which this policy has no place for'}; use one of the same base model"
            )
        for path, leaf in leaves.items():
            value = np.empty(leaf.shape, leaf.dtype)
            for layer, name in enumerate(_names(path, model_def.config)):
                matrix = file.get_tensor(name).T
                if matrix.shape != leaf.shape[1:]:
                    raise UserError(
                        f"the adapter in {folder} has {name} of shape {list(matrix.T.shape)}, where this policy asks "
                        f"for {list(leaf.shape[:0:-1])}; use one of the same base model"
                    )
                value[layer] = matrix
            params[path] = _place(value, places.get(path))
    return unflatten_dict(params)


def _place(value: np.ndarray, sharding: Any) -> jax.Array:
    """Every process has the whole array and hands over the parts that its devices hold."""
    if sharding is None:
        return jax.device_put(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter, and no policy of its own."""
    return (Path(folder) / ADAPTER_CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def adapter_base(folder: str | Path) -> str:
    """Folder or hub id of the policy that a PEFT folder's adapter belongs to. UserError when it does not say."""
    base = _read_config(Path(folder)).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{Path(folder) / ADAPTER_CONFIG} has no base_model_name_or_path; add the base model there")
    return str(base)


def adapter_lora(folder: str | Path) -> LoRA:
    """Rank, alpha and targets of a PEFT folder's adapter.

    The targets are those that its tensors name: what its config says may be a regular expression over modules.

    Raises:
        UserError: the folder is not readable, or holds another kind of adapter.
    """
    folder = Path(folder).expanduser()
    config = _read_config(folder)
    other = [name for name in _OTHER_METHODS if config.get(name)]
    if str(config.get("bias", "none")) != "none":
        other.append("bias")
    if config.get("peft_type") != "LORA" or other:
        what = f"{other[0]}={config[other[0]]}" if other else f"peft_type={config.get('peft_type')}"
        raise UserError(f"{folder / ADAPTER_CONFIG} has {what}; only plain LoRA adapters can be read")
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        path = folder / ADAPTER_CONFIG
        raise UserError(f"{path} has no usable r and lora_alpha ({error!r}); copy it again") from None
    with _open(folder) as file:
        names = list(file.keys())
    modules = {part for name in names for part in name.split(".")}
    return LoRA(rank, alpha, tuple(target for target in LORA_TARGETS if target in modules))


def _lora_of(model_def: ModelDef) -> LoRA:
    if model_def.lora is None:
        raise ValueError("the model has no adapters")
    return model_def.lora


def _module(target: str) -> str:
    return next(module for module in _MODULES.values() if module.endswith(f".{target}"))


def _layers_prefix(config: ModelConfig) -> str:
    """Where transformers 5 keeps the decoder layers in memory, which is what PEFT names modules by."""
    return "model.layers" if config.vision is None else "model.language_model.layers"


def _names(path: ParamPath, config: ModelConfig) -> list[str]:
    """PEFT's names of one leaf's tensors, layer by layer of its stack."""
    numbers = config.text.sparse_layers if path[1] == "sparse_layers" else config.text.dense_layers
    module, matrix = _MODULES[path[2], path[3]], _MATRICES[path[-1]]
    return [f"base_model.model.{_layers_prefix(config)}.{number}.{module}.{matrix}.weight" for number in numbers]


def _peft_config(lora: LoRA, config: ModelConfig, base: str) -> dict[str, Any]:
    modules = "|".join(re.escape(_module(target)) for target in lora.targets)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        # A list of names would also match maps of the vision tower: Qwen2.5-VL's has a gate_proj of its own.
        "target_modules": rf"{re.escape(_layers_prefix(config))}\.\d+\.({modules})",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder.expanduser() / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a folder that PEFT or vero_jax wrote") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a PEFT config; give a folder that PEFT or vero_jax wrote")
    return config


def _open(folder: Path) -> Any:
    path = folder / ADAPTER_FILE
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); copy it again") from None
