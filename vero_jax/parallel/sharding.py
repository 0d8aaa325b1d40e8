"""One table from a parameter's logical axis names to mesh axes, and the shardings made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vero_jax.parallel.mesh import ROW_AXES, row_shards

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


def received_bytes(arrays: Any, shardings: Any) -> float:
    """What moving arrays to other shardings brings to a device that it does not hold already; of the device that gets
    the most, and no more than once however the compiler does it.

    Args:
      arrays: a tree of arrays, or of shapes with types and shardings.
      shardings: the same tree of where they shall lie, on the same devices.
    """
    totals: dict[jax.Device, float] = {}

    def add(array: Any, target: NamedSharding) -> None:
        before = array.sharding.devices_indices_map(array.shape)
        for device, wanted in target.devices_indices_map(array.shape).items():
            size = overlap = np.dtype(array.dtype).itemsize
            for dim, new, old in zip(array.shape, wanted, before[device], strict=True):
                (low, high, _), (old_low, old_high, _) = new.indices(dim), old.indices(dim)
                size *= high - low
                overlap *= max(min(high, old_high) - max(low, old_low), 0)
            totals[device] = totals.get(device, 0.0) + size - overlap

    jax.tree.map(add, arrays, shardings)
    return max(totals.values(), default=0.0)


def split_tokens(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Between layers: rows over the row axes, tokens over tensor, so that nothing that is kept there is kept twice.

    Sequence parallelism (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2): what tensor parallelism would add
    up on every device is scattered over them behind a layer, and gathered before the next one's products; the bytes
    that go round are the same. Does nothing where no mesh is named (`models.attention.on_mesh`) or sizes don't divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or mesh.shape["tensor"] == 1:
        return x
    if x.shape[0] % row_shards(mesh) or x.shape[1] % mesh.shape["tensor"]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES, "tensor"))
