"""Parameters on their devices, filled block by block while a checkpoint is read; no second copy is held anywhere."""

from __future__ import annotations

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vero_jax.checkpoints.boxes import Box, aligned_empty, copy_into, extents, slices
from vero_jax.models.policy import ParamPath


class Placement:
    """A sink for `transfer.read_into` that becomes one tree of jax arrays.

    Every process fills the parts that its own devices hold, and a part that several of them hold is read once.

    Args:
        params: shape and type of every parameter.
        shardings: where each lies; those without one go to the default device.
        on_device: fill the parts by small programs on the device instead of in memory of this host that the CPU
            backend takes over; None chooses by the platform.
    """

    def __init__(
        self,
        params: dict[ParamPath, jax.ShapeDtypeStruct],
        shardings: dict[ParamPath, jax.sharding.Sharding],
        on_device: bool | None = None,
    ) -> None:
        self._params = {
            path: _Parts(leaf, shardings.get(path), jax.default_backend() != "cpu" if on_device is None else on_device)
            for path, leaf in params.items()
        }

    def wanted(self, path: ParamPath) -> list[Box]:
        return self._params[path].boxes

    def write(self, path: ParamPath, number: int, box: Box, values: np.ndarray) -> None:
        self._params[path].write(number, box, values)

    def finish(self) -> dict[ParamPath, jax.Array]:
        """The arrays; call it once, when everything is written."""
        return {path: self._params.pop(path).finish() for path in list(self._params)}


class _Parts:
    """The parts of one parameter on the devices of this process: allocated when the first block comes."""

    def __init__(self, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding | None, on_device: bool) -> None:
        self._leaf, self._sharding, self._on_device = leaf, sharding, on_device
        self._dtype = np.dtype(leaf.dtype)
        holders: dict[Box, list[Any]] = {}
        if sharding is None:
            holders[tuple((0, size) for size in leaf.shape)] = [None]
        else:
            for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
                bounds = (piece.indices(size) for piece, size in zip(index or (), leaf.shape, strict=True))
                holders.setdefault(tuple((start, stop) for start, stop, _ in bounds), []).append(device)
        self.boxes = list(holders)
        self._devices = list(holders.values())
        self._buffers: list[Any] = [None] * len(self.boxes)
        self._locks = [threading.Lock() for _ in self.boxes]

    def write(self, number: int, box: Box, values: np.ndarray) -> None:
        place = slices(box, self.boxes[number])
        if not self._on_device:
            with self._locks[number]:
                if self._buffers[number] is None:
                    self._buffers[number] = aligned_empty(extents(self.boxes[number]), self._dtype)
            copy_into(self._buffers[number][place], values)
            return
        # The device turns what torch keeps the other way round; the host hands over the numbers as they were read.
        turned = values.ndim > 1 and not values.flags.c_contiguous
        block = np.ascontiguousarray(np.swapaxes(values, -1, -2) if turned else values)
        starts = np.array([piece.start for piece in place], np.int32)
        with self._locks[number]:
            if self._buffers[number] is None:
                shape = extents(self.boxes[number])
                self._buffers[number] = [
                    jnp.zeros(shape, self._dtype, device=device) for device in self._devices[number]
                ]
            self._buffers[number] = [
                _placed(buffer, jax.device_put(block, device), starts, turned)
                for buffer, device in zip(self._buffers[number], self._devices[number], strict=True)
            ]
            # What is on its way to the device counts as memory in use; the next block waits for it.
            jax.block_until_ready(self._buffers[number])

    def finish(self) -> jax.Array:
        parts: list[jax.Array] = []
        for number, devices in enumerate(self._devices):
            buffer, self._buffers[number] = self._buffers[number], None
            # On the CPU this takes over the memory, which is aligned for it, and never writes to it.
            parts += buffer if self._on_device else [jax.device_put(buffer, device) for device in devices]
        if self._sharding is None:
            return parts[0]
        return jax.make_array_from_single_device_arrays(self._leaf.shape, self._sharding, parts, dtype=self._leaf.dtype)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _placed(buffer: jax.Array, block: jax.Array, starts: jax.Array, turned: bool) -> jax.Array:
    if turned:
        block = jnp.swapaxes(block, -1, -2)
    return jax.lax.dynamic_update_slice(buffer, block.astype(buffer.dtype), tuple(starts))
