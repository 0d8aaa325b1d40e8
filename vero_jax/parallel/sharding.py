"""One table from a parameter's logical axis names to mesh axes, and the shardings made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vero_jax.parallel.mesh import ROW_AXES

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "layers": None,  # scanned over
    "embed": ("fsdp", "expert"),  # over fsdp alone in the experts themselves, whose first dimension takes expert
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ffn": "tensor",
    "experts": "expert",
    "vision_embed": ("fsdp", "expert"),
    "vision_heads": "tensor",
    "vision_ffn": "tensor",
    "patch": None,
    "positions": None,
}


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The mesh axes of one parameter.

    A dimension is split over those of its mesh axes that divide it and that no earlier dimension of the same parameter
    has taken (a D x D matrix); without any it stays whole: a small or odd policy must run on any mesh.

    Raises:
      ValueError: a name is not in `RULES`, or there are not as many names as dimensions.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} logical axes {tuple(axes)} for a parameter of shape {tuple(shape)}")
    taken: set[str] = set()
    spec: list[str | tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        if name is not None and name not in RULES:
            raise ValueError(f"unknown logical axis {name!r}; known are {sorted(RULES)}")
        rule = (RULES[name] if name is not None else None) or ()
        split: list[str] = []
        for axis in (rule,) if isinstance(rule, str) else rule:
            if axis not in taken and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0:
                size //= mesh.shape[axis]
                split.append(axis)
        taken.update(split)
        spec.append(tuple(split) if len(split) > 1 else split[0] if split else None)
    return PartitionSpec(*spec)


def param_shardings(mesh: Mesh, logical_axes: Any, abstract_params: Any) -> Any:
    """A tree of `NamedSharding`s for a tree of parameters (same structure; leaves of `logical_axes` are tuples)."""
    return jax.tree.map(
        lambda leaf, axes: NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh)),
        abstract_params,
        logical_axes,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis (rows or groups) split over the row axes; the others whole."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))
