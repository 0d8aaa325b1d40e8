"""What lives on the device during a sampling call, and how it lies on the mesh.

Axes: L layers, G groups, N samples per group, S prompt tokens, R response tokens, K key-value heads, C head dimension.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from vero_jax.parallel.mesh import ROW_AXES


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """The prompts of a call: their keys and values, held once per group and read by all its samples."""

    k: Float[Array, "L G K S C"]
    v: Float[Array, "L G K S C"]
    lengths: Int32[Array, "G"]
    next_positions: Int32[Array, "G"]
    """Rotary position of each prompt's first response token."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """The responses so far. Donated to every program that continues it."""

    k: Float[Array, "L G N K R C"]
    """Keys of the tokens drawn so far, but for the last one, which the next step computes."""
    v: Float[Array, "L G N K R C"]
    tokens: Int32[Array, "G N R"]
    logprobs: Float32[Array, "G N R"]
    last: Int32[Array, "G N"]
    done: Bool[Array, "G N"]
    count: Int32[Array, ""]
    """Tokens drawn so far, for every sample (the finished draw padding)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """How tokens are drawn, as arrays: another temperature needs no other program. Keys are per sample."""

    keys: UInt32[Array, "G N 2"]
    temperature: Float32[Array, ""]
    top_k: Int32[Array, ""]
    top_p: Float32[Array, ""]
    min_p: Float32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shardings: groups over the data axes; key-value heads over the tensor axis where it divides them."""

    mesh: Mesh
    kv_heads: int

    def _at(self, *spec: object) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    @property
    def whole(self) -> NamedSharding:
        return self._at()

    @property
    def rows(self) -> NamedSharding:
        return self._at(ROW_AXES)

    @property
    def heads(self) -> str | None:
        size = self.mesh.shape["tensor"]
        return "tensor" if size > 1 and self.kv_heads % size == 0 else None

    def prefilled(self) -> Prefilled:
        kv = self._at(None, ROW_AXES, self.heads)
        return Prefilled(kv, kv, self.rows, self.rows)  # type: ignore[arg-type]

    def decoding(self) -> Decoding:
        kv = self._at(None, ROW_AXES, None, self.heads)
        rows = self.rows
        return Decoding(kv, kv, rows, rows, rows, rows, self.whole)  # type: ignore[arg-type]

    def choice(self) -> Choice:
        whole = self.whole
        return Choice(self.rows, whole, whole, whole, whole)  # type: ignore[arg-type]
