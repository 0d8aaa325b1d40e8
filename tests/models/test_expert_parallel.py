"""Experts on a mesh: the numbers of one device, whatever the mesh, the router and the number of tokens."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tiny_vl import tiny_config

from vero_jax.config import MeshConfig
from vero_jax.models import expert_parallel
from vero_jax.models.attention import on_mesh
from vero_jax.models.layers import ParamFactory
from vero_jax.models.moe import SparseMLP, route
from vero_jax.parallel.mesh import ROW_AXES, make_mesh, row_shards
from vero_jax.parallel.sharding import partition_spec

WIDTH, FFN, COUNT, CHOSEN = 16, 12, 8, 3
AXES = {
    ("router", "kernel"): ("embed", "experts"),
    ("gate",): expert_parallel.INWARDS,
    ("up",): expert_parallel.INWARDS,
    ("down",): expert_parallel.OUTWARDS,
}
MESHES = [
    {"data": 4, "expert": 2},
    {"data": 1, "expert": 2, "fsdp": 2, "tensor": 2},
    {"data": 1, "expert": 4, "fsdp": 2},
    {"data": 1, "expert": 4, "tensor": 2},
    {"data": 1, "expert": 8},
    {"data": 1, "fsdp": 4, "tensor": 2},
]


def named(sizes):
    return " ".join(f"{axis}{size}" for axis, size in sizes.items())


def layer(count=COUNT, seed=0):
    """A layer of experts as (graph, parameters), with weights large enough that every expert matters."""
    text = dataclasses.replace(
        tiny_config().text, hidden_size=WIDTH, num_experts=count, experts_per_token=CHOSEN, expert_ffn_size=FFN
    )
    graph, state = nnx.split(SparseMLP(ParamFactory(nnx.Rngs(seed), jnp.float32), text, 1.0))
    return graph, nnx.to_pure_dict(state)


def tokens(rows, length, dtype="float32", seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(rows, length, WIDTH)), dtype), jnp.asarray(
        rng.normal(size=(rows, length, WIDTH)), jnp.float32
    )


def outputs_and_gradients(graph, params, x, weight, mesh=None, real=None):
    """What the layer makes of x, and the gradients of parameters and x."""

    def total(params, x):
        with on_mesh(mesh):
            y = nnx.merge(graph, params)(x, real)
        return (y.astype(jnp.float32) * weight).sum(), y

    def both(params, x):
        gradients, y = jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)
        return y, gradients

    if mesh is None:
        return jax.jit(both)(params, x)
    return jax.jit(both)(*placed(params, x, mesh))


def placed(params, x, mesh):
    rows = PartitionSpec(ROW_AXES if len(x) % row_shards(mesh) == 0 else None)
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    leaves = [
        jax.device_put(leaf, NamedSharding(mesh, partition_spec(AXES[tuple(k.key for k in path)], leaf.shape, mesh)))
        for path, leaf in flat
    ]
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return params, jax.device_put(x, NamedSharding(mesh, rows))


def assert_close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(b).max() > 0.01
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance, rtol=tolerance)


@pytest.fixture(params=[(1, 5), (4096, 2048)], ids=["many_chunks", "one_chunk"])
def chunks(request, monkeypatch):
    """Chunks of a few assignments, or all of them in one; blocks likewise."""
    monkeypatch.setattr(expert_parallel, "LEAST_CHUNK", request.param[0])
    monkeypatch.setattr(expert_parallel, "GRADIENT_BLOCK", request.param[1])
    return request.param


@pytest.mark.parametrize("sizes", MESHES, ids=named)
def test_output_and_gradients_are_those_of_one_device(sizes, chunks):
    graph, params = layer()
    x, weight = tokens(8, 5)
    want = outputs_and_gradients(graph, params, x, weight)
    assert_close(outputs_and_gradients(graph, params, x, weight, make_mesh(MeshConfig(**sizes))), want)


@pytest.mark.parametrize("rows,length", [(8, 1), (1, 3), (3, 7)], ids=["a_token_each", "three_tokens", "uneven_rows"])
@pytest.mark.parametrize("sizes", MESHES[1:3], ids=named)
def test_few_tokens_and_rows_that_do_not_divide(sizes, rows, length):
    graph, params = layer()
    x, weight = tokens(rows, length)
    want = outputs_and_gradients(graph, params, x, weight)
    assert_close(outputs_and_gradients(graph, params, x, weight, make_mesh(MeshConfig(**sizes))), want)


@pytest.mark.parametrize("sizes", [MESHES[0], {"data": 1, "expert": 2, "fsdp": 2, "tensor": 2}], ids=named)
def test_experts_that_do_not_divide_stay_whole(sizes):
    graph, params = layer(count=5)
    x, weight = tokens(8, 3)
    want = outputs_and_gradients(graph, params, x, weight)
    assert_close(outputs_and_gradients(graph, params, x, weight, make_mesh(MeshConfig(**sizes))), want)


def test_a_router_that_sends_every_token_to_the_same_experts_drops_none(chunks):
    """Experts 5, 6 and 7 get all: all work is that of the last two devices of four."""
    _, params = layer()
    x, weight = tokens(8, 6)
    experts = params["gate"], params["up"], params["down"]
    shape = (8, 6, CHOSEN)
    weights = jnp.asarray(np.random.default_rng(2).uniform(0.2, 1, shape), jnp.float32)
    chosen = jnp.broadcast_to(jnp.asarray([6, 7, 5]), shape).astype(jnp.int32)
    mesh = make_mesh(MeshConfig(data=2, expert=4))

    def plain(x, weights, experts):
        gate, up, down = (part[chosen] for part in experts)
        hidden = jax.nn.silu(jnp.einsum("btd,btkdf->btkf", x, gate)) * jnp.einsum("btd,btkdf->btkf", x, up)
        return jnp.einsum("btkf,btkfd,btk->btd", hidden, down, weights)

    def on_devices(x, weights, experts):
        return expert_parallel.experts_on_mesh(x, weights, chosen, experts, mesh.abstract_mesh)

    def both(function):
        def total(*inputs):
            y = function(*inputs)
            return (y * weight).sum(), y

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))

    whole = NamedSharding(mesh, PartitionSpec())
    got = both(on_devices)(*jax.device_put((x, weights, experts), whole))
    assert_close(got, both(plain)(x, weights, experts))


@pytest.mark.parametrize("sizes", MESHES[1:3], ids=named)
def test_bfloat16_is_as_far_from_float32_as_on_one_device(sizes):
    graph, params = layer()
    x, weight = tokens(8, 5, "bfloat16")
    exact = outputs_and_gradients(graph, params, x.astype(jnp.float32), weight)
    alone = outputs_and_gradients(graph, params, x, weight)
    got = outputs_and_gradients(graph, params, x, weight, make_mesh(MeshConfig(**sizes)))
    for ours, one, truth in zip(*map(jax.tree.leaves, (got, alone, exact)), strict=True):
        assert ours.dtype == one.dtype
        far, near = (np.linalg.norm(np.asarray(y, np.float32) - truth) for y in (ours, one))
        assert far < 1.1 * near + 1e-6


@pytest.mark.parametrize("sizes", MESHES[1:3], ids=named)
def test_tokens_of_padding_are_left_out_and_the_others_are_the_same(sizes, chunks):
    graph, params = layer()
    x, weight = tokens(8, 5)
    real = jnp.asarray(np.random.default_rng(3).uniform(size=(8, 5)) < 0.6).at[2].set(False)
    weight = weight * real[..., None]
    want, gradients = outputs_and_gradients(graph, params, x, weight)
    mesh = make_mesh(MeshConfig(**sizes))
    got = outputs_and_gradients(graph, params, x, weight, mesh, real)
    assert not np.asarray(got[0])[~np.asarray(real)].any()
    assert_close(got, (want * real[..., None], gradients))


def compiled(sizes, *, remat):
    graph, params = layer()
    x, weight = tokens(8, 5)
    mesh = make_mesh(MeshConfig(**sizes))

    def total(params, x):
        def body(x):
            return nnx.merge(graph, params)(x)

        with on_mesh(mesh):
            y = jax.checkpoint(body)(x) if remat else body(x)
        return (jnp.sin(y) * weight).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1))).trace(*placed(params, x, mesh))


def test_no_device_ever_holds_all_experts():
    text = compiled({"data": 1, "expert": 4, "fsdp": 2}, remat=False).lower().compile().as_text()
    assert f"f32[{COUNT // 4},{WIDTH},{FFN}]" in text and "all-gather" in text and "reduce-scatter" in text
    assert not re.search(rf"f32\[{COUNT},({WIDTH}|{WIDTH // 2}),{FFN}\]", text)


@pytest.mark.parametrize("remat", [False, True])
def test_the_backward_pass_does_not_compute_the_sums_again(remat):
    """Three ragged products forward, two that are computed again, three for the tokens' gradients; none for maps'."""
    assert str(compiled({"data": 4, "expert": 2}, remat=remat).jaxpr).count("ragged_dot_general[") == 8


def test_weights_of_a_token_are_those_of_its_experts_and_add_up_to_one():
    weights, chosen = route(jnp.asarray([[0.0, 3.0, 1.0, 2.0]]), 2)
    np.testing.assert_array_equal(chosen, [[1, 3]])
    np.testing.assert_allclose(weights[0], np.exp([0, -1]) / (1 + np.exp(-1)), rtol=1e-6)
