"""The mesh and the table of sharding rules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from vero_jax.config import MeshConfig
from vero_jax.errors import UserError
from vero_jax.parallel.mesh import make_mesh, row_shards
from vero_jax.parallel.sharding import param_shardings, partition_spec, row_sharding


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
