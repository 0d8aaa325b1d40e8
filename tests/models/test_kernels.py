"""Attention kernels, interpreted, against a plain masked softmax; which platform gets them; rows split over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from vero_jax.config import MeshConfig
from vero_jax.errors import UserError
from vero_jax.models.attention import kernel_block, on_mesh, segment_attention, shared_prefix_attention
from vero_jax.models.kernels import tpu
from vero_jax.parallel.mesh import AXES, ROW_AXES, make_mesh
from vero_jax.planning.hlo import collective_traffic

LENGTH = 300  # no multiple of the block
BLOCK = 128
KERNELS = ("tpu_interpreted", "gpu_interpreted")


def plain(q, k, v, mask):
    """Masked softmax with repeated key-value heads, in float32; queries without keys get zeros."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bthc,bshc->bhts", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1, where=mask[:, None])
    return jnp.einsum("bhts,bshc->bthc", jnp.where(mask[:, None], weights, 0.0), v)


def random_row(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Groups of a prefix and some branches, many of one token; padding between two groups and at the end."""
    groups, branches = np.zeros(LENGTH, np.int32), np.zeros(LENGTH, np.int32)
    at, group = 0, 0
    while at < LENGTH - 20:
        group += 1
        for branch in range(rng.integers(2, 7)):
            size = int(rng.choice([1, rng.integers(2, 90)]))
            end = min(at + size, LENGTH - 7)
            groups[at:end], branches[at:end] = group, branch
            at = end
        at += int(rng.integers(0, 5))
    return groups, branches


def visible(groups: np.ndarray, branches: np.ndarray | None) -> np.ndarray:
    """The two rules of who sees whom, for whole rows."""
    mask = (groups[:, :, None] == groups[:, None]) & (groups > 0)[:, :, None]
    if branches is not None:
        mask &= (branches[:, None] == 0) | (branches[:, None] == branches[:, :, None])
        mask &= np.tri(groups.shape[1], dtype=bool)
    return mask


def tensors(seed: int, rows: int, heads: int, kv_heads: int, size: int, dtype: str):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [(rows, LENGTH, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(attention, q, k, v, weight):
    out, pull = jax.vjp(attention, q, k, v)
    return out, *pull(weight.astype(out.dtype))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "rule,heads,kv_heads,size,dtype",
    [
        ("row", 2, 2, 64, "float32"),
        ("row", 4, 2, 128, "float32"),
        ("row", 8, 1, 80, "float32"),
        ("row", 4, 1, 128, "bfloat16"),
        ("segment", 2, 2, 72, "float32"),
        ("segment", 2, 1, 80, "bfloat16"),
    ],
)
def test_kernels_equal_plain(kernel, rule, heads, kv_heads, size, dtype):
    q, k, v, weight = tensors(1, 2, heads, kv_heads, size, dtype)

    def kernels(labels, *qkv):
        function = shared_prefix_attention if rule == "row" else segment_attention
        return function(*qkv, *labels, BLOCK, kernel)

    ours = jax.jit(lambda labels, *x: value_and_gradients(lambda *qkv: kernels(labels, *qkv), *x))
    dense = jax.jit(lambda mask, *x: value_and_gradients(lambda *qkv: plain(*qkv, mask), *x))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        groups, branches = (np.stack(x) for x in zip(random_row(rng), random_row(rng), strict=True))
        if seed == 2:
            groups[1] = branches[1] = 0
        labels = (groups, branches) if rule == "row" else (groups,)
        got = ours(labels, q, k, v, weight)
        want = dense(visible(groups, branches if rule == "row" else None), q, k, v, weight)
        for part, a, b in zip(("out", "d_q", "d_k", "d_v"), got, want, strict=True):
            assert a.dtype == dtype
            scale = 1.0 if dtype == "float32" else float(jnp.abs(b).max())
            np.testing.assert_allclose(
                np.asarray(a, np.float32) / scale,
                np.asarray(b, np.float32) / scale,
                atol=1e-5 if dtype == "float32" else 0.015,
                rtol=1e-5,
                err_msg=part,
            )
        assert not np.asarray(got[0], np.float32)[groups == 0].any()


@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
@pytest.mark.parametrize("kv_heads", [2, 1], ids=["heads_divide", "heads_do_not_divide"])
def test_rows_and_heads_are_split_over_devices(kernel, kv_heads):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    q, k, v, weight = tensors(2, 4, 4, kv_heads, 64, "float32")
    rng = np.random.default_rng(5)
    groups, branches = (np.stack(x) for x in zip(*[random_row(rng) for _ in range(4)], strict=True))

    def split(*x):
        with on_mesh(mesh):
            return value_and_gradients(lambda *qkv: shared_prefix_attention(*qkv, groups, branches, BLOCK, kernel), *x)

    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ROW_AXES))
    compiled = jax.jit(split).lower(*jax.device_put((q, k, v, weight), rows)).compile()
    got = compiled(*jax.device_put((q, k, v, weight), rows))
    want = value_and_gradients(lambda *qkv: plain(*qkv, visible(groups, branches)), q, k, v, weight)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    assert "shard_map" in str(jax.make_jaxpr(split)(q, k, v, weight))


def test_scalar_memory_limits_the_rows_of_one_device():
    q = jax.ShapeDtypeStruct((128, 16384, 4, 64), jnp.bfloat16)
    assert kernel_block(q, q, 512) is None and kernel_block(q, q, 512, shards=2) == 512


@pytest.mark.parametrize(
    ("patches", "wanted"), [(16384, 128), (32768, 128), (49152, 256), (65536, 256), (131072, 512), (262144, None)]
)
def test_blocks_grow_until_scalar_memory_holds_their_pairs(patches, wanted):
    q = jax.ShapeDtypeStruct((4, patches, 16, 80), jnp.bfloat16)
    assert kernel_block(q, q, 128, shards=4) == wanted


@pytest.mark.parametrize("kernel", KERNELS)
def test_larger_blocks_than_asked_for_give_the_same(kernel, monkeypatch):
    q, k, v, weight = tensors(7, 2, 2, 2, 64, "float32")
    rng = np.random.default_rng(8)
    segments = np.stack([random_row(rng)[0] for _ in range(2)])

    def ours(*x):
        return value_and_gradients(lambda *qkv: segment_attention(*qkv, segments, BLOCK, kernel), *x)

    monkeypatch.setattr(tpu, "MAX_PAIRS", 2 * 2**2)  # two blocks to a row, where three were asked for
    assert kernel_block(q, k, BLOCK) == 2 * BLOCK
    want = value_and_gradients(lambda *qkv: plain(*qkv, visible(segments, None)), q, k, v, weight)
    for a, b in zip(jax.jit(ours)(q, k, v, weight), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [32, 64], ids=["no_kernels", "where_other_platforms_have_kernels"])
@pytest.mark.parametrize("rule", ["row", "segment"])
def test_of_tokens_split_over_devices_each_gets_those_of_its_heads_once(rule, size):
    """Between layers tokens are split over the tensor axis; no device needs other heads', and none inside a loop."""
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    tokens = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ROW_AXES, "tensor"))
    shapes = [jax.ShapeDtypeStruct((2, 1024, n, size), "float32", sharding=tokens) for n in (8, 4, 4, 8)]
    labels = [jax.ShapeDtypeStruct((2, 1024), "int32", sharding=tokens)] * (2 if rule == "row" else 1)

    def split(labels, *x):
        function = shared_prefix_attention if rule == "row" else segment_attention
        with on_mesh(mesh):
            return value_and_gradients(lambda *qkv: function(*qkv, *labels, BLOCK), *x)

    traffic = collective_traffic(jax.jit(split).lower(labels, *shapes).compile().as_text())
    # Of q, k, v and the output's gradient it lacks three quarters of the tokens; labels it needs all.
    once = 1024 * (8 + 4 + 4 + 8) / 4 * size * 4 * 3 / 4
    assert traffic.bytes == pytest.approx(once, rel=0.03), traffic
    assert traffic.bytes_in_loops == 0, traffic


def lowered(platform: str, device: jax.sharding.AbstractDevice | None, dtype: str = "bfloat16", **options) -> str:
    """The program of value and gradients for a platform that this machine does not have."""
    mesh = AbstractMesh((1,) * 4, AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=device)
    ones = jnp.ones((1, LENGTH), jnp.int32)
    shapes = [jax.ShapeDtypeStruct((1, LENGTH, n, 128), dtype) for n in (4, 2, 2, 4)]

    def attention(*qkv):
        return shared_prefix_attention(*qkv, ones, ones, BLOCK, **options)

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(lambda *x: value_and_gradients(attention, *x)).trace(*shapes)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_the_platform_that_is_lowered_for_chooses():
    h100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    v5e = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    for dtype in ("bfloat16", "float32"):
        # float32 blocks do not fit a GPU's shared memory: there XLA's version runs.
        kernels = 3 if dtype == "bfloat16" else 0
        assert lowered("cuda", h100, dtype=dtype).count("custom_call @__gpu$xla.gpu.triton") == kernels
        assert lowered("tpu", v5e, dtype=dtype).count("custom_call @tpu_custom_call") == 3
    assert "custom_call" not in lowered("cpu", None)
    assert "custom_call" not in lowered("tpu", v5e, implementation="xla")


def test_without_a_mesh_the_xla_version_runs():
    q, k, v, _ = tensors(3, 1, 2, 1, 64, "float32")
    ones = jnp.ones((1, LENGTH), jnp.int32)
    assert "pallas" not in str(jax.make_jaxpr(lambda *x: shared_prefix_attention(*x, ones, ones, BLOCK))(q, k, v))


@pytest.mark.parametrize("size,block", [(32, 128), (256, 128), (64, 96)])
def test_kernels_that_do_not_suit_are_refused(size, block):
    q, k, v, _ = tensors(4, 1, 2, 1, size, "float32")
    ones = jnp.ones((1, LENGTH), jnp.int32)
    with pytest.raises(UserError, match="don't suit"):
        shared_prefix_attention(q, k, v, ones, ones, block, "pallas")


def test_lists_hold_every_visible_pair_once_and_repeat_their_last():
    pairs = np.random.default_rng(6).random((3, 5, 5)) < 0.3
    pairs[2] = False
    steps, counts, longest = tpu._steps(jnp.asarray(pairs))
    assert longest == max(counts)
    for row, (listed, count) in enumerate(zip(np.asarray(steps).reshape(3, 25), np.asarray(counts), strict=True)):
        found = [(int(step) >> 16, int(step) & 0xFFFF) for step in listed]
        want = [(i, j) for i in range(5) for j in range(5) if pairs[row, i, j] or i == j]
        assert found[:count] == want and set(found[count:]) <= {found[count - 1]}
