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

import pytest

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]


@pytest.mark.parametrize("chip", sorted(CHIPS))
def test_kernels_compile_at_real_shapes(chip: str) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, str(Path(__file__).resolve()), CHIPS[chip]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rules = ("row", "segment", "windows")
    assert {(row["rule"], row["devices"]) for row in rows} == {(rule, count) for rule in rules for count in (1, 4)}
    for row in rows:
        # One kernel forward, and one each for the queries and the keys backward.
        assert row["kernels"] == 3, row
        assert row["largest"] < row["tokens"] ** 2 / 4, row
        assert row["gathers"] == 0, row
        # Copies of q, its gradient and the output in the kernels' layout, and not more than a few of them.
        assert row["temporary_bytes"] < 8 * row["query_bytes"], row


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
    main(sys.argv[1])
