"""How a sampler uses its devices: the model on as few as hold it, lanes and pages for what is left."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

from vero_jax.errors import UserError
from vero_jax.models.policy import ModelDef
from vero_jax.models.released import released_config
from vero_jax.sampling.room import Room, device_memory, find_room, ladder

GIB = 2**30


def room(name: str = "Qwen3-VL-8B", devices: int = 1, memory: float = 80, **settings: Any) -> Room:
    values: dict[str, Any] = {"samples": 1, "max_new_tokens": 16_384, "max_prompt_tokens": 32_512} | settings
    model = ModelDef(released_config(name), dtype="bfloat16", param_dtype="bfloat16")
    return find_room(model, devices=devices, memory=int(memory * GIB), **values)


def bytes_held(found: Room, per_token: int) -> float:
    rollout = found.rollout
    assert rollout.prompt_kv_tokens is not None and rollout.response_kv_tokens is not None
    return (rollout.prompt_kv_tokens + rollout.response_kv_tokens) * per_token


PER_TOKEN = 36 * 2 * 8 * 128 * 2
"""Bytes of a token's keys and values in an 8B: layers, keys and values, heads, head dimension, bfloat16."""
MODEL = ModelDef(released_config("Qwen3-VL-8B"), dtype="bfloat16", param_dtype="bfloat16")
WEIGHTS = 2 * MODEL.num_params()


def test_a_model_that_fits_one_device_is_on_each_of_them():
    found = room(devices=8)
    assert (found.mesh.data, found.mesh.tensor) == (8, 1)
    assert found.rollout.concurrent_responses % 8 == 0


@pytest.mark.parametrize(("name", "memory", "tensor"), [("Qwen3-VL-8B", 16, 4), ("Qwen3-VL-32B", 80, 2)])
def test_a_larger_one_is_split_over_the_fewest(name, memory, tensor):
    sizes = {"max_new_tokens": 2_048, "max_prompt_tokens": 4_096}
    found = room(name, 8, memory, **sizes)
    assert (found.mesh.data, found.mesh.tensor) == (8 // tensor, tensor)
    assert room(name, 8, memory, tensor=8, **sizes).mesh.tensor == 8


@pytest.mark.parametrize("memory", [40, 80, 141])
def test_weights_keys_and_work_stay_below_the_memory(memory):
    found = room(memory=memory)
    assert WEIGHTS + bytes_held(found, PER_TOKEN) + 0.12 * memory * GIB <= 0.85 * memory * GIB
    # Most of what is left is used, as long as there is use for it.
    assert bytes_held(found, PER_TOKEN) > 0.5 * (0.73 * memory * GIB - WEIGHTS)


def test_more_memory_means_more_lanes_and_no_more_than_answers():
    lanes = [room(memory=memory).rollout.concurrent_responses for memory in (40, 80, 141)]
    assert lanes == sorted(lanes) and lanes[0] < lanes[-1]
    assert room(answers=3).rollout.concurrent_responses == 3
    assert room(devices=8, answers=3).rollout.concurrent_responses == 8  # one for each copy of the model
    assert room(lanes=5).rollout.concurrent_responses == 5


def test_one_prompt_with_one_answer_must_fit():
    with pytest.raises(UserError, match=r"no room for the keys of a prompt of 32,512 tokens .* use more devices"):
        room(memory=28)
    with pytest.raises(UserError, match="no room"):
        room("Qwen3-VL-32B", memory=40)


def test_heads_are_not_cut():
    with pytest.raises(UserError, match="cannot be split over 3 of 6 devices; it can over 1, 2"):
        room(devices=6, tensor=3)


def test_buckets_hold_the_longest_prompt_and_its_pictures():
    rollout = room().rollout
    assert rollout.prompt_buckets[-1] == 32_512 and rollout.patch_buckets[-1] == 32_512 * 4
    assert ladder(256, 256) == (256,) and ladder(256, 100) == (100,) and ladder(256, 1_500) == (256, 512, 1_024, 1_500)


def test_devices_of_the_host_share_its_memory():
    devices = jax.devices()
    assert device_memory(devices) * len(devices) == pytest.approx(device_memory(devices[:1]), rel=1e-6)

    @dataclasses.dataclass
    class Device:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 17}

    assert device_memory([Device(), Device()]) == 17
