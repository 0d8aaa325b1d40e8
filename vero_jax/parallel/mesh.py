"""The device mesh: axes (data, fsdp, expert, tensor) over whatever devices there are."""

from __future__ import annotations

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from vero_jax.config import MeshConfig
from vero_jax.errors import UserError

AXES = ("data", "fsdp", "expert", "tensor")
"""From far to near: devices whose numbers are close are linked best, and those of `tensor` talk most."""
ROW_AXES = ("data", "fsdp", "expert")
"""Rows and groups are split over all three: devices of fsdp and expert hold parts of the weights and work on different
rows. Only inside a mixture of experts do those along `expert` exchange tokens (models/expert_parallel.py)."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Builds the mesh. At most one axis may be -1 and takes what the others leave.

    The axis types are Auto on purpose: `jax.make_mesh` defaults to Explicit, where every array carries its sharding
    in its type; here the compiler places the activations between the constraints at block edges.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(devices) if devices is not None else jax.devices()
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"mesh sizes {dict(zip(AXES, sizes, strict=True))} must be positive, with at most one -1")
    known = 1
    for size in sizes:
        known *= size if size > 0 else 1
    if -1 in sizes:
        if len(devices) % known:
            given = " x ".join(f"mesh.{axis}" for axis, size in zip(AXES, sizes, strict=True) if size > 1)
            raise UserError(f"{given} needs a multiple of {known} devices; there are {len(devices)}")
        sizes[sizes.index(-1)] = len(devices) // known
    elif known != len(devices):
        raise UserError(f"mesh sizes multiply to {known}, but there are {len(devices)} devices; set one of them to -1")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Over how many parts the leading (row or group) axis is split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)
