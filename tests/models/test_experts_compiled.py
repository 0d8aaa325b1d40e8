"""Experts over four chips, compiled for real TPUs on a machine that has none (compiled, not run).

The compiler runs in a process of its own: libtpu prepares itself once per process, and never gives its memory back.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

WIDTH, FFN, COUNT, CHOSEN, LENGTH, CHIPS = 512, 256, 32, 4, 4096, 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]


def test_a_layers_gradient_compiles_with_kernels_and_without_a_product_for_every_expert() -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, str(Path(__file__).resolve())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    # Three products forward; gate and up again, and three for the tokens' gradients backward.
    assert found["ragged_products"] == 8
    assert found["experts"] == COUNT // CHIPS, "no chip may hold more than its own experts"
    # The sums of all tokens in float32 are the largest array: a product of all rows for each expert has larger ones.
    assert found["largest"] <= 1.1 * CHIPS * LENGTH * WIDTH


def main() -> None:
    """Compiles the gradient of a layer in bfloat16, rows and experts split over four chips; prints what came out."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.experimental import topologies
    from jax.sharding import NamedSharding
    from tiny_vl import tiny_config

    from vero_jax.config import MeshConfig
    from vero_jax.models.attention import on_mesh
    from vero_jax.models.layers import ParamFactory
    from vero_jax.models.moe import SparseMLP
    from vero_jax.parallel.mesh import make_mesh
    from vero_jax.parallel.sharding import partition_spec, row_sharding

    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices)
    mesh = make_mesh(MeshConfig(data=1, expert=CHIPS), devices)
    text = dataclasses.replace(
        tiny_config().text, hidden_size=WIDTH, num_experts=COUNT, experts_per_token=CHOSEN, expert_ffn_size=FFN
    )
    graph, state = nnx.split(nnx.eval_shape(lambda: SparseMLP(ParamFactory(nnx.Rngs(0), jnp.float32), text, 1.0)))

    def placed(variable: nnx.Param) -> jax.ShapeDtypeStruct:
        spec = partition_spec(variable.get_metadata()["axes"], variable.shape, mesh)
        return jax.ShapeDtypeStruct(variable.shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    flat = {path: placed(variable) for path, variable in nnx.to_flat_state(state)}
    params = nnx.traversals.unflatten_mapping(flat)
    x = jax.ShapeDtypeStruct((CHIPS, LENGTH, WIDTH), jnp.bfloat16, sharding=row_sharding(mesh))

    def total(params, x):
        with on_mesh(mesh):
            y = jax.checkpoint(lambda x: nnx.merge(graph, params)(x))(x)
        return jnp.sin(y.astype(jnp.float32)).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, x).compile().as_text()
    arrays = [[int(n) for n in dims.split(",")] for dims in re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", compiled)]
    of_experts = {dims[0] for dims in arrays if dims[1:] in ([WIDTH, FFN], [FFN, WIDTH])}
    largest = max(math.prod(dims) for dims in arrays)
    products = len(re.findall(r"%ragged-dot-none[.\d]* = ", compiled))
    print(json.dumps({"ragged_products": products, "experts": max(of_experts), "largest": largest}), flush=True)


if __name__ == "__main__":
    main()
