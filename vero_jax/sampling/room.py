"""How a sampler that is alone on its devices uses them: over what the model is split, how many lanes and pages."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

import jax

from vero_jax.config import MeshConfig, RolloutConfig
from vero_jax.errors import UserError
from vero_jax.models.config import ModelConfig
from vero_jax.models.policy import ModelDef

USED_SHARE = 0.85
"""Of a device's memory; the rest is for what the allocator cannot use."""
WORK_SHARE = 0.12
"""Of a device's memory, for the largest program's own arrays (a prompt's images, mostly)."""
WEIGHTS_SHARE = 0.5
"""Weights are split over devices until they take no more than this of one; what is left is for keys."""
USUAL_PROMPT = 2_048
"""Tokens of a usual prompt, images included."""
MOST_LANES = 256
"""Of a shard: with more, a decode step takes longer as much as it does more."""
SMALLEST_PROMPT, SMALLEST_IMAGE = 256, 1_024


@dataclasses.dataclass(frozen=True)
class Room:
    """What a sampler may use."""

    mesh: MeshConfig
    rollout: RolloutConfig


def device_memory(devices: Sequence[jax.Device]) -> int:
    """Bytes of each device; for devices of the host, their part of its memory."""
    stats = devices[0].memory_stats() or {}
    if stats.get("bytes_limit"):
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)


def find_room(
    model_def: ModelDef,
    *,
    devices: int,
    memory: int,
    samples: int,
    max_new_tokens: int,
    max_prompt_tokens: int,
    tensor: int | None = None,
    lanes: int | None = None,
    answers: int | None = None,
) -> Room:
    """A mesh and a rollout that fit the devices: the model on as few of them as hold it, the rest side by side.

    Args:
      devices: their number.
      memory: bytes of each.
      samples: of each prompt.
      max_new_tokens, max_prompt_tokens: most tokens of an answer and of a prompt, images included.
      tensor: devices that share a copy of the model; None finds the fewest.
      lanes: answers that are drawn side by side, over all devices; None takes as many as there is room for.
      answers: that will be drawn altogether; more lanes than that are of no use.

    Raises:
      UserError: the model, or one prompt with one answer, does not fit, or `tensor` does not divide what it must.
    """
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model_def.abstract_params()))
    choices = _tensor_sizes(model_def.config, devices)
    if tensor is None:
        tensor = next((size for size in choices if weights / size <= WEIGHTS_SHARE * memory), choices[-1])
    elif tensor not in choices:
        raise UserError(
            f"the model cannot be split over {tensor} of {devices} devices; "
            f"it can over {', '.join(str(size) for size in choices)}"
        )
    shards = devices // tensor
    free = USED_SHARE * memory - WORK_SHARE * memory - weights / tensor
    held = int(free * shards / _bytes_per_token(model_def, tensor))
    least = shards * (max_prompt_tokens + max_new_tokens)
    if held < least:
        raise UserError(
            f"no room for the keys of a prompt of {max_prompt_tokens:,} tokens and an answer of {max_new_tokens:,}: "
            f"the weights take {weights / tensor / 2**30:.1f} GiB of each device's {memory / 2**30:.1f}; allow fewer "
            "tokens, or use more devices"
        )
    # Answers are longer than half of the limit for some lanes and shorter for others; those without pages wait.
    each = USUAL_PROMPT // max(1, min(samples, 8)) + max_new_tokens // 2
    if lanes is None:
        useful = MOST_LANES * shards if answers is None else min(MOST_LANES * shards, answers)
        lanes = max(shards, min(-(-useful // shards), held // each // shards) * shards)
    prompts = max(shards * max_prompt_tokens, min(held // 3, -(-lanes // samples) * 2 * USUAL_PROMPT))
    responses = max(shards * max_new_tokens, min(held - prompts, lanes * max_new_tokens))
    per_token = model_def.config.patch_layout.patches_per_token
    rollout = RolloutConfig(
        n=samples,
        max_response_length=max_new_tokens,
        concurrent_responses=lanes,
        prompt_buckets=ladder(SMALLEST_PROMPT, max_prompt_tokens),
        patch_buckets=ladder(SMALLEST_IMAGE, max_prompt_tokens * per_token, 4),
        prompt_kv_tokens=prompts,
        response_kv_tokens=responses,
    )
    return Room(MeshConfig(data=shards, tensor=tensor), rollout)


def ladder(smallest: int, largest: int, factor: int = 2) -> tuple[int, ...]:
    """smallest, `factor` times that, ... and the largest."""
    rungs = [smallest]
    while rungs[-1] * factor < largest:
        rungs.append(rungs[-1] * factor)
    return tuple(sorted({*(rung for rung in rungs if rung < largest), largest}))


def _tensor_sizes(config: ModelConfig, devices: int) -> list[int]:
    """Over how many devices a copy may be split, so that each has whole heads; ascending."""
    heads = config.text.num_kv_heads
    return [size for size in range(1, devices + 1) if devices % size == 0 and math.gcd(heads, size) in (size, heads)]


def _bytes_per_token(model_def: ModelDef, tensor: int) -> float:
    """Of a token's keys and values on a device."""
    text = model_def.config.text
    whole = text.num_layers * 2 * text.num_kv_heads * text.head_dim * model_def.dtype.itemsize
    return whole / min(tensor, text.num_kv_heads)
