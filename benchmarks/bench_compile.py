"""CPU seconds to trace, lower and compile the forward and backward pass of a released size, at several depths.

    python benchmarks/bench_compile.py [--model Qwen3-VL-8B] [--depths 4,12,36] [--tokens 512] [--patches 1024]

Parameters are abstract: nothing of the model's size is allocated, and no checkpoint is read. Layers are scanned, so
neither the program nor the time to make it grows with their number. The vision tower keeps its own depth. Each depth is
compiled in this process, one after the other, after a first time that is not shown. CPU seconds, of all threads
together, because the wall clock counts whatever else the machine does.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from vero_jax.learning.aggregation import ResponseTokens
from vero_jax.learning.programs import model_forward
from vero_jax.learning.rows import Rows
from vero_jax.models.config import ModelConfig
from vero_jax.models.inputs import TokenInputs, VisionInputs
from vero_jax.models.policy import ModelDef
from vero_jax.models.released import released_config


def with_depth(config: ModelConfig, layers: int) -> ModelConfig:
    """The same model with another number of language layers, all of one kind as in every release."""
    sparse = tuple(range(layers)) if config.text.sparse_layers else ()
    return dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=layers, sparse_layers=sparse))


def abstract_rows(config: ModelConfig, tokens: int, patches: int, responses: int) -> Rows:
    """Shapes and types of one row."""

    def of(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    windows = of(patches) if config.vision.window else None
    vision = VisionInputs(
        of(patches, config.vision.patch_elements, dtype=jnp.uint8), of(patches, 2), of(patches, 2), of(patches), windows
    )
    words = TokenInputs(of(tokens), of(tokens, 3), of(tokens), of(tokens), of(tokens))
    counted = ResponseTokens(of(responses, dtype=jnp.float32), of(responses), responses)
    return Rows(words, vision, of(responses), of(responses), counted)


def measure(config: ModelConfig, args: argparse.Namespace) -> tuple[float, float, float, int]:
    """CPU seconds of tracing, lowering and compiling, and the lines of the lowered program."""
    model_def = ModelDef(config, dtype="bfloat16", param_dtype="bfloat16", remat="layers")
    forward = model_forward(model_def)

    def loss(params: Any, rows: Rows) -> jax.Array:
        return -forward(params, rows)[0].mean()

    jax.clear_caches()
    rows = abstract_rows(config, args.tokens, args.patches, args.tokens // 2)
    start = time.process_time()
    traced = jax.jit(jax.value_and_grad(loss)).trace(model_def.abstract_params(), rows)
    after_trace = time.process_time()
    lowered = traced.lower()
    after_lower = time.process_time()
    lowered.compile()
    end = time.process_time()
    lines = lowered.as_text().count("\n")
    return after_trace - start, after_lower - after_trace, end - after_lower, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen3-VL-8B", help="a released size, see models/released.py")
    parser.add_argument("--depths", default="4,12,36", help="numbers of language layers")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of the row, half of them responses")
    parser.add_argument("--patches", type=int, default=1024)
    args = parser.parse_args()
    config = released_config(args.model)
    measure(with_depth(config, 4), args)
    print(
        f"{args.model}, forward and backward with recomputation, bfloat16, one row of {args.tokens} tokens and "
        f"{args.patches} patches, vision depth {config.vision.depth}, {jax.default_backend()}, jax {jax.__version__}"
    )
    print(f"{'layers':>8} {'parameters':>12} {'trace s':>8} {'lower s':>8} {'compile s':>10} {'StableHLO lines':>16}")
    for layers in (int(depth) for depth in args.depths.split(",")):
        deep = with_depth(config, layers)
        billions = ModelDef(deep).num_params() / 1e9
        traced, lowered, compiled, lines = measure(deep, args)
        print(f"{layers:8} {billions:10.2f} B {traced:8.2f} {lowered:8.2f} {compiled:10.2f} {lines:16}", flush=True)


if __name__ == "__main__":
    main()
