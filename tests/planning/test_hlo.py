"""Bytes of collectives, read from programs whose traffic is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vero_jax.planning.hlo import collective_traffic


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:8]), ("x",), axis_types=(AxisType.Auto,))


def text_of(function, mesh, shape, spec, out) -> str:
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(function, out_shardings=NamedSharding(mesh, out)).lower(x).compile().as_text()


def test_gathering_brings_all_but_ones_own_part(mesh):
    traffic = collective_traffic(text_of(lambda x: x + 1, mesh, (1024, 8), PartitionSpec("x"), PartitionSpec()))
    assert traffic.bytes_by_kind == {"all-gather": 1024 * 8 * 4 * 7 / 8}
    assert traffic.bytes == 1024 * 8 * 4 * 7 / 8
    assert traffic.bytes_in_loops == 0 and not traffic.unknown_loops


def test_a_sum_over_devices_goes_round_twice(mesh):
    traffic = collective_traffic(text_of(lambda x: x.sum(axis=0), mesh, (8, 4096), PartitionSpec("x"), PartitionSpec()))
    assert traffic.bytes_by_kind == {"all-reduce": 2 * 4096 * 4 * 7 / 8}


def test_a_loop_counts_as_often_as_it_turns(mesh):
    """Eleven layers whose weights are gathered one by one, as those of a model split over fsdp are."""

    def run(weights):
        def layer(x, w):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(layer, jnp.ones((4, 64)), weights)[0]

    text = text_of(run, mesh, (11, 64, 64), PartitionSpec(None, "x"), PartitionSpec())
    traffic = collective_traffic(text)
    assert traffic.bytes == pytest.approx(11 * 64 * 64 * 4 * 7 / 8)
    assert traffic.bytes_in_loops == traffic.bytes and not traffic.unknown_loops


def test_a_loop_that_the_data_end_is_counted_once_and_said(mesh):
    def run(x):
        def step(x):
            whole = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))
            return jax.lax.with_sharding_constraint(
                x + jnp.tanh(whole @ whole.T @ x), NamedSharding(mesh, PartitionSpec("x"))
            )

        return jax.lax.while_loop(lambda x: x.sum() < 100, step, x)

    traffic = collective_traffic(text_of(run, mesh, (64, 64), PartitionSpec("x"), PartitionSpec("x")))
    assert traffic.unknown_loops
    assert 64 * 64 * 4 * 7 / 8 <= traffic.bytes <= 3 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("bound", "turns", "unknown"),
    [("s32[]{:T(128)} constant(11)", 11, False), ("s32[]{:T(128)} get-tuple-element(%c), index=1", 1, True)],
)
def test_a_tpus_loop_turns_as_often_as_its_condition_says(bound, turns, unknown):
    text = f"""HloModule m

%all-reduce-scatter (x: f32[64]) -> f32[16] {{
  %x = f32[64]{{0}} parameter(0)
  %sum = f32[64]{{0}} all-reduce(%x), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
}}

%body (b: (s32[], s32[])) -> (s32[], s32[]) {{
  %a = f32[16]{{0}} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}}

%condition (c: (s32[], s32[])) -> pred[] {{
  %counter = s32[]{{:T(128)}} get-tuple-element(%c), index=0
  %bound.1 = {bound}
  ROOT %lt.3 = pred[]{{:T(512)}} compare(%counter, %bound.1), direction=LT, metadata={{op_name="lt"}}
}}

ENTRY %main (p: (s32[], s32[])) -> (s32[], s32[]) {{
  ROOT %w = (s32[], s32[]) while(%p), condition=%condition, body=%body
}}
"""
    traffic = collective_traffic(text)
    assert traffic.bytes == turns * 64 * 4 * 3 / 4 and traffic.unknown_loops == unknown


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        # As TPUs write them: started and waited for, with the operand beside the result.
        ("%a = (bf16[2,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p), replica_groups=[2,8]<=[16]", 16 * 8 * 2 * 7 / 8),
        ("%a = bf16[16,8]{1,0} all-gather-done(%b)", 0),
        ("%a = f32[16]{0} all-gather(%p), replica_groups=mesh['x'=2,'y'=8] {'x','y':(2)4}, dimensions={0}", 64 * 7 / 8),
        ("%a = f32[4,8]{1,0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, to_apply=%add", 4 * 8 * 4 * 3),
        ("%a = f32[128]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", 512),
        ("ROOT %a = (f32[8]{0}, f32[8]{0}) all-reduce(%p, %q), replica_groups=[1,4]<=[4], to_apply=%add", 96),
    ],
)  # fmt: skip
def test_lines_of_other_compilers_are_read(line, wanted):
    add = "%add (x: f32[], y: f32[]) -> f32[] {\n  ROOT %z = f32[] add(%x, %y)\n}"
    text = f"HloModule m\n\n{add}\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n  {line}\n}}\n"
    assert collective_traffic(text).bytes == wanted
