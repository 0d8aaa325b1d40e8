"""Attention kernels of a GPU against the XLA version: the largest differences, and TFLOP/s forward and with backward.

    python benchmarks/gpu_kernels.py [--json]

Small cases (float32 and bfloat16, padding, several groups, odd lengths) compare values and gradients with a tolerance;
real shapes are timed too, and compared in bfloat16. Ends with 1 when a difference is too large, or without a GPU.
FLOPs are those of the visible pairs of tokens: 4 C each per head forward, 14 C with the backward pass.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vero_jax.models.attention import Implementation, segment_attention, shared_prefix_attention

# name, rule, rows, tokens, query heads, key-value heads, head dim, type, timed
CASES = (
    ("small", "row", 2, 700, 8, 2, 128, "float32", False),
    ("small", "row", 2, 1000, 4, 4, 64, "bfloat16", False),
    ("small", "row", 1, 1024, 8, 1, 128, "bfloat16", False),
    ("small", "segment", 2, 900, 4, 4, 72, "float32", False),
    ("small", "segment", 1, 900, 4, 4, 80, "bfloat16", False),
    ("2B row, 8 branches", "row", 1, 8192, 16, 8, 128, "bfloat16", True),
    ("8B row, 8 branches", "row", 1, 16384, 32, 8, 128, "bfloat16", True),
    ("vision, 4 images", "segment", 1, 16384, 16, 16, 72, "bfloat16", True),
)
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of the largest difference, as a part of the largest value of the XLA version."""


def row_labels(length: int, branches: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Two groups, of 3/4 and 1/4 of the row; half of a group is its prefix; some padding at the end."""
    groups, labels, at, real = np.zeros(length, np.int32), np.zeros(length, np.int32), 0, length - length // 50
    for group, end in ((1, real * 3 // 4), (2, real)):
        size = end - at
        edges = np.linspace(at + size // 2, end, branches + 1).astype(int)
        groups[at:end] = group
        for branch in range(branches):
            labels[edges[branch] : edges[branch + 1]] = branch + 1
        at = end
    return groups, labels


def segment_labels(length: int) -> np.ndarray:
    segments = np.arange(length, dtype=np.int32) * 4 // length + 1
    segments[length - length // 50 :] = 0
    return segments


def visible_pairs(groups: np.ndarray, branches: np.ndarray | None) -> int:
    """How many (query, key) pairs a row has."""
    if branches is None:
        return int(sum(np.sum(groups == g) ** 2 for g in np.unique(groups[groups > 0])))
    total = 0
    for group in np.unique(groups[groups > 0]):
        sizes = np.bincount(branches[groups == group])
        total += sizes[0] * (sizes[0] + 1) // 2 + sum(
            int(n) * int(sizes[0]) + int(n) * (int(n) + 1) // 2 for n in sizes[1:]
        )
    return int(total)


def median_seconds(run: Callable[..., Any], args: tuple, repeats: int = 5) -> float:
    jax.block_until_ready(run(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def measure(case: tuple) -> dict:
    name, rule, rows, length, heads, kv_heads, size, dtype, timed = case
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(rows, length, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, weight = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))
    groups, branches = row_labels(length) if rule == "row" else (segment_labels(length), None)
    labels = [jnp.tile(jnp.asarray(x), (rows, 1)) for x in (groups, branches) if x is not None]
    attention = shared_prefix_attention if rule == "row" else segment_attention

    def forward(implementation: Implementation, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        # A block of 128 divides short rows; real ones take the default of the settings.
        return attention(q, k, v, *labels, 512 if timed else 128, implementation)

    def both(implementation: Implementation, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        out, pull = jax.vjp(functools.partial(forward, implementation), q, k, v)
        return out, *pull(weight)

    ways = {way: jax.jit(functools.partial(both, way)) for way in ("pallas", "xla")}
    got, want = ([np.asarray(x, np.float32) for x in ways[way](q, k, v)] for way in ("pallas", "xla"))
    differences = {
        part: float(np.abs(a - b).max() / np.abs(b).max())
        for part, a, b in zip(("out", "d_q", "d_k", "d_v"), got, want, strict=True)
    }
    right = all(difference <= TOLERANCE[dtype] for difference in differences.values())  # false for NaN, too
    result = {"case": name, "rule": rule, "tokens": length, "head": size, "type": dtype, "ok": right, **differences}
    if timed:
        unit = rows * heads * size * visible_pairs(groups, branches) / 1e12
        for way in ("pallas", "xla"):
            run = jax.jit(functools.partial(forward, way))
            result[f"{way}_forward_tflops"] = 4 * unit / median_seconds(run, (q, k, v))
            result[f"{way}_both_tflops"] = 14 * unit / median_seconds(ways[way], (q, k, v))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args().json
    if jax.default_backend() != "gpu":
        print(f"this needs a GPU; jax found {jax.default_backend()}", file=sys.stderr)
        return 1
    rows, failed = [], False
    # XLA's own float32 products would be TF32, whose errors are larger than the ones looked for.
    with jax.default_matmul_precision("highest"):
        rows += [measure(case) for case in CASES if case[7] == "float32"]
    rows += [measure(case) for case in CASES if case[7] != "float32"]
    for row in rows:
        failed |= not row["ok"]
        if not as_json:
            print("  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
    if as_json:
        print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rows": rows}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
