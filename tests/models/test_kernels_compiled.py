"""Attention kernels compiled for real TPU chips, on a machine that has none: libtpu compiles ahead of time.

The compiler runs in a process of its own: libtpu prepares itself once per process, and never gives its memory back.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """What this file prints as a program."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("chip", sorted(CHIPS))
def test_kernels_compile_at_real_shapes(chip: str) -> None:
    rows = compiled(CHIPS[chip])
    rules = ("row", "segment", "windows")
    assert {(row["rule"], row["devices"]) for row in rows} == {(rule, count) for rule in rules for count in (1, 4)}
    for row in rows:
        # One kernel forward, and one each for the queries and the keys backward.
        assert row["kernels"] == 3, row
        assert row["largest"] < row["tokens"] ** 2 / 4, row
        assert row["gathers"] == 0, row
        # Copies of q, its gradient and the output in the kernels' layout, and not more than a few of them.
        assert row["temporary_bytes"] < 8 * row["query_bytes"], row


def test_without_kernels_no_token_moves_inside_a_loop() -> None:
    """The layer that feeds attention keeps its tokens split over the tensor axis, as the vision tower's do."""
    (row,) = compiled(CHIPS["v6e"], "layer")
    assert row["kernels"] == 0 and row["loops"] > 0, row
    assert row["received"] > 0 and row["received_in_loops"] == 0, row


def layer(topology: str) -> None:
    """Compiles value and gradients of a layer with heads that are too narrow for kernels, and prints what came out."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from vero_jax.models.attention import on_mesh, segment_attention
    from vero_jax.parallel.mesh import AXES, ROW_AXES
    from vero_jax.parallel.sharding import split_tokens
    from vero_jax.planning.hlo import collective_traffic

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices[:4]).reshape(1, 2, 1, 2), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    rows, length, heads, size = 2, 1024, 16, 32

    def loss(x, weights, segments):
        with on_mesh(mesh):
            x = split_tokens(x)
            q, k, v = ((x @ weight).reshape(rows, length, heads, size) for weight in weights[:3])
            out = segment_attention(q, k, v, segments, 128).reshape(x.shape)
            return split_tokens(x + out @ weights[3]).astype(jnp.float32).sum()

    shapes = [
        ((rows, length, heads * size), jnp.bfloat16, (ROW_AXES, "tensor")),
        ((4, heads * size, heads * size), jnp.bfloat16, (None, None, "tensor")),
        ((rows, length), jnp.int32, (ROW_AXES,)),
    ]
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, dtype, spec in shapes
    ]
    text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile().as_text()
    traffic = collective_traffic(text)
    print(
        json.dumps(
            {
                "kernels": text.count('custom_call_target="tpu_custom_call"'),
                "loops": len(re.findall(r"\bwhile\(", text)),
                "received": traffic.bytes,
                "received_in_loops": traffic.bytes_in_loops,
            }
        ),
        flush=True,
    )


def main(topology: str) -> None:
    """Compiles value and gradients of both functions for one chip and for four, and prints what came out."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from vero_jax.models.attention import on_mesh, segment_attention, shared_prefix_attention
    from vero_jax.parallel.mesh import AXES, ROW_AXES

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    for shape in ((1, 1, 1, 1), (1, 2, 1, 2)):
        count = int(np.prod(shape))
        mesh = Mesh(np.array(devices[:count]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        rows = NamedSharding(mesh, PartitionSpec(ROW_AXES))
        heads_split = NamedSharding(mesh, PartitionSpec(ROW_AXES, None, "tensor"))
        for rule, length, heads, kv_heads, size, block in (
            ("row", 36864, 32, 8, 128, 512),
            ("segment", 16384, 16, 16, 72, 512),
            ("windows", 49152, 16, 16, 80, 128),
        ):

            def value_and_gradients(q, k, v, weight, *labels, rule=rule, mesh=mesh, block=block):
                function = shared_prefix_attention if rule == "row" else segment_attention
                with on_mesh(mesh):
                    out, pull = jax.vjp(lambda *qkv: function(*qkv, *labels, block), q, k, v)
                    return out, *pull(weight)

            B = shape[1]
            tensors = [
                jax.ShapeDtypeStruct((B, length, n, size), jnp.bfloat16, sharding=heads_split)
                for n in (heads, kv_heads, kv_heads, heads)
            ]
            labels = [jax.ShapeDtypeStruct((B, length), jnp.int32, sharding=rows)] * (2 if rule == "row" else 1)
            compiled = jax.jit(value_and_gradients).lower(*tensors, *labels).compile()
            text = compiled.as_text()
            arrays = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", text)
            print(
                json.dumps(
                    {
                        "rule": rule,
                        "devices": count,
                        "tokens": length,
                        "kernels": len(re.findall(r'custom_call_target="tpu_custom_call"', text)),
                        "largest": max(int(np.prod([int(n) for n in dims.split(",")])) for dims in arrays),
                        "gathers": text.count(" all-gather(") + text.count(" all-gather-start("),
                        "query_bytes": B * length * heads * max(size, 128) * 2 // count,
                        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    (layer if sys.argv[2:] == ["layer"] else main)(sys.argv[1])
