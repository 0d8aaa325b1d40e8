"""Attention over rows of groups, and inside vision segments. (That of sampling is in `models.decode_attention`.)

Every function takes queries and keys that are normalised and rotated already, scales the scores by C**-0.5, and takes
the softmax in float32. Axes: B rows, T tokens in a row, P patches, H query heads, K key-value heads, C head
dimension. Query head h reads key-value head h // (H / K); queries are reshaped to [K, H / K], keys are never repeated.

Long rows go block by block in the manner of FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithms 1 and 2): an
online softmax over key blocks, a backward pass that computes the scores again, and no array of T x T elements. Which
pairs of blocks can see each other is worked out first, so a row pays only for those: nothing after the query, no
other group, and no other branch.

On TPU and GPU, rows of more than one block are left to Pallas kernels (`models/kernels`) where these suit the shapes
(`kernel_block`) and the devices are known: inside `on_mesh`. Which version runs is settled by the platform that a
program is lowered for, so a TPU program compiled ahead of time on a CPU has the kernels too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from vero_jax.errors import UserError
from vero_jax.models.kernels import gpu, tpu
from vero_jax.models.kernels.blockwise import (
    Labels,
    Rule,
    block_pairs,
    blocked_backward,
    blocked_forward,
    dense,
)
from vero_jax.models.layers import keep
from vero_jax.parallel.mesh import ROW_AXES, row_shards

Implementation = Literal["auto", "xla", "pallas", "tpu_interpreted", "gpu_interpreted"]


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Inside a function that is traced: says over which devices attention and experts are split.

    Rows are split over the row axes, heads and experts' hidden width over "tensor", experts over "expert", where they
    divide; XLA cannot split a kernel or a ragged product by itself. None changes nothing: attention then takes its XLA
    version, and every device computes all experts.
    """
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def kernel_block(q: Float[Array, "B T H C"], k: Float[Array, "B T K C"], block: int, shards: int = 1) -> int | None:
    """Tokens of a block for the kernels; None where they don't suit the shapes.

    They want rows longer than a block, blocks of a multiple of 128 tokens, heads of 64 to 128 numbers (narrower ones
    would be mostly padding), and bfloat16 or float32, all alike. A GPU takes XLA's version for float32 all the same.
    Where the list of block pairs is longer than scalar memory holds (`kernels.tpu.MAX_PAIRS`), blocks grow until it is
    not, as far as `_TPU_BLOCK`: a windowed tower asks for small ones, of which its longest rows have too many.

    shards: devices over which the rows are split."""
    B, T, _, C = q.shape
    types = q.dtype == k.dtype and q.dtype in (jnp.bfloat16, jnp.float32)
    if not (types and block < T and block % gpu.BLOCK == 0 and 64 <= C <= 128):
        return None
    while B // shards * (-(-T // math.gcd(block, _TPU_BLOCK))) ** 2 > tpu.MAX_PAIRS:
        if block % _TPU_BLOCK == 0:
            return None
        block *= 2
    return block


_TPU_BLOCK = 512
"""Tokens of a block on TPU, at most: the scores of two blocks and their gradients take 4 MiB of vector memory."""


def shared_prefix_attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T K C"],
    v: Float[Array, "B T K C"],
    groups: Int32[Array, "B T"],
    branches: Int32[Array, "B T"],
    block: int,
    implementation: Implementation = "auto",
) -> Float[Array, "B T H C"]:
    """Attention over rows `[prefix | branch 1 | ... | branch n]`, several groups to a row.

    A query sees a key of its own group at an earlier or its own index, if the key is in the prefix (branch 0) or in
    the query's own branch. Group 0 is padding: it sees nothing, is seen by nothing, and gets zeros.

    Args:
      block: tokens per block. Rows of at most so many tokens are one dense block; kernels may take other sizes.
      implementation: "xla"; "pallas", the kernels of the platform, where it has some; "auto", these where they suit
        and `on_mesh` says which devices there are; or the kernels of one platform, interpreted, which is slow.

    Raises:
      UserError: the kernels are asked for and don't suit the shapes.
    """
    return _attend(q, k, v, (groups, branches), _IN_ROWS, block, implementation)


def segment_attention(
    q: Float[Array, "B P H C"],
    k: Float[Array, "B P K C"],
    v: Float[Array, "B P K C"],
    segments: Int32[Array, "B P"],
    block: int,
    implementation: Implementation = "auto",
) -> Float[Array, "B P H C"]:
    """Full attention inside each segment (a frame of an image). Segment 0 is padding and gets zeros.

    `block`, `implementation` and errors are those of `shared_prefix_attention`.
    """
    return _attend(q, k, v, (segments,), _IN_SEGMENTS, block, implementation)


def _sees_in_row(query: Labels, key: Labels, query_index: Int32[Array, "t"], key_index: Int32[Array, "s"]) -> Array:
    (q_group, q_branch), (k_group, k_branch) = query, key
    same_group = (q_group[:, :, None] == k_group[:, None]) & (q_group > 0)[:, :, None]
    on_path = (k_branch[:, None] == 0) | (k_branch[:, None] == q_branch[:, :, None])
    return same_group & on_path & (key_index[None, None] <= query_index[None, :, None])


def _block_sees_some_in_row(low: Labels, high: Labels) -> Bool[Array, "B n n"]:
    (g_low, b_low), (g_high, b_high) = low, high
    index = jnp.arange(g_low.shape[1])
    groups = _overlap(g_low, g_high)
    branches = _overlap(b_low, b_high) | (b_low[:, None] == 0)
    return groups & branches & (index[None] <= index[:, None])


def _block_sees_all_in_row(low: Labels, high: Labels) -> Bool[Array, "B n n"]:
    (g_low, b_low), (g_high, b_high) = low, high
    index = jnp.arange(g_low.shape[1])
    prefix = (b_high == 0)[:, None]
    return _one(g_low, g_high) & (prefix | _one(b_low, b_high)) & (index[None] < index[:, None])


def _sees_in_segment(query: Labels, key: Labels, query_index: Int32[Array, "t"], key_index: Int32[Array, "s"]) -> Array:
    (q_segment,), (k_segment,) = query, key
    return (q_segment[:, :, None] == k_segment[:, None]) & (q_segment > 0)[:, :, None]


def _overlap(low: Int32[Array, "B n"], high: Int32[Array, "B n"]) -> Bool[Array, "B n n"]:
    return (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])


def _one(low: Int32[Array, "B n"], high: Int32[Array, "B n"]) -> Bool[Array, "B n n"]:
    """Whether two blocks have the same label throughout."""
    return (low[:, :, None] == high[:, None]) & (low[:, None] == high[:, :, None])


_IN_ROWS = Rule(_sees_in_row, _block_sees_some_in_row, _block_sees_all_in_row)
_IN_SEGMENTS = Rule(
    _sees_in_segment,
    some=lambda low, high: _overlap(low[0], high[0]),
    every=lambda low, high: _one(low[0], high[0]),
)


_XLA_BLOCK = 224
"""Tokens of a block without kernels, at most: with 512 a pair's scores leave a core's cache (324 against 261 ms)."""


def _even_block(length: int, block: int) -> int:
    """The smallest block that needs no more blocks: 3,136 patches are 7 of 448, and with 512 they would be padded."""
    return min(-(-length // -(-length // block) // 16) * 16, block)


def _attend(
    q: Array,
    k: Array,
    v: Array,
    labels: Labels,
    rule: Rule,
    block: int,
    implementation: Implementation,
) -> Array:
    """Sorts heads to the front, takes the dense way, the blocked way or the kernels, and sorts them back."""
    B, T, H, C = q.shape
    K = k.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or bool(mesh.manual_axes) or B % row_shards(mesh) != 0
    suiting = kernel_block(q, k, block, 1 if alone else row_shards(mesh))
    if implementation not in ("auto", "xla") and suiting is None:
        raise UserError(f"attention kernels don't suit q {q.shape}, k {k.shape} of {q.dtype} in blocks of {block}")
    q = (q * C**-0.5).reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    if block >= T:
        out = dense(q, k, v, labels, rule)
    else:
        if suiting is None or implementation == "xla" or (implementation == "auto" and mesh.empty):
            implementation, block = "xla", _even_block(T, min(block, _XLA_BLOCK))
        else:
            block = suiting
        padding = -T % block
        widths = ((0, 0),) * 2 + ((0, padding), (0, 0))
        labels = tuple(jnp.pad(label, ((0, 0), (0, padding))) for label in labels)
        q, k, v = jnp.pad(q, ((0, 0), *widths)), jnp.pad(k, widths), jnp.pad(v, widths)
        # Inside another shard_map every device has its own rows and heads already.
        whole = mesh.empty or mesh.size == 1 or bool(mesh.manual_axes)
        out = _blocked(q, k, v, labels, _Passes(rule, block, implementation), None if whole else mesh)[..., :T, :]
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, C)


@dataclasses.dataclass(frozen=True)
class _Passes:
    """The forward and backward pass of one rule, block by block, each settled by the platform when the program is
    lowered.

    Equal objects share traces.
    """

    rule: Rule
    block: int
    implementation: Implementation

    @property
    def interpreted(self) -> bool:
        return self.implementation in ("tpu_interpreted", "gpu_interpreted")

    def forward(self, q: Array, k: Array, v: Array, labels: Labels) -> tuple[Array, Array]:
        def xla(q: Array, k: Array, v: Array, labels: Labels) -> tuple[Array, Array]:
            return blocked_forward(q, k, v, labels, self.rule, self.block)

        def kernel(module: Any, size: int, q: Array, k: Array, v: Array, labels: Labels) -> tuple[Array, Array]:
            pairs = block_pairs(labels, self.rule, size)[0]
            return module.forward(q, k, v, jnp.stack(labels, 1), pairs, self.interpreted)

        return self._select(xla, kernel, q, k, v, labels)

    def backward(
        self, q: Array, k: Array, v: Array, labels: Labels, out: Array, lse: Array, d_out: Array
    ) -> tuple[Array, Array, Array]:
        def xla(q: Array, k: Array, v: Array, labels: Labels, *rest: Array) -> tuple[Array, Array, Array]:
            out, lse, d_out = rest
            return blocked_backward(q, k, v, labels, out, lse, d_out, self.rule, self.block)

        def kernel(module: Any, size: int, q: Array, k: Array, v: Array, labels: Labels, *rest: Array) -> tuple:
            pairs = block_pairs(labels, self.rule, size)[0]
            return module.backward(q, k, v, jnp.stack(labels, 1), pairs, *rest, self.interpreted)

        return self._select(xla, kernel, q, k, v, labels, out, lse, d_out)

    def _select(self, xla: Callable[..., Any], kernel: Callable[..., Any], *operands: Any) -> Any:
        if self.implementation == "xla":
            return xla(*operands)
        ways = {
            "tpu": functools.partial(kernel, tpu, math.gcd(self.block, _TPU_BLOCK)),
            "gpu": functools.partial(kernel, gpu, gpu.BLOCK),
        }
        if self.interpreted:
            return ways[self.implementation.removesuffix("_interpreted")](*operands)
        # float32 blocks overflow the shared memory of an H200, and smaller ones compile for minutes.
        cuda = ways["gpu"] if operands[0].dtype == jnp.bfloat16 else xla
        return jax.lax.platform_dependent(*operands, tpu=ways["tpu"], cuda=cuda, default=xla)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blocked(q: Array, k: Array, v: Array, labels: Labels, passes: _Passes, mesh: AbstractMesh | None) -> Array:
    """On a mesh every device takes whole tokens of its own rows and heads. XLA's version, too: what is split otherwise
    in front of its loops, such as tokens (`parallel.sharding.split_tokens`), would be gathered in every turn of them.
    """
    return _blocked_forward(q, k, v, labels, passes, mesh)[0]


def _blocked_forward(q: Array, k: Array, v: Array, labels: Labels, passes: _Passes, mesh: AbstractMesh | None) -> tuple:
    queries, keys, rows = _specs(mesh, k.shape)
    run = _split(passes.forward, mesh, (queries, keys, keys, (rows,) * len(labels)), (queries, queries))
    out, lse = (keep(x) for x in run(q, k, v, labels))
    return out, (q, k, v, labels, out, lse)


def _blocked_backward(passes: _Passes, mesh: AbstractMesh | None, kept: tuple, d_out: Array) -> tuple:
    queries, keys, rows = _specs(mesh, kept[1].shape)
    specs = (queries, keys, keys, (rows,) * len(kept[3]), queries, queries, queries)
    return (*_split(passes.backward, mesh, specs, (queries, keys, keys))(*kept, d_out), None)


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _specs(mesh: AbstractMesh | None, keys: tuple[int, ...]) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
    """Of queries and all that is per query, of keys and values, and of labels: the axes that divide their sizes."""
    sizes = {} if mesh is None else dict(mesh.shape)
    axes = tuple(axis for axis in ROW_AXES if axis in sizes)
    rows = axes if keys[0] % math.prod(sizes[axis] for axis in axes) == 0 else None
    heads = "tensor" if "tensor" in sizes and keys[1] % sizes["tensor"] == 0 else None
    return PartitionSpec(rows, heads), PartitionSpec(rows, heads), PartitionSpec(rows)


def _split(function: Callable[..., Any], mesh: AbstractMesh | None, ins: Any, outs: Any) -> Callable[..., Any]:
    if mesh is None:
        return function
    # Kernels don't say over which axes their results vary, so that can't be checked.
    return jax.shard_map(function, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)
