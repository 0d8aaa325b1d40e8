"""`ModelDef`: a model without its numbers. Static and hashable; it turns a plain tree of parameters into a model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from vero_jax.models.config import ModelConfig
from vero_jax.models.layers import LoRA, Remat
from vero_jax.models.qwen_vl import QwenVL
from vero_jax.parallel.sharding import param_shardings

Params = dict[str, Any]
"""Nested dicts of arrays. Parameters of a stack of layers have a leading layer axis."""

ParamPath = tuple[str, ...]
"""Where a parameter is in the tree, such as ("language", "norm", "scale")."""


def split_params(params: Params, belongs: Callable[[ParamPath], bool]) -> tuple[Params, Params]:
    """The tree of the leaves whose path belongs, and that of all others; `join_params` puts them together again."""
    flat = flatten_dict(params)
    inside = {path: leaf for path, leaf in flat.items() if belongs(path)}
    return unflatten_dict(inside), unflatten_dict({path: leaf for path, leaf in flat.items() if path not in inside})


def join_params(*parts: Params) -> Params:
    """One tree of the leaves of several; of a leaf that two have, the later one's. The arrays are not copied."""
    return unflatten_dict({path: leaf for part in parts for path, leaf in flatten_dict(part).items()})


@dataclasses.dataclass(frozen=True)
class ModelDef:
    """What must be known to compile the model.

    Attributes:
        config: sizes.
        dtype: of the activations, "float32" or "bfloat16".
        param_dtype: in which the parameters are kept.
        remat: what a layer keeps for the backward pass.
        lora: adapters beside the language model's linear maps, as leaves `lora_a` and `lora_b`; None for none.
    """

    config: ModelConfig
    dtype: Any = "float32"
    param_dtype: Any = "float32"
    remat: Remat = "products"
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        for name in ("dtype", "param_dtype"):
            object.__setattr__(self, name, jnp.dtype(getattr(self, name)))

    def bind(self, params: Params) -> QwenVL:
        """The model with these parameters; cheap, and made for use inside jit."""
        return nnx.merge(_abstract(self)[0], params)

    def abstract_params(self) -> Params:
        """The tree of parameters as `jax.ShapeDtypeStruct`s."""
        return nnx.to_pure_dict(_abstract(self)[1])

    def logical_axes(self) -> Params:
        """The same tree with a tuple of logical axis names (or None) per parameter; see parallel/sharding.py."""
        flat = nnx.to_flat_state(_abstract(self)[1])
        return unflatten_dict({path: variable.get_metadata()["axes"] for path, variable in flat})

    def shardings(self, mesh: Mesh) -> Params:
        """The same tree with where each parameter lies on a mesh, by the rules of parallel/sharding.py."""
        return param_shardings(mesh, self.logical_axes(), self.abstract_params())

    def init_params(self, seed: int, shardings: Any = None) -> Params:
        """New parameters, drawn on the device; the same for the same seed on any mesh.

        Args:
            shardings: a tree of shardings of the same structure, or None for the default device.
        """
        create = _create if shardings is None else jax.jit(_create, static_argnums=0, out_shardings=shardings)
        return create(self, jax.random.key(seed))

    def num_params(self) -> int:
        """How many numbers the parameters hold; a tied head counts once."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params()))

    def _module(self, rngs: nnx.Rngs) -> QwenVL:
        return QwenVL(
            self.config, dtype=self.dtype, param_dtype=self.param_dtype, remat=self.remat, lora=self.lora, rngs=rngs
        )


@functools.lru_cache(maxsize=32)
def _abstract(model_def: ModelDef) -> tuple[Any, Any]:
    module = nnx.eval_shape(lambda: model_def._module(nnx.Rngs(0)))
    return nnx.split(module)


@functools.partial(jax.jit, static_argnums=0)
def _create(model_def: ModelDef, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(model_def._module(nnx.Rngs(key))))
