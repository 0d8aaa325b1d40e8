"""The mesh and the table of sharding rules."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from vero_jax.config import MeshConfig
from vero_jax.errors import UserError
from vero_jax.models.attention import on_mesh
from vero_jax.parallel.mesh import make_mesh, row_shards
from vero_jax.parallel.sharding import (
    param_shardings,
    partition_spec,
    received_bytes,
    replicated,
    row_sharding,
    split_tokens,
)
from vero_jax.planning.hlo import collective_traffic


def test_one_axis_takes_what_the_others_leave():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    assert row_shards(mesh) == 4
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=-1))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "expert": 4, "tensor": 1}
    assert row_shards(mesh) == 8


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (MeshConfig(data=3), "multiply to 3"),
        (MeshConfig(data=-1, fsdp=-1), "at most one -1"),
        (MeshConfig(data=-1, tensor=3), "^mesh.tensor needs a multiple of 3 devices; there are 8"),
        (MeshConfig(data=-1, expert=3, tensor=2), "^mesh.expert x mesh.tensor needs a multiple of 6"),
        (MeshConfig(data=1, expert=4), "multiply to 4, but there are 8 devices"),
        (MeshConfig(expert=-2), "'expert': -2, .* must be positive"),
        (MeshConfig(data=0), "must be positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_clear_sentence(config, named):
    with pytest.raises(UserError, match=named):
        make_mesh(config)


def test_parameters_are_split_by_their_names_and_whole_where_they_do_not_divide():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert partition_spec(("layers", "embed", "heads"), (3, 8, 6), mesh) == PartitionSpec(None, "fsdp", "tensor")
    assert partition_spec(("layers", "embed", "heads"), (3, 8, 5), mesh) == PartitionSpec(None, "fsdp", None)
    assert partition_spec(("embed", "embed"), (4, 4), mesh) == PartitionSpec("fsdp", None)


def test_experts_take_the_expert_axis_and_other_parameters_are_split_over_it_as_over_fsdp():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    experts = ("layers", "experts", "embed", "ffn")
    assert partition_spec(experts, (3, 8, 8, 6), mesh) == PartitionSpec(None, "expert", "fsdp", "tensor")
    assert partition_spec(experts, (3, 5, 8, 6), mesh) == PartitionSpec(None, None, ("fsdp", "expert"), "tensor")
    assert partition_spec(("embed", "heads"), (8, 6), mesh) == PartitionSpec(("fsdp", "expert"), "tensor")
    assert partition_spec(("embed", "heads"), (6, 6), mesh) == PartitionSpec("fsdp", "tensor")
    assert partition_spec(("embed", "experts"), (8, 8), mesh) == PartitionSpec(("fsdp", "expert"), None)


def test_an_unknown_name_is_refused():
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ValueError, match="unknown logical axis 'bread'"):
        partition_spec(("bread",), (4,), mesh)
    with pytest.raises(ValueError, match="2 logical axes"):
        partition_spec(("embed", "ffn"), (4,), mesh)


def test_a_tree_of_parameters_and_its_rows_land_on_all_devices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = {"kernel": jnp.zeros((8, 4)), "scale": jnp.zeros((8,))}
    shardings = param_shardings(mesh, {"kernel": ("embed", "ffn"), "scale": (None,)}, params)
    placed = jax.device_put(params, shardings)
    assert placed["kernel"].addressable_shards[0].data.shape == (4, 2)
    assert placed["scale"].addressable_shards[0].data.shape == (8,)
    rows = jax.device_put(jnp.zeros((8, 3)), row_sharding(mesh))
    assert rows.addressable_shards[0].data.shape == (2, 3)


def test_the_bytes_of_a_reshard_are_those_that_the_compiler_moves():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = {"gathered": (64, 32), "stays": (16, 32)}
    before = {"gathered": PartitionSpec("fsdp", "tensor"), "stays": PartitionSpec(None, "tensor")}
    after = {"gathered": PartitionSpec(None, "tensor"), "stays": PartitionSpec(None, "tensor")}

    def placed(specs: dict) -> dict:
        return {name: jax.sharding.NamedSharding(mesh, spec) for name, spec in specs.items()}

    arrays = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=placed(before)[name]) for name, shape in shapes.items()
    }
    moved = received_bytes(arrays, placed(after))
    assert moved == 32 * 16 * 4  # the other half of the rows, of half of the columns
    compiled = jax.jit(lambda tree: tree, out_shardings=placed(after)).lower(arrays).compile()
    assert collective_traffic(compiled.as_text()).bytes == moved
    assert received_bytes(arrays, placed(before)) == 0


@pytest.mark.parametrize(
    ("shape", "part"), [((4, 6, 8), (1, 3, 8)), ((4, 1, 8), None), ((4, 7, 8), None), ((3, 6, 8), None)]
)
def test_between_layers_tokens_are_split_where_they_divide(shape, part):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def function(x):
        with on_mesh(mesh):
            return split_tokens(x)

    x = jax.device_put(jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape), replicated(mesh))
    out = jax.jit(function)(x)
    assert (out == x).all()
    assert out.sharding.shard_shape(shape) == (part or shape)
    assert split_tokens(x) is x  # no mesh is named
