"""Floating-point operations: of a traced program, with its loops' turns, and of the model by its formulas."""

from __future__ import annotations

import math
from typing import Any

from flax.traverse_util import flatten_dict

from vero_jax.models.config import ModelConfig


def product_flops(jaxpr: Any, *, devices: int = 1, sharded: bool = False) -> float:
    """Of all matrix products of a traced program, recomputation included, over all devices.

    XLA's own count takes the body of every loop once. Here this is so for loops whose turns the data decide, and
    kernels are not counted: they are attention's and the head's, for which `attention_flops` and `head_flops` stand.
    Nor are ragged products inside a shard_map, whose shapes are bounds: `expert_flops` stands for them.

    Args:
      jaxpr: `jitted.trace(...).jaxpr`, or a part of one.
      devices: that compute what stands inside a shard_map, whose shapes are those of one device.
      sharded: whether this is inside a shard_map.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        elif name.startswith("ragged_dot"):
            # Every row of the left side meets one matrix.
            if not sharded:
                total += 2 * math.prod(equation.outvars[0].aval.shape) * equation.invars[0].aval.shape[-1]
        elif name == "while":
            total += product_flops(params["body_jaxpr"], devices=devices, sharded=sharded)
        elif name == "pallas_call":
            continue
        elif name == "scan":
            total += params["length"] * product_flops(params["jaxpr"], devices=devices, sharded=sharded)
        elif name == "cond":
            total += max(product_flops(branch, devices=devices, sharded=sharded) for branch in params["branches"])
        elif name == "shard_map":
            total += devices * product_flops(params["jaxpr"], devices=1, sharded=True)
        elif "call_jaxpr" in params or "jaxpr" in params or "fun_jaxpr" in params:
            inside = params.get("call_jaxpr") or params.get("jaxpr") or params.get("fun_jaxpr")
            total += product_flops(inside, devices=devices, sharded=sharded)
    return total


def head_flops(config: ModelConfig, answers: float) -> float:
    """Of the log-probabilities of so many tokens, forward."""
    return 2.0 * config.text.hidden_size * config.text.vocab_size * answers


EXPERT_PASSES = 11 / 3
"""Of a forward and backward pass, in forward passes: three products forward; six backward, and two computed again."""


def expert_flops(config: ModelConfig, tokens: float) -> float:
    """Of the experts' products for so many tokens, forward."""
    text = config.text
    return 6.0 * text.hidden_size * text.expert_ffn_size * text.experts_per_token * len(text.sparse_layers) * tokens


def attention_flops(config: ModelConfig, tokens: float, length: float, patches: float, picture: float) -> float:
    """Of both products of attention, forward: `tokens` in causal rows of `length`, `patches` in pictures of so many."""
    text, vision = config.text, config.vision
    causal = 4 * text.num_layers * text.num_heads * text.head_dim * tokens * length / 2
    if vision is None or not patches:
        return causal
    windowed = vision.depth - len(vision.full_attention_layers) if vision.window else 0
    side = (vision.window * vision.merge_size) ** 2 if vision.window else 0
    width = vision.depth - windowed
    return causal + 4 * vision.hidden_size * patches * (width * picture + windowed * min(side, picture))


def model_flops(config: ModelConfig, params: Any, tokens: float, answers: float, patches: float) -> float:
    """Forward, without attention: two per parameter that a token or patch meets, the head for tokens of answers only.

    Args:
      params: the policy's tree, or its shapes.
    """
    share = config.text.experts_per_token / max(config.text.num_experts, 1)
    merged = 1 / config.patch_layout.patches_per_token
    of_token = of_patch = 0.0
    for path, leaf in flatten_dict(params).items():
        if path[0] == "vision" and path[-1] == "kernel":
            of_patch += leaf.size * (merged if path[1] in ("merger", "deepstack") else 1.0)
        elif path[0] == "language" and path[-1] != "embedding":
            of_token += leaf.size * (share if "moe" in path and "router" not in path else 1.0)
    return 2 * (of_token * tokens + of_patch * patches) + head_flops(config, answers)
