"""The experts of a layer, computed by many devices: every device has its own tokens, and its share of the experts.

Along the mesh axis `expert` devices exchange tokens: each gathers those of its neighbours, computes what its own
experts make of them, and the sums are scattered back. Nothing is dropped and nothing has a capacity. A device sorts its
own assignments of tokens to experts once; neighbours read their part of that list, and go through it in chunks of one
static size, as many as there are assignments. So memory follows the usual share of a device, work the real one, and a
router that sends all tokens to one expert makes the program slow, not wrong.

Axes: B rows, T tokens in a row, D width, E experts, e of them on a device, F their hidden width, k experts of a token,
n tokens of a device, N of it and its neighbours, c assignments of a chunk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32

from vero_jax.models.layers import rounded_once
from vero_jax.parallel.mesh import ROW_AXES, row_shards
from vero_jax.parallel.sharding import partition_spec

INWARDS = ("experts", "embed", "ffn")
OUTWARDS = ("experts", "ffn", "embed")
"""Logical axes of the experts' maps."""

LEAST_CHUNK = 4096
"""Assignments of a chunk, at least: fewer leave the matrix units idle, and a step of decoding shall be one chunk."""

GRADIENT_BLOCK = 2048
"""Assignments of a block in the products that make the experts' gradients; each block reads and writes one expert's."""

CHUNKS = 4
"""Chunks of a device whose experts get no more than their share. With fewer, one assignment more costs more; with more,
the gradients of the experts are read and written more often."""

Experts = tuple[Float[Array, "E D F"], Float[Array, "E D F"], Float[Array, "E F D"]]
"""Gate, up and down."""


def experts_on_mesh(
    x: Float[Array, "B T D"],
    weights: Float32[Array, "B T k"],
    chosen: Int32[Array, "B T k"],
    experts: Experts,
    mesh: AbstractMesh,
) -> Float[Array, "B T D"]:
    """sum_j weights_j down_j(silu(gate_j(x)) up_j(x)) over each token's experts, summed in float32, rounded once.

    Differentiable in `x`, `weights` and `experts`. The backward pass computes gate and up again: how many of them a
    device has is known only when the program runs, so they can't be kept.

    Args:
      weights, chosen: of each token's experts, which are all different; E in place of an expert is none.
      experts: in any type; rounded to that of x before they travel.
      mesh: rows are split over its row axes if these divide them, and the experts' maps as `parallel.sharding` says.
    """
    gate = experts[0]
    by_expert, embed, ffn = partition_spec(INWARDS, gate.shape, mesh)
    embed = () if embed is None else (embed,) if isinstance(embed, str) else embed
    split = len(x) % row_shards(mesh) == 0
    layout = _Layout(mesh, split, by_expert, embed, ffn, len(gate), LEAST_CHUNK, GRADIENT_BLOCK)
    return _experts(x, weights, chosen, experts, layout)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Over which mesh axes things are split; hashable.

    Attributes:
      rows: whether rows are split over the row axes; else every device has all of them.
      experts, ffn: the axis of these dimensions of the experts' maps, or None.
      embed: the axes of their other dimension, over which they are gathered for use.
      count: E.
      least_chunk, block: `LEAST_CHUNK` and `GRADIENT_BLOCK`.
    """

    mesh: AbstractMesh
    rows: bool
    experts: str | None
    embed: tuple[str, ...]
    ffn: str | None
    count: int
    least_chunk: int
    block: int

    @property
    def shares(self) -> int:
        """Devices that share the experts."""
        return self.mesh.shape[self.experts] if self.experts else 1

    @property
    def peers(self) -> int:
        """Devices whose tokens are gathered."""
        return self.shares if self.rows else 1

    @property
    def by_row(self) -> P:
        return P(ROW_AXES if self.rows else None)

    @property
    def for_use(self) -> tuple[P, P, P]:
        """Of the experts' maps while they are used."""
        inwards = P(self.experts, None, self.ffn)
        return inwards, inwards, P(self.experts, self.ffn, None)

    @property
    def gradients(self) -> tuple[P, P, P]:
        """Of the maps' gradients, as they leave."""
        embed = self.embed if self.rows and self.embed else None
        inwards = P(self.experts, embed, self.ffn)
        return inwards, inwards, P(self.experts, self.ffn, embed)

    def gathered(self, x: Array) -> Array:
        """All tokens that this device's experts may get, from its own; a leading axis of tokens."""
        return jax.lax.all_gather(x, self.experts, tiled=True) if self.peers > 1 else x

    def returned(self, x: Array) -> Array:
        """Its own tokens' sums over all experts, from all tokens' sums over its own experts."""
        if self.peers > 1:
            x = jax.lax.psum_scatter(x, self.experts, tiled=True)
        elif self.experts:
            x = jax.lax.psum(x, self.experts)
        return jax.lax.psum(x, self.ffn) if self.ffn else x

    def reduced(self, gradient: Array, embed: int) -> Array:
        """The sum over all tokens of a map's gradient, split where the map is. `embed` is the number of that axis."""
        if not self.rows:
            return gradient
        if self.embed:
            gradient = jax.lax.psum_scatter(gradient, self.embed, scatter_dimension=embed, tiled=True)
        others = tuple(axis for axis in ROW_AXES if axis != self.experts and axis not in self.embed)
        return jax.lax.psum(gradient, others)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Some assignments to this device's experts, sorted by expert; those behind the last one are not `real`."""

    places: Int32[Array, "c"]
    """In the flat list of assignments 'N k'; N k where not real."""
    tokens: Int32[Array, "c"]
    """N where not real."""
    weights: Float32[Array, "c 1"]
    sizes: Int32[Array, "e"]
    """Assignments of each expert."""
    real: Bool[Array, "c 1"]

    def of(self, x: Float[Array, "N D"]) -> Float[Array, "c D"]:
        """The tokens' rows of x, zeros where not real."""
        return jnp.take(x, self.tokens, axis=0, mode="fill", fill_value=0)

    def only_real(self, x: Float[Array, "c X"]) -> Float[Array, "c X"]:
        """Products leave anything, on some platforms, in rows that belong to no expert."""
        return jnp.where(self.real, x, 0)


class _Assignments:
    """Which tokens go to this device's experts, as chunks; made inside shard_map.

    Every device's own list is sorted by expert, so this device's part of a neighbour's list is one run, and the
    assignments to one expert are one piece of each run, in order.
    """

    def __init__(self, weights: Float32[Array, "n k"], chosen: Int32[Array, "n k"], layout: _Layout) -> None:
        n, k = chosen.shape
        peers, count = layout.peers, layout.count
        here = count // layout.shares
        self.k, self.all = k, n * k * peers
        most = n * peers * min(k, here)  # a token's experts are all different
        usual = -(-self.all // (layout.shares * CHUNKS))
        self.rows = min(most, max(usual, layout.least_chunk))
        self.one_chunk = self.rows == most
        first = jax.lax.axis_index(layout.experts) * here if layout.experts else 0
        flat = chosen.reshape(-1)
        order = jnp.argsort(flat, stable=True).astype(jnp.int32)
        sizes = jnp.bincount(flat, length=count).astype(jnp.int32)
        self.order, self.weights = layout.gathered(order), layout.gathered(weights.reshape(-1))
        by_peer = layout.gathered(sizes).reshape(peers, count)
        starts = jnp.cumsum(by_peer, axis=1) - by_peer + jnp.arange(peers)[:, None] * (n * k)
        sizes, starts = (jax.lax.dynamic_slice_in_dim(x, first, here, 1).T for x in (by_peer, starts))
        self.peers, self.per_peer = peers, n * k
        self.ends = jnp.cumsum(sizes.reshape(-1))  # of the pieces 'e peers', in the order of this device's list
        self.shifts = starts.reshape(-1) - (self.ends - sizes.reshape(-1))
        self.total = self.ends[-1]

    def chunk(self, number: Int32[Array, ""] | int) -> _Chunk:
        start = number * self.rows
        index = start + jnp.arange(self.rows, dtype=jnp.int32)
        real = index < self.total
        piece = (index[:, None] >= self.ends).sum(1, dtype=jnp.int32)
        piece = jnp.minimum(piece, len(self.ends) - 1)
        at = index + self.shifts[piece]
        # A list names the assignments of its own device.
        places = jnp.take(self.order, at, mode="clip") + piece % self.peers * self.per_peer
        ends = jnp.clip(self.ends.reshape(-1, self.peers)[:, -1], start, start + self.rows)
        return _Chunk(
            jnp.where(real, places, self.all),
            jnp.where(real, places // self.k, self.all // self.k),
            jnp.where(real, jnp.take(self.weights, places, mode="clip"), 0.0)[:, None],
            jnp.diff(ends, prepend=jnp.asarray(start, ends.dtype)),
            real[:, None],
        )

    def fold(self, body: Callable[[_Chunk, Any], Any], carry: Any) -> Any:
        """body(chunk, carry) -> carry over all chunks that hold assignments."""
        if self.one_chunk:
            return body(self.chunk(0), carry)
        turns = (self.total + self.rows - 1) // self.rows
        return jax.lax.fori_loop(0, turns, lambda number, carry: body(self.chunk(number), carry), carry)


_TURNED = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
"""(c, F) times (e, D, F), transposed: (c, D)."""


def _turned_product(
    a: Float[Array, "c X"], b: Float[Array, "e Y X"], sizes: Int32[Array, "e"]
) -> Float32[Array, "c Y"]:
    return jax.lax.ragged_dot_general(a, b, sizes, _TURNED, preferred_element_type=jnp.float32)


def _with_products(
    totals: tuple[Float32[Array, "e X Y"], ...],
    pairs: tuple[tuple[Float[Array, "c X"], Float[Array, "c Y"]], ...],
    sizes: Int32[Array, "e"],
    block: int,
) -> tuple[Float32[Array, "e X Y"], ...]:
    """Adds to each total, for each expert, the product (X, Y) of its rows of a pair: the gradient of a map.

    A loop over blocks of rows that belong to one expert: of a ragged contraction XLA makes a product of all rows for
    each expert, on TPU too (16.0 times the operations for 16 experts, by its own count; libtpu 0.0.42).
    """
    c = len(pairs[0][0])
    block = min(c, block)
    ends, blocks = jnp.cumsum(sizes), -(-sizes // block)
    blocks_end = jnp.cumsum(blocks)

    def add(number: Array, totals: tuple) -> tuple:
        expert = (number >= blocks_end).sum(dtype=jnp.int32)
        end = ends[expert]
        start = end - sizes[expert] + (number - blocks_end[expert] + blocks[expert]) * block
        first = jnp.minimum(start, c - block)
        index = first + jnp.arange(block, dtype=jnp.int32)
        own = ((index >= start) & (index < jnp.minimum(start + block, end)))[:, None]

        def product(a: Array, b: Array) -> Float32[Array, "X Y"]:
            a, b = (jax.lax.dynamic_slice_in_dim(x, first, block) for x in (a, b))
            return jnp.matmul(jnp.where(own, a, 0).T, b, preferred_element_type=jnp.float32)

        return tuple(total.at[expert].add(product(*pair)) for total, pair in zip(totals, pairs, strict=True))

    return jax.lax.fori_loop(0, blocks_end[-1], add, totals)


def _activate(gate: Float[Array, "c F"], up: Float[Array, "c F"]) -> Float[Array, "c F"]:
    return rounded_once(jax.nn.silu, gate) * up


def _inwards(rows: Array, experts: Experts, sizes: Array) -> tuple[Float[Array, "c F"], Float[Array, "c F"]]:
    gate, up = (jax.lax.ragged_dot(rows, part, sizes) for part in experts[:2])
    return gate, up


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _rounded(x: Array, experts: Experts) -> Experts:
    """The maps in the activations' type."""
    gate, up, down = (part.astype(x.dtype) for part in experts)
    return gate, up, down


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _experts(x: Array, weights: Array, chosen: Array, experts: Experts, layout: _Layout) -> Array:
    return _forward(x, weights, chosen, experts, layout)[0]


def _forward(x: Array, weights: Array, chosen: Array, experts: Experts, layout: _Layout) -> tuple[Array, tuple]:
    def on_device(x: Array, weights: Array, chosen: Array, experts: Experts) -> Array:
        tokens = layout.gathered(_flat(x))
        own = _Assignments(_flat(weights), _flat(chosen), layout)
        # A part of a sum is rounded with the whole of it.
        kind = jnp.float32 if layout.ffn else x.dtype

        def add(chunk: _Chunk, out: Array) -> Array:
            hidden = chunk.only_real(_activate(*_inwards(chunk.of(tokens), experts, chunk.sizes)))
            made = jax.lax.ragged_dot(hidden, experts[2], chunk.sizes, preferred_element_type=kind)
            made = chunk.only_real(made.astype(jnp.float32)) * chunk.weights
            return out.at[chunk.tokens].add(made, mode="drop")

        out = own.fold(add, jnp.zeros(tokens.shape, jnp.float32))
        return layout.returned(out).astype(x.dtype).reshape(x.shape)

    rows = layout.by_row
    run = _sharded(on_device, layout, (rows, rows, rows, layout.for_use), rows)
    return run(x, weights, chosen, _rounded(x, experts)), (x, weights, chosen, experts)


def _backward(layout: _Layout, kept: tuple, d_out: Array) -> tuple:
    x, weights, chosen, experts = kept

    def on_device(x: Array, weights: Array, chosen: Array, experts: Experts, d_out: Array) -> tuple:
        tokens, d_sums = layout.gathered(_flat(x)), layout.gathered(_flat(d_out))
        own = _Assignments(_flat(weights), _flat(chosen), layout)

        def add(chunk: _Chunk, carry: tuple) -> tuple:
            d_tokens, d_weights, d_experts = carry
            rows, sizes, kind = chunk.of(tokens), chunk.sizes, x.dtype
            gate, up = (chunk.only_real(part) for part in _inwards(rows, experts, sizes))
            hidden, pull = jax.vjp(_activate, gate, up)
            d_made = chunk.of(d_sums)
            # With the weight left out: times the weight it is the gradient of hidden, times hidden the weight's.
            d_hidden = chunk.only_real(_turned_product(d_made, experts[2], sizes))
            d_weight = (d_hidden * hidden.astype(jnp.float32)).sum(-1)
            d_inwards = pull((d_hidden * chunk.weights).astype(kind))
            d_made = (d_made.astype(jnp.float32) * chunk.weights).astype(kind)
            by_gate, by_up = (_turned_product(d, part, sizes) for d, part in zip(d_inwards, experts[:2], strict=True))
            return (
                d_tokens.at[chunk.tokens].add(chunk.only_real(by_gate + by_up), mode="drop"),
                d_weights.at[chunk.places].set(d_weight, mode="drop"),
                _with_products(
                    d_experts, ((rows, d_inwards[0]), (rows, d_inwards[1]), (hidden, d_made)), sizes, layout.block
                ),
            )

        start = (
            jnp.zeros(tokens.shape, jnp.float32),
            jnp.zeros(own.all, jnp.float32),
            tuple(jnp.zeros(part.shape, jnp.float32) for part in experts),
        )
        d_tokens, d_weights, d_experts = own.fold(add, start)
        return (
            layout.returned(d_tokens).astype(x.dtype).reshape(x.shape),
            layout.returned(d_weights).reshape(weights.shape),
            tuple(layout.reduced(d, embed) for d, embed in zip(d_experts, (1, 1, 2), strict=True)),
        )

    rows = layout.by_row
    ins = rows, rows, rows, layout.for_use, rows
    run = _sharded(on_device, layout, ins, (rows, rows, layout.gradients))
    d_x, d_weights, d_experts = run(x, weights, chosen, _rounded(x, experts), d_out)
    d_experts = tuple(d.astype(part.dtype) for d, part in zip(d_experts, experts, strict=True))
    return d_x, d_weights, np.zeros(chosen.shape, jax.dtypes.float0), d_experts


def _sharded(function: Callable, layout: _Layout, in_specs: Any, out_specs: Any) -> Callable:
    # Without the check of replication: the sums over an axis are written out above.
    return jax.shard_map(function, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


_experts.defvjp(_forward, _backward)
